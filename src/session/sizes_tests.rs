//! What an idle session keeps, in bytes on a 64-bit machine.
//!
//! The aim is 4 KiB of user memory for each idle client, half of which is the parts below; the rest is the
//! runtime's, the book's and the allocator's. `make versus ROWS=idle` measures all of it, and is to be run
//! before one of these bounds is raised.

use super::Session;
use super::handshake::LoggedIn;
use crate::net::stream::Stream;
use crate::pool::cell::Cell;

/// Of the future that `of` makes.
fn future<'s, F>(_: impl FnOnce(&'s mut Session<Stream>) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn an_idle_session_is_small() {
    let sizes = [size_of::<LoggedIn<Stream>>(), size_of::<Cell>(), future(Session::serve)];
    let bounds = [1752, 408, 168];
    assert!(sizes.iter().zip(bounds).all(|(size, bound)| *size <= bound), "{sizes:?}");
}
