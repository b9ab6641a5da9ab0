//! Sockets: buffers, lanes from one socket to the other, streams, encryption and listeners.
//!
//! | file | what |
//! |---|---|
//! | [`buffers`] | read buffers, lent while bytes are in flight |
//! | [`lane`] | one direction of a session: spans in, one write out |
//! | [`readable`] | what a lane reads from |
//! | [`stream`] | one type for TCP, Unix sockets and TLS |
//! | [`tls`] | handshakes, certificates, encrypted streams |
//! | [`listen`] | where clients connect |

pub mod buffers;
pub mod lane;
pub mod listen;
pub mod readable;
pub mod stream;
pub mod tls;
