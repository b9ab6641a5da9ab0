//! What a held lease may still do: the budgets of time, asked at each tick (`tick.rs`).
//!
//! `judge` holds what is spent against a limit; `overstay` (B10, B11), `overrun` (B12, B13), `db_time` (B3) and `park`
//! (§4.4) say what is spent, and what is done when a limit is crossed. They end nothing themselves: the
//! session does.

mod db_time;
mod judge;
mod overrun;
mod overstay;
mod park;

pub(super) use judge::Watch;
pub(super) use overrun::first_look;
