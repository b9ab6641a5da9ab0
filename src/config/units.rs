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

/// Days of the months before each, in a year that begins in March, so that a leap day comes last.
const BEFORE: [u64; 12] = [0, 31, 61, 92, 122, 153, 184, 214, 245, 275, 306, 337];

/// Days from 0000-03-01 to 1970-01-01 in the Gregorian calendar.
const EPOCH: u64 = 719_468;

fn leaps(year: u64) -> u64 {
    year / 4 - year / 100 + year / 400
}

/// Days since 1970-01-01 of a day from then on, written `2026-11-01`; `None` if it is no such day.
pub(super) fn read_day(text: &str) -> Option<u64> {
    let mut parts = text.splitn(3, '-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    if text.len() != 10 || !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || day == 0 {
        return None;
    }
    let (year, at) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = (365 * year + leaps(year) + BEFORE[at as usize] + day - 1).checked_sub(EPOCH)?;
    // What is no day of its month would be shown as one of the next.
    (show_day(days) == text).then_some(days)
}

/// The day so many days after 1970-01-01.
pub(super) fn show_day(days: u64) -> String {
    let days = days + EPOCH;
    let mut year = days / 366;
    while 365 * (year + 1) + leaps(year + 1) <= days {
        year += 1;
    }
    let within = days - 365 * year - leaps(year);
    let at = BEFORE.iter().rposition(|before| *before <= within).unwrap_or(0);
    let day = within - BEFORE[at] + 1;
    let (year, month) = if at < 10 { (year, at + 3) } else { (year + 1, at - 9) };
    format!("{year:04}-{month:02}-{day:02}")
}

/// Reads a moment, as the time since 1970-01-01 00:00 UTC: by RFC 3339 (`2026-11-22T20:35:17.5Z`) or as
/// PostgreSQL writes a `timestamptz` (`2026-11-22 20:35:17.5+00`; `DateStyle = ISO`). `None` if it is none, has no
/// offset, or is outside the years 1970 to 9999.
#[must_use]
pub fn read_moment(text: &str) -> Option<Duration> {
    let (date, rest) = text.split_at_checked(10)?;
    let days = read_day(date)?;
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let (time, offset) = match rest.find(['Z', 'z', '+', '-']) {
        Some(at) if rest.is_char_boundary(at) => rest.split_at(at),
        _ => return None,
    };
    let (whole, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let micros = format!("{fraction:0<6}").get(..6)?.parse::<u64>().ok()?;
    // The leap second of RFC 3339 is the next one.
    let seconds = read_clock(whole, true).filter(|_| whole.len() == 8)? + days * 86_400;
    let utc = match offset.split_at_checked(1)? {
        ("Z" | "z", "") => seconds,
        ("+", ahead) => seconds.checked_sub(read_clock(ahead, false)?)?,
        ("-", behind) => seconds + read_clock(behind, false)?,
        _ => return None,
    };
    Some(Duration::from_secs(utc) + Duration::from_micros(micros))
}

/// A moment by RFC 3339, in UTC; microseconds, if there are any.
#[must_use]
pub fn show_moment(at: Duration) -> String {
    let (seconds, micros) = (at.as_secs(), at.subsec_micros());
    let (day, hour) = (show_day(seconds / 86_400), seconds / 3_600 % 24);
    let fraction = if micros == 0 { String::new() } else { format!(".{micros:06}") };
    format!("{day}T{hour:02}:{:02}:{:02}{fraction}Z", seconds / 60 % 60, seconds % 60)
}

/// Seconds of `HH`, `HH:MM` or `HH:MM:SS`.
fn read_clock(text: &str, leap: bool) -> Option<u64> {
    let mut total = 0;
    let mut factor = 3_600;
    for (at, part) in text.split(':').enumerate() {
        let limit = [24, 60, 60 + u64::from(leap)].get(at).copied()?;
        let digits = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
        total += part.parse::<u64>().ok().filter(|n| digits && *n < limit)? * factor;
        factor /= 60;
    }
    Some(total)
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
    fn days_read_and_written() {
        for (text, days) in [
            ("1970-01-01", 0),
            ("1970-03-01", 59),
            ("1972-02-29", 789),
            ("2000-02-29", 11_016),
            ("2026-11-21", 20_778),
            ("9999-12-31", 2_932_896),
        ] {
            assert_eq!(read_day(text), Some(days), "{text}");
            assert_eq!(show_day(days), text);
        }
        for bad in ["", "2026-11-31", "2026-02-29", "2026-13-01", "2026-11-1", "1969-12-31", "2026-11-01x"] {
            assert_eq!(read_day(bad), None, "{bad}");
        }
    }

    #[test]
    fn moments_are_read_as_rfc_3339_and_postgresql_write_them() {
        for (text, millis) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2026-11-22T20:35:17Z", 1_795_379_717_000),
            ("2026-11-22 20:35:17.25+00", 1_795_379_717_250),
            ("2026-11-22 22:05:17+01:30", 1_795_379_717_000),
            ("2026-11-22 18:35:17-02", 1_795_379_717_000),
            ("2026-11-22T20:35:17.250000001z", 1_795_379_717_250),
        ] {
            assert_eq!(read_moment(text), Some(Duration::from_millis(millis)), "{text}");
            assert_eq!(read_moment(&show_moment(Duration::from_millis(millis))), read_moment(text));
        }
        assert_eq!(show_moment(Duration::from_millis(1_795_379_717_000)), "2026-11-22T20:35:17Z");
        assert_eq!(show_moment(Duration::from_millis(1_795_379_717_250)), "2026-11-22T20:35:17.250000Z");
        for bad in [
            "",
            "infinity",
            "2026-11-22",
            "2026-11-22T20:35:17",
            "2026-11-22T20:35Z",
            "2026-11-22T24:00:00Z",
            "1969-12-31T23:59:59Z",
            "1970-01-01 00:00:00+01",
            "2026-11-31T00:00:00Z",
            "2026-11-22T20:35:17.xZ",
            "0044-03-15 00:00:00+00 BC",
            "2026-11-22T20:35:17+",
            "2026-11-22é20:35:17Z",
            "+2026-11-2T00:00:00Z",
        ] {
            assert_eq!(read_moment(bad), None, "{bad}");
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
