//! Durations and shares as a person writes them, and back.
//!
//! A duration is a whole number and a unit: `"250ms"`, `"5s"`, `"10m"`, `"1h"`, `"7d"`. A bare
//! number is refused, because nobody remembers which key counts milliseconds.

use super::Share;
use std::time::Duration;

/// Units from the largest to the smallest, in milliseconds.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads a duration; `None` if it is not one or does not fit.
pub(super) fn read_duration(text: &str) -> Option<Duration> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let (_, factor) = UNITS.into_iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(factor).map(Duration::from_millis)
}

/// Writes a duration with the largest unit that divides it. Parts below a millisecond are cut off:
/// no key can be written that finely.
pub(super) fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis == 0 {
        return "0s".to_owned();
    }
    UNITS
        .into_iter()
        .find(|(_, factor)| millis.is_multiple_of(u128::from(*factor)))
        .map(|(unit, factor)| format!("{}{unit}", millis / u128::from(factor)))
        .unwrap_or_default()
}

/// Reads `"50%"`: more than 0 and at most 100 percent.
pub(super) fn read_percent(text: &str) -> Option<Share> {
    let percent: f64 = text.strip_suffix('%')?.trim_end().parse().ok()?;
    (percent > 0.0 && percent <= 100.0).then_some(Share::Percent(percent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_written() {
        for (text, millis) in
            [("250ms", 250), ("5s", 5_000), ("10m", 600_000), ("1h", 3_600_000), ("7d", 604_800_000)]
        {
            assert_eq!(read_duration(text), Some(Duration::from_millis(millis)), "{text}");
            assert_eq!(show_duration(Duration::from_millis(millis)), text);
        }
        assert_eq!(read_duration("5 s"), Some(Duration::from_secs(5)));
        assert_eq!(show_duration(Duration::ZERO), "0s");
        assert_eq!(show_duration(Duration::from_millis(90_000)), "90s");
        for bad in ["", "5", "s", "-5s", "5sec", "1.5s", "99999999999999999999s", "18446744073709551615d"] {
            assert_eq!(read_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn percents_lie_between_nothing_and_all() {
        assert_eq!(read_percent("50%"), Some(Share::Percent(50.0)));
        assert_eq!(read_percent("100%"), Some(Share::Percent(100.0)));
        assert_eq!(read_percent("0.5%"), Some(Share::Percent(0.5)));
        for bad in ["0%", "101%", "50", "%", "-1%", "NaN%", "inf%"] {
            assert_eq!(read_percent(bad), None, "{bad}");
        }
    }
}
