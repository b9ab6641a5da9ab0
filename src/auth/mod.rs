//! Client identity.
