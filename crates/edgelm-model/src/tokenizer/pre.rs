//! Pre-tokenizers of byte-level BPE vocabularies, by the names that GGUF files give them (`tokenizer.ggml.pre`).
//!
//! A GGUF file holds only the name; the patterns live in the programs that read it. One table serves both directions:
//! reading builds the pre-tokenizer of the entry with that name, writing looks for the entry with those patterns.
//! Patterns are those of the models' own `tokenizer.json` files; names as in llama.cpp (`src/llama-vocab.cpp`).

use serde_json::Value;

/// A pre-tokenizer and what llama.cpp couples to its name.
pub(super) struct Pre {
    /// Accepted names; the first is the one written.
    pub names: &'static [&'static str],
    /// Patterns applied one after the other, each isolating its matches in what the previous one left.
    pub splits: &'static [&'static str],
    /// A word that is a token as a whole is taken without looking at merges.
    pub ignore_merges: bool,
    /// Whether bos is wanted when the file does not say.
    pub add_bos: bool,
    /// Whether the models of this name normalize to NFC (llama.cpp does not).
    pub nfc: bool,
    /// Plain UTF-8 with `▁` for spaces and byte tokens, instead of bytes spelled as characters.
    pub raw: bool,
}

const BASE: Pre = Pre { names: &[], splits: &[], ignore_merges: false, add_bos: false, nfc: false, raw: false };

/// Pattern of GPT-2, built into the `ByteLevel` pre-tokenizer.
pub(super) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const DIGIT: &str = r"\p{N}";
const DIGITS: &str = r"\p{N}+";
const UP_TO_3_DIGITS: &str = r"\p{N}{1,3}";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const MINICPM5: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const JAIS2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const YOUTU: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const SEED_CODER: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const UFAKZEKA: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const CJK: &str = r"[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+";
const DEEPSEEK_V3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const SPARK: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"##;
/// A space at most, then cased letters of Latin, Greek, Cyrillic and smaller scripts.
const DEEPSEEK_LETTERS: &str = concat!(
    r"\s?[A-Za-z\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}",
    r"\u{295}-\u{2af}\u{370}-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}\u{388}-\u{38a}\u{38c}",
    r"\u{38e}-\u{3a1}\u{3a3}-\u{3f5}\u{3f7}-\u{481}\u{48a}-\u{52f}\u{531}-\u{556}\u{10a0}-\u{10c5}",
    r"\u{13a0}-\u{13f5}\u{13f8}-\u{13fd}\u{1c90}-\u{1cba}\u{1cbd}-\u{1cbf}\u{1d00}-\u{1d2b}",
    r"\u{1d6b}-\u{1d77}\u{1d79}-\u{1d9a}\u{1e00}-\u{1f15}\u{1f18}-\u{1f1d}\u{1f20}-\u{1f45}",
    r"\u{1f48}-\u{1f4d}\u{1f50}-\u{1f57}\u{1f59}\u{1f5b}\u{1f5d}\u{1f5f}-\u{1f7d}\u{1f80}-\u{1fb4}",
    r"\u{1fb6}-\u{1fbc}\u{1fbe}\u{1fc2}-\u{1fc4}\u{1fc6}-\u{1fcc}\u{1fd0}-\u{1fd3}\u{1fd6}-\u{1fdb}",
    r"\u{1fe0}-\u{1fec}\u{1ff2}-\u{1ff4}\u{1ff6}-\u{1ffc}\u{2102}\u{2107}\u{210a}-\u{2113}\u{2115}",
    r"\u{2119}-\u{211d}\u{2124}\u{2126}\u{2128}\u{212a}-\u{212d}\u{212f}-\u{2134}\u{2139}\u{213c}-\u{213f}",
    r"\u{2145}-\u{2149}\u{214e}\u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}\u{2ceb}-\u{2cee}\u{2cf2}",
    r"\u{2cf3}\u{a640}-\u{a66d}\u{a680}-\u{a69b}\u{a722}-\u{a76f}\u{a771}-\u{a787}\u{a78b}-\u{a78e}",
    r"\u{ab70}-\u{abbf}\u{fb00}-\u{fb06}\u{fb13}-\u{fb17}\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}",
    r"\u{10400}-\u{1044f}\u{104b0}-\u{104d3}\u{104d8}-\u{104fb}\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}",
    r"\u{118a0}-\u{118df}\u{1e900}-\u{1e943}]+",
);
const DEEPSEEK_PUNCTUATION: &str = r"\s?[!-/:-~\u{ff01}-\u{ff0f}\u{ff1a}-\u{ff5e}\u{2018}-\u{201f}\u{3000}-\u{3002}]+";
const DEEPSEEK_CJK: &str = r"[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+";
const FALCON_PUNCTUATION: &str = r"[\p{P}\$\+<=>\^~\|`]+";
const DEFAULT_PUNCTUATION: &str = r"[\p{P}\$\+<=>\^~\|]+";
const THREE_DIGITS: &str = "[0-9][0-9][0-9]";
const BLOOM: &str = r" ?[^(\s|.,!?\u{2026}\u{3002}\u{ff0c}\u{3001}\u{964}\u{6d4}\u{60c})]+";
const LINES: &str = r"[^\n]+|[\n]+";

/// Every name this program reads, most usual first within equal patterns.
pub(super) const PRE_TOKENIZERS: &[Pre] = &[
    Pre { names: &["smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"], splits: &[DIGIT, GPT2], ..BASE },
    Pre { names: &["command-r"], splits: &[DIGIT, GPT2], nfc: true, ..BASE },
    Pre {
        names: &[
            "gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum",
            "modern-bert", "jina-v1-en", "jina-v2-code", "roberta-bpe", "exaone4", "jais", "trillion",
            "granite-docling",
        ],
        splits: &[GPT2],
        ..BASE
    },
    Pre { names: &["olmo", "mpt"], splits: &[GPT2], nfc: true, ..BASE },
    Pre {
        names: &[
            "llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano",
        ],
        splits: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
        ..BASE
    },
    Pre { names: &["glm4", "glm5"], splits: &[LLAMA3], ignore_merges: true, ..BASE },
    Pre { names: &["smaug-bpe", "dbrx", "chatglm-bpe"], splits: &[LLAMA3], ..BASE },
    Pre { names: &["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez"], splits: &[QWEN2], nfc: true, ..BASE },
    Pre { names: &["stablelm2", "hunyuan", "solar-open", "grok-2"], splits: &[QWEN2], ..BASE },
    Pre { names: &["qwen35"], splits: &[QWEN35], nfc: true, ..BASE },
    Pre { names: &["tekken"], splits: &[TEKKEN], ignore_merges: true, add_bos: true, ..BASE },
    Pre { names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], splits: &[GPT4O], ..BASE },
    Pre { names: &["granite-embed-multi-97m"], splits: &[GPT4O], ignore_merges: true, ..BASE },
    Pre { names: &["tiny_aya", "cohere2moe"], splits: &[r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O], ..BASE },
    Pre { names: &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"], splits: &[UP_TO_3_DIGITS, CJK, DEEPSEEK_V3], ..BASE },
    Pre { names: &["spark2_5"], splits: &[UP_TO_3_DIGITS, CJK, SPARK, DIGIT], ..BASE },
    Pre {
        names: &["deepseek-llm"],
        splits: &["[\r\n]", DEEPSEEK_LETTERS, DEEPSEEK_PUNCTUATION, r"\s+$", DEEPSEEK_CJK, DIGIT],
        ..BASE
    },
    Pre { names: &["deepseek-coder"], splits: &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, DIGIT], ..BASE },
    Pre { names: &["falcon"], splits: &[FALCON_PUNCTUATION, GPT2, THREE_DIGITS], ..BASE },
    Pre { names: &["default"], splits: &[DEFAULT_PUNCTUATION, GPT2, DIGITS, THREE_DIGITS], ..BASE },
    Pre { names: &["bloom", "poro-chat", "gpt3-finnish"], splits: &[BLOOM], ..BASE },
    Pre { names: &["viking"], splits: &[BLOOM, DIGIT], ..BASE },
    Pre { names: &["bailingmoe", "bailingmoe2", "llada-moe"], splits: &[BAILING], ..BASE },
    Pre { names: &["seed-coder"], splits: &[SEED_CODER], ..BASE },
    Pre { names: &["ufakzeka"], splits: &[UFAKZEKA], ..BASE },
    Pre { names: &["laguna"], splits: &[LINES, QWEN2], ..BASE },
    Pre { names: &["minicpm5"], splits: &[UP_TO_3_DIGITS, MINICPM5], ignore_merges: true, ..BASE },
    Pre { names: &["jais-2"], splits: &[JAIS2], ..BASE },
    Pre { names: &["exaone-moe"], splits: &[EXAONE_MOE], ..BASE },
    Pre {
        names: &["youtu"],
        splits: &[r"[\u{ac00}-\u{d7a3}\u{3131}-\u{318e}]+|[\u{ff01}\u{2026}\u{201c}\u{201d}\u{2018}\u{2019}\u{2014}\u{ff1a}\u{ff1b}\u{ff0c}\u{3001}-\u{303f}\u{fe30}-\u{fe4f}]+|[\u{3105}-\u{312f}]+|[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+", YOUTU],
        ignore_merges: true,
        ..BASE
    },
    Pre {
        names: &["chameleon"],
        splits: &[
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            DIGIT,
            r"[\p{P}!-/:-@\[-`{-~]",
            GPT2,
        ],
        add_bos: true,
        ..BASE
    },
    Pre { names: &["sarvam-moe"], splits: &[LINES], raw: true, ..BASE },
    Pre { names: &["gemma4", "granite-embed-multi-311m"], splits: &[LINES], raw: true, add_bos: true, ..BASE },
];

/// The entry with this name.
pub(super) fn by_name(name: &str) -> Option<&'static Pre> {
    PRE_TOKENIZERS.iter().find(|pre| pre.names.contains(&name))
}

/// The entry that splits as the `pre_tokenizer` of a `tokenizer.json` does; one with the same normalization if there
/// is one. `None` if no entry has these patterns.
pub(super) fn by_structure(pre_tokenizer: &Value, ignore_merges: bool, nfc: bool) -> Option<&'static Pre> {
    let splits = split_patterns(pre_tokenizer)?;
    let equal_splits = |pre: &Pre| pre.splits.iter().map(|pattern| spelling(pattern)).eq(splits.iter().cloned());
    let same = |pre: &&Pre| !pre.raw && pre.ignore_merges == ignore_merges && equal_splits(pre);
    PRE_TOKENIZERS.iter().filter(same).min_by_key(|pre| pre.nfc != nfc)
}

/// The patterns of a byte-level pre-tokenizer in order, in the spelling of the table. `None` if it is not one, or
/// has a part that no pattern expresses.
fn split_patterns(pre_tokenizer: &Value) -> Option<Vec<String>> {
    let steps: Vec<&Value> = match pre_tokenizer["type"].as_str()? {
        "Sequence" => pre_tokenizer["pretokenizers"].as_array()?.iter().collect(),
        _ => vec![pre_tokenizer],
    };
    let mut splits = Vec::new();
    let mut encodes_bytes = false;
    for step in steps {
        match step["type"].as_str()? {
            "ByteLevel" if !encodes_bytes && step["add_prefix_space"] == false => {
                encodes_bytes = true;
                // A field that older files lack, and that is true then.
                if step["use_regex"] != false {
                    splits.push(spelling(GPT2));
                }
            }
            "Digits" if step["individual_digits"] == true => splits.push(spelling(DIGIT)),
            "Digits" => splits.push(spelling(DIGITS)),
            "Punctuation" if step["behavior"] == "Contiguous" => splits.push(spelling(FALCON_PUNCTUATION)),
            "Split" => {
                let matches_isolated = step["invert"] == false && step["behavior"] == "Isolated";
                // What tokenizers of one all-covering pattern say instead.
                let gaps_removed = step["invert"] == true && step["behavior"] == "Removed";
                if !(matches_isolated || gaps_removed) {
                    return None;
                }
                splits.push(spelling(step["pattern"]["Regex"].as_str()?));
            }
            _ => return None,
        }
    }
    encodes_bytes.then_some(splits)
}

/// A pattern in one of its equivalent spellings: characters for escapes, one form of the English contractions.
fn spelling(pattern: &str) -> String {
    let mut plain = String::with_capacity(pattern.len());
    let mut rest = pattern;
    while let Some(at) = rest.find('\\') {
        plain.push_str(&rest[..at]);
        rest = &rest[at..];
        let (character, length) = escaped_character(rest);
        match character {
            Some(character) => plain.push(character),
            None => plain.push_str(&rest[..length]),
        }
        rest = &rest[length..];
    }
    plain.push_str(rest);
    plain.replace("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", "(?i:'s|'t|'re|'ve|'m|'ll|'d)")
}

/// The character that the escape at the start of `text` stands for, if it stands for one, and its length in bytes.
fn escaped_character(text: &str) -> (Option<char>, usize) {
    let after = &text[1..];
    match after.chars().next() {
        Some('r') => (Some('\r'), 2),
        Some('n') => (Some('\n'), 2),
        Some('t') => (Some('\t'), 2),
        Some('u') => {
            let digits = after[1..].strip_prefix('{').and_then(|hex| hex.split_once('}')).map(|(hex, _)| hex);
            match digits.and_then(|hex| char::from_u32(u32::from_str_radix(hex, 16).ok()?).zip(Some(hex.len()))) {
                Some((character, digits)) => (Some(character), digits + 4),
                None => (None, 2),
            }
        }
        other => (None, 1 + other.map_or(0, char::len_utf8)),
    }
}
