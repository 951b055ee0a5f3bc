//! Which files of a repository a reference means.

use super::{HubError, Reference};
use std::collections::{BTreeMap, BTreeSet};

/// Files to have, and what of them to hand to whoever loads the model.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Selection {
    /// Names.
    pub(super) files: BTreeSet<String>,
    /// The file to open; `None` = the folder.
    pub(super) entry: Option<String>,
}

/// Chooses among `names`.
pub(super) fn select(reference: &Reference, names: &[&str]) -> Result<Selection, HubError> {
    let error = |what: String, available: Vec<&str>| HubError::Selection {
        repo: reference.repo().to_owned(),
        what,
        available: available.into_iter().map(str::to_owned).collect(),
    };
    let ggufs: Vec<&str> = names.iter().copied().filter(|name| is_gguf(name)).collect();
    let Some(selector) = reference.selector() else {
        return folder(names).map_or_else(|| one_gguf(&ggufs, "a model", names, &error), Ok);
    };
    if names.contains(&selector) {
        return match (is_gguf(selector), part_of(selector)) {
            (true, Some((set, _))) => {
                let parts: Vec<&str> =
                    ggufs.into_iter().filter(|name| part_of(name).is_some_and(|(of, _)| of == set)).collect();
                one_gguf(&parts, &format!("`{selector}`"), names, &error)
            }
            _ => Ok(Selection { files: [selector.to_owned()].into(), entry: Some(selector.to_owned()) }),
        };
    }
    if has_gguf_extension(selector) {
        return Err(error(format!("there is no file `{selector}`"), listed(names)));
    }
    let matching: Vec<&str> = ggufs.into_iter().filter(|name| has_word(name, selector)).collect();
    one_gguf(&matching, &format!("`{selector}`"), names, &error)
}

/// A model in safetensors, with everything around it that this project reads.
fn folder(names: &[&str]) -> Option<Selection> {
    let weights: Vec<&str> = names.iter().copied().filter(|name| is_at_root(name, ".safetensors")).collect();
    // Some repositories hold the same weights a second time, in their authors' own layout.
    let is_second_copy = |name: &str| name.starts_with("consolidated");
    let only_copies = weights.iter().all(|name| is_second_copy(name));
    let around = |name: &str| {
        matches!(name, "config.json" | "generation_config.json" | "special_tokens_map.json" | "chat_template.jinja")
            || (name.starts_with("tokenizer") && is_at_root(name, ".json"))
            || is_at_root(name, ".safetensors.index.json")
    };
    let is_wanted = |name: &str| around(name) || (weights.contains(&name) && (only_copies || !is_second_copy(name)));
    let files = names.iter().filter(|name| is_wanted(name)).map(|name| (*name).to_owned()).collect();
    (!weights.is_empty()).then_some(Selection { files, entry: None })
}

/// One GGUF model out of those that match: a file, or all parts of a split one.
fn one_gguf(
    matching: &[&str],
    wanted: &str,
    names: &[&str],
    error: &impl Fn(String, Vec<&str>) -> HubError,
) -> Result<Selection, HubError> {
    let mut sets: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for name in matching {
        let set = part_of(name).map_or_else(|| (*name).to_owned(), |(set, _)| set);
        sets.entry(set).or_default().push(name);
    }
    let mut sets = sets.into_values();
    let (Some(mut parts), None) = (sets.next(), sets.next()) else {
        return Err(match matching {
            [] => error(format!("no file matches {wanted}"), listed(names)),
            several => error(format!("several files match {wanted}"), several.to_vec()),
        });
    };
    parts.sort_unstable();
    if let Some((_, count)) = part_of(parts[0])
        && parts.len() != count
    {
        return Err(error(format!("{wanted} has {} of its {count} parts", parts.len()), parts));
    }
    Ok(Selection {
        entry: parts.first().map(|name| (*name).to_owned()),
        files: parts.into_iter().map(str::to_owned).collect(),
    })
}

/// What a user could have meant: GGUF files if there are any, else everything, within reason.
fn listed<'a>(names: &[&'a str]) -> Vec<&'a str> {
    const AT_MOST: usize = 60;
    let ggufs: Vec<&str> = names.iter().copied().filter(|name| has_gguf_extension(name)).collect();
    let mut shown = if ggufs.is_empty() { names.to_vec() } else { ggufs };
    if shown.len() > AT_MOST {
        shown.truncate(AT_MOST);
        shown.push("…");
    }
    shown
}

fn is_at_root(name: &str, ending: &str) -> bool {
    !name.contains('/') && name.ends_with(ending)
}

fn has_gguf_extension(name: &str) -> bool {
    name.len() >= 5 && name.as_bytes()[name.len() - 5..].eq_ignore_ascii_case(b".gguf")
}

/// A language model: the vision parts that lie beside some carry a quantization's name too.
fn is_gguf(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name);
    has_gguf_extension(name) && !file.starts_with("mmproj")
}

/// The set that `…-00001-of-00003.gguf` belongs to, and how many parts that has.
fn part_of(name: &str) -> Option<(String, usize)> {
    let stem = name.get(..name.len().checked_sub(".gguf".len())?)?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (set, part) = rest.rsplit_once('-')?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(part) && is_number(count)).then_some((format!("{set}-of-{count}"), count.parse().ok()?))
}

/// Whether `name` holds `word`, in any case, and not as a piece of a longer one: `Q4_K` is not in `Q4_K_M`, nor `Q4_0`
/// in `IQ4_0`.
fn has_word(name: &str, word: &str) -> bool {
    let (name, word) = (name.to_ascii_lowercase(), word.to_ascii_lowercase());
    let is_part = |c: char| c.is_alphanumeric();
    name.match_indices(&word).any(|(start, _)| {
        let after = name[start + word.len()..].chars().next();
        !name[..start].ends_with(is_part) && !after.is_some_and(|c| is_part(c) || c == '_')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(selector: &str, names: &[&str]) -> Result<(Vec<String>, Option<String>), String> {
        let reference: Reference = format!("hf.co/a/b{selector}").parse().expect("a reference");
        match select(&reference, names) {
            Ok(selection) => Ok((selection.files.into_iter().collect(), selection.entry)),
            Err(error) => Err(error.to_string()),
        }
    }

    fn chosen(selector: &str, names: &[&str], files: &[&str], entry: Option<&str>) {
        let files = files.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(choose(selector, names), Ok((files, entry.map(str::to_owned))));
    }

    const GGUFS: &[&str] = &[
        "README.md",
        "m-IQ4_XS.gguf",
        "m-Q4_K_M.gguf",
        "m-Q4_K_S.gguf",
        "m-Q8_0.gguf",
        "m-f16-00001-of-00002.gguf",
        "m-f16-00002-of-00002.gguf",
        "mmproj-Q8_0.gguf",
    ];

    #[test]
    fn folders() {
        let names = [
            "README.md",
            "chat_template.jinja",
            "config.json",
            "consolidated.safetensors",
            "generation_config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "onnx/model.safetensors",
            "pytorch_model.bin",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer.model",
            "tokenizer_config.json",
        ];
        let wanted = [1, 2, 4, 5, 6, 7, 10, 11, 13].map(|index: usize| names[index]);
        chosen("", &names, &wanted, None);
        chosen("", &["consolidated.safetensors"], &["consolidated.safetensors"], None);
        chosen(":config.json", &names, &["config.json"], Some("config.json"));
    }

    #[test]
    fn quantizations() {
        chosen(":q4_k_m", GGUFS, &["m-Q4_K_M.gguf"], Some("m-Q4_K_M.gguf"));
        chosen(":Q8_0", GGUFS, &["m-Q8_0.gguf"], Some("m-Q8_0.gguf"));
        chosen(":m-Q8_0.gguf", GGUFS, &["m-Q8_0.gguf"], Some("m-Q8_0.gguf"));
        let parts = ["m-f16-00001-of-00002.gguf", "m-f16-00002-of-00002.gguf"];
        chosen(":F16", GGUFS, &parts, Some(parts[0]));
        chosen(":m-f16-00002-of-00002.gguf", GGUFS, &parts, Some(parts[0]));
        chosen("", &["one.gguf", "README.md"], &["one.gguf"], Some("one.gguf"));
        chosen(":Q2_K", &["Q2_K/m-x.gguf", "Q4_0/m-x.gguf"], &["Q2_K/m-x.gguf"], Some("Q2_K/m-x.gguf"));
    }

    #[test]
    fn what_there_is_is_told() {
        let error = |selector, names| choose(selector, names).expect_err("refused");
        let none = error(":Q4_K", GGUFS);
        assert!(none.starts_with("no file matches `Q4_K`; `a/b` has: ") && none.contains("m-Q4_K_M.gguf"));
        assert!(!none.contains("README"));
        assert!(error(":Q4_XS", GGUFS).contains("no file"));
        assert!(error(":x.gguf", GGUFS).contains("there is no file `x.gguf`"));
        assert!(error("", GGUFS).contains("several files match a model"));
        assert!(error(":Q8_0", &["a-Q8_0.gguf", "b-Q8_0.gguf"]).ends_with("has: a-Q8_0.gguf, b-Q8_0.gguf"));
        assert!(error("", &["README.md"]).ends_with("has: README.md"));
        assert!(error(":f16", &["m-f16-00001-of-00002.gguf"]).contains("1 of its 2 parts"));
    }
}
