//! How long a model that nobody uses stays loaded, in the words of Ollama's API.

use std::time::Duration;

/// From the end of the last request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepAlive {
    /// Until memory is needed.
    Forever,
    /// So long; zero = it goes at once.
    For(Duration),
}

impl KeepAlive {
    /// A number of seconds; below zero means for ever.
    pub fn from_seconds(seconds: f64) -> Option<Self> {
        if seconds < 0.0 {
            return Some(Self::Forever);
        }
        Duration::try_from_secs_f64(seconds).ok().map(Self::For)
    }

    /// A number of seconds, or a duration as Go writes it: `300ms`, `5m`, `1h30m`, `-1m`.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Ok(seconds) = text.parse::<f64>() {
            return Self::from_seconds(seconds);
        }
        let (is_negative, mut rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let mut seconds = 0.0;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
            let (number, behind) = rest.split_at(digits);
            let unit_len = behind.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(behind.len());
            let (unit, behind) = behind.split_at(unit_len);
            let unit_s = match unit {
                "ns" => 1e-9,
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
            seconds += number.parse::<f64>().ok()? * unit_s;
            rest = behind;
        }
        match text.is_empty() {
            true => None,
            false => Self::from_seconds(if is_negative { -seconds } else { seconds }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_ollama() {
        let seconds = |s: f64| Some(KeepAlive::For(Duration::from_secs_f64(s)));
        for (text, expected) in [
            ("5m", seconds(300.0)),
            ("1h30m", seconds(5400.0)),
            ("0", seconds(0.0)),
            ("0s", seconds(0.0)),
            ("1.5s", seconds(1.5)),
            ("300ms", seconds(0.3)),
            ("3600", seconds(3600.0)),
            ("-1", Some(KeepAlive::Forever)),
            ("-1m", Some(KeepAlive::Forever)),
            ("", None),
            ("m", None),
            ("5x", None),
            ("5m3", None),
            ("nan", None),
        ] {
            assert_eq!(KeepAlive::parse(text), expected, "{text}");
        }
    }
}
