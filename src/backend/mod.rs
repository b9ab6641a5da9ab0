//! One server connection.
