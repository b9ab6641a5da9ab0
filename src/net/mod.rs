//! Sockets: links, buffers, listeners.
