//! What pages are made of: a head with the style, escaped text, bars, grouped digits. Shared with the pages of other crates.

use std::fmt::{self, Display, Write};

const STYLE: &str = "\
:root{color-scheme:light dark;--line:#8884;--bar:#3b7dd8;--bad:#c2410c}\
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}\
table{border-collapse:collapse;width:100%}\
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}\
td.number,th.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}\
td.text{white-space:pre-wrap;overflow-wrap:anywhere}\
svg{display:block;width:100%;max-width:20rem;height:.9rem}svg.chart{max-width:44rem;height:auto}.track{fill:var(--line)}.bar{fill:var(--bar)}\
.wrong{color:var(--bad)}.note{opacity:.75}";

/// Everything before the content of a page. What follows it ends with `</body></html>`.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// Of the window.
    pub title: &'a str,
    /// Of the page.
    pub heading: &'a str,
}

impl Display for Head<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{}</h1>\n",
            Escaped(self.title),
            Escaped(self.heading)
        )
    }
}

/// Writes a text so that HTML shows it as it is, in content and in quoted attributes. Control characters that HTML
/// forbids become U+FFFD.
#[derive(Debug, Clone, Copy)]
pub struct Escaped<'a>(pub &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\n' | '\t' => f.write_char(c)?,
                c if c.is_control() => f.write_char(char::REPLACEMENT_CHARACTER)?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// A bar filled to `share` of its length; values outside 0 to 1 are drawn as its ends.
#[derive(Debug, Clone, Copy)]
pub struct Bar(pub f64);

impl Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = 100.0 * self.0.clamp(0.0, 1.0);
        write!(
            f,
            "<svg viewBox=\"0 0 100 4\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{width:.1} %\">\
             <rect class=\"track\" width=\"100\" height=\"4\"/><rect class=\"bar\" width=\"{width:.2}\" height=\"4\"/></svg>"
        )
    }
}

/// 12345678 as 12,345,678.
#[derive(Debug, Clone, Copy)]
pub struct Grouped(pub u64);

impl Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index).is_multiple_of(3) {
                f.write_char(',')?;
            }
            f.write_char(digit)?;
        }
        Ok(())
    }
}
