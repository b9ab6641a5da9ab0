//! `SET bursar.x`, `RESET bursar.x`, `SHOW bursar.x`: statements answered without a backend.
