//! How long a database is to stay, as people write it.

use std::time::Duration;

/// Reads a time such as `90s`, `30m`, `8h` or `2d`.
pub fn read_lifetime(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a number and a unit, such as 90s, 30m, 8h or 2d".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    let total = number.checked_mul(seconds).filter(|total| (1..=31_536_000).contains(total));
    total.map(Duration::from_secs).ok_or_else(|| "expected a time from a second to a year".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_unit() {
        assert_eq!(read_lifetime("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(read_lifetime("2h"), Ok(Duration::from_hours(2)));
        for wrong in ["", "h", "5", "5x", "-1h", "0s", "9999999999d", "1½h", "5é"] {
            assert!(read_lifetime(wrong).is_err(), "{wrong}");
        }
    }
}
