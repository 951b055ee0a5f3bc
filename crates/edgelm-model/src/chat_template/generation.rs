//! The `{% generation %}` tag, by which transformers finds the assistant's part of a training example.
//!
//! It writes its body and changes nothing in a prompt. The template engine does not know it, so that it becomes a
//! `with` block, which like it has a scope of its own.

/// The template with `generation` tags renamed; text, comments, strings and raw blocks stay as they are.
pub(super) fn as_plain_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut is_raw = false;
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = match rest.as_bytes().get(1) {
            Some(b'#') if !is_raw => rest.find("#}").map_or(rest.len(), |end| end + 2),
            Some(b'{') if !is_raw => code_length(rest, "}}"),
            Some(b'%') => {
                let length = code_length(rest, "%}");
                let tag = &rest[..length];
                let inner = tag.trim_start_matches(['{', '%', '-', '+']).trim_start();
                let end = inner.find(|character: char| !character.is_ascii_alphanumeric() && character != '_');
                let name = &inner[..end.unwrap_or(inner.len())];
                match name {
                    "raw" => is_raw = true,
                    "endraw" => is_raw = false,
                    "generation" | "endgeneration" if !is_raw => {
                        let plain = if name == "generation" { "with" } else { "endwith" };
                        out.push_str(&tag.replacen(name, plain, 1));
                        rest = &rest[length..];
                        continue;
                    }
                    _ => {}
                }
                // Inside a raw block a tag is text, and what follows its first brace may be the end of the block.
                if is_raw && name != "raw" { 1 } else { length }
            }
            _ => 1,
        };
        out.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    out.push_str(rest);
    out
}

/// Bytes up to and including the closing delimiter that is not inside a string; all if there is none.
fn code_length(code: &str, close: &str) -> usize {
    let bytes = code.as_bytes();
    let mut at = 2;
    let mut quote = None;
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(_), b'\\') => at += 1,
            (Some(open), byte) if open == byte => quote = None,
            (Some(_), _) => {}
            (None, byte @ (b'"' | b'\'')) => quote = Some(byte),
            (None, _) if bytes[at..].starts_with(close.as_bytes()) => return at + close.len(),
            (None, _) => {}
        }
        at += 1;
    }
    code.len()
}
