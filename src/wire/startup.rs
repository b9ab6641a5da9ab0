//! The first packet of a connection: SSLRequest, GSSENCRequest, CancelRequest, StartupMessage.
