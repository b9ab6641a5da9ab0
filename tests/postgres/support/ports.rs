//! Free ports on the loopback interface, below the range from which the kernel takes the ports of
//! outgoing connections, so that nobody takes one between the look and the use.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

const FIRST: u32 = 12_000;
const COUNT: u32 = 20_000;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A port nobody listens on, and that this process has not handed out before.
pub(crate) fn free() -> u16 {
    // Test processes that run beside each other start at different places.
    let offset = std::process::id().wrapping_mul(613);
    for _ in 0..COUNT {
        let n = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(offset);
        let port = u16::try_from(FIRST + n % COUNT).expect("the range ends below 65536");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + COUNT);
}
