//! `strftime` for chat templates: UTC, C locale, from a given time and never from the machine's clock.

/// A date and time of the proleptic Gregorian calendar in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Civil {
    year: i64,
    month: usize,
    day: i64,
    /// Days since Sunday.
    weekday: usize,
    /// Day of the year from 1.
    year_day: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Formats `unix_seconds` by a `strftime` pattern. Returns the directive that is not supported as the error.
pub(crate) fn strftime(pattern: &str, unix_seconds: i64) -> Result<String, String> {
    let t = civil(unix_seconds);
    let hour12 = if t.hour % 12 == 0 { 12 } else { t.hour % 12 };
    let mut out = String::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        // `%-d` and friends (a glibc extension that templates use) leave out the padding.
        let unpadded = directive == Some('-');
        if unpadded {
            directive = chars.next();
        }
        let number = |value: i64, width: usize| {
            if unpadded { value.to_string() } else { format!("{value:0width$}") }
        };
        let text = match directive {
            Some('Y') => t.year.to_string(),
            Some('y') => number(t.year.rem_euclid(100), 2),
            Some('m') => number(t.month as i64 + 1, 2),
            Some('d') => number(t.day, 2),
            Some('e') if !unpadded => format!("{:2}", t.day),
            Some('e') => t.day.to_string(),
            Some('j') => number(t.year_day, 3),
            Some('H') => number(t.hour, 2),
            Some('I') => number(hour12, 2),
            Some('M') => number(t.minute, 2),
            Some('S') => number(t.second, 2),
            Some('p') => (if t.hour < 12 { "AM" } else { "PM" }).to_owned(),
            Some('B') => MONTHS[t.month].to_owned(),
            Some('b' | 'h') => MONTHS[t.month][..3].to_owned(),
            Some('A') => DAYS[t.weekday].to_owned(),
            Some('a') => DAYS[t.weekday][..3].to_owned(),
            Some('w') => t.weekday.to_string(),
            Some('F') => format!("{}-{:02}-{:02}", t.year, t.month + 1, t.day),
            Some('T') => format!("{:02}:{:02}:{:02}", t.hour, t.minute, t.second),
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some('%') => "%".to_owned(),
            Some(other) => return Err(format!("%{other}")),
            None => return Err("% at the end".to_owned()),
        };
        out.push_str(&text);
    }
    Ok(out)
}

/// Days to date by counting 400-year cycles from 1 March of year 0, so that leap days fall at the end of a
/// year.
fn civil(unix_seconds: i64) -> Civil {
    let days = unix_seconds.div_euclid(86_400);
    let of_day = unix_seconds.rem_euclid(86_400);
    let shifted = days + 719_468;
    let cycle = shifted.div_euclid(146_097);
    let of_cycle = shifted.rem_euclid(146_097);
    let year_of_cycle = (of_cycle - of_cycle / 1_460 + of_cycle / 36_524 - of_cycle / 146_096) / 365;
    let of_march_year = of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let march_month = (5 * of_march_year + 2) / 153;
    let day = of_march_year - (153 * march_month + 2) / 5 + 1;
    let month = (march_month + 2) % 12;
    let year = year_of_cycle + cycle * 400 + i64::from(month < 2);
    let leap = i64::from(year % 4 == 0 && (year % 100 != 0 || year % 400 == 0));
    let year_day = if month < 2 { of_march_year - 305 } else { of_march_year + 60 + leap };
    Civil {
        year,
        month: month as usize,
        day,
        weekday: (days + 4).rem_euclid(7) as usize,
        year_day,
        hour: of_day / 3_600,
        minute: of_day / 60 % 60,
        second: of_day % 60,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        let all = "%a %A %d %e %-d %b %B %m %y %Y %j %H %I %M %S %p %%";
        // Expected texts are those of Python's datetime.strftime in UTC.
        assert_eq!(
            strftime(all, 0).unwrap(),
            "Thu Thursday 01  1 1 Jan January 01 70 1970 001 00 12 00 00 AM %"
        );
        assert_eq!(
            strftime(all, 1_709_210_096).unwrap(),
            "Thu Thursday 29 29 29 Feb February 02 24 2024 060 12 12 34 56 PM %"
        );
        assert_eq!(strftime("%d %b %Y", 1_721_952_000).unwrap(), "26 Jul 2024");
        assert_eq!(strftime("%F %j", 1_735_603_200).unwrap(), "2024-12-31 366");
        assert_eq!(strftime("%F %T", -1).unwrap(), "1969-12-31 23:59:59");
    }

    #[test]
    fn unknown_directives_are_errors() {
        assert_eq!(strftime("%Q", 0), Err("%Q".into()));
        assert!(strftime("100%", 0).is_err());
    }
}
