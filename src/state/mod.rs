//! Session settings as interned sets.
