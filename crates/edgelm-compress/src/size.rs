//! Sizes as people write them.

/// Bytes of `1200`, `500MB`, `1.5GiB`, `2g`: decimal units, or binary ones with an `i`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: f64 = number.parse().map_err(|_| format!("`{text}` is not a size"))?;
    let unit = unit.trim().to_ascii_lowercase();
    let unit = unit.strip_suffix('b').unwrap_or(&unit);
    let factor = match unit {
        "" => 1.0,
        "k" => 1e3,
        "m" => 1e6,
        "g" => 1e9,
        "t" => 1e12,
        "ki" => f64::from(1u32 << 10),
        "mi" => f64::from(1u32 << 20),
        "gi" => f64::from(1u32 << 30),
        other => return Err(format!("`{other}` is not a unit of size; use K, M, G or Ki, Mi, Gi")),
    };
    Ok((number * factor) as u64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::parse_size as parse;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(parse("1200").unwrap(), 1200);
        assert_eq!(parse("500MB").unwrap(), 500_000_000);
        assert_eq!(parse("1.5 GiB").unwrap(), 3 << 29);
        assert_eq!(parse("2g").unwrap(), 2_000_000_000);
        assert!(parse("").is_err() && parse("x").is_err() && parse("1.2.3").is_err() && parse("5 parsecs").is_err());
    }
}
