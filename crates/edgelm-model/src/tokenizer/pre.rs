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
const CJK: &str = "[一-龥\u{3040}-ゟ゠-ヿ]+";
const DEEPSEEK_V3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const SPARK: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"##;
const DEEPSEEK_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const DEEPSEEK_CJK: &str = "[一-龥ࠀ-一가-\u{d7ff}]+";
const FALCON_PUNCTUATION: &str = r"[\p{P}\$\+<=>\^~\|`]+";
const DEFAULT_PUNCTUATION: &str = r"[\p{P}\$\+<=>\^~\|]+";
const THREE_DIGITS: &str = "[0-9][0-9][0-9]";
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
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
        splits: &["[\r\n]", DEEPSEEK_LETTERS, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", DEEPSEEK_CJK, DIGIT],
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
        splits: &["[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥\u{3040}-ゟ゠-ヿ]+", YOUTU],
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
    let same = |pre: &&Pre| !pre.raw && pre.ignore_merges == ignore_merges && pre.splits == splits;
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
                    splits.push(GPT2.to_owned());
                }
            }
            "Digits" if step["individual_digits"] == true => splits.push(DIGIT.to_owned()),
            "Digits" => splits.push(DIGITS.to_owned()),
            "Punctuation" if step["behavior"] == "Contiguous" => splits.push(FALCON_PUNCTUATION.to_owned()),
            "Split" if step["invert"] == true && step["behavior"] == "Removed" => splits.push(spelling(step)?),
            "Split" if step["invert"] == false && step["behavior"] == "Isolated" => splits.push(spelling(step)?),
            _ => return None,
        }
    }
    encodes_bytes.then_some(splits)
}

/// The pattern of a `Split` step, with equivalent spellings of the English contractions made one.
fn spelling(step: &Value) -> Option<String> {
    let pattern = step["pattern"]["Regex"].as_str()?;
    let contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
    Some(pattern.replace("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", contractions))
}
