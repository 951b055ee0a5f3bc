//! Windows out of files, and out of the model that is compiled into the program.
#![allow(clippy::unwrap_used)]

use super::*;
use serde_json::{Value, json};
use std::collections::HashSet;

fn assets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../edgelm/assets")
}

fn demo() -> Arc<Checkpoint> {
    Arc::new(Checkpoint::open(&assets().join("mica-5m")).unwrap())
}

/// Of one source, or several with commas between.
fn load(
    checkpoint: &Arc<Checkpoint>,
    source: &str,
    threads: usize,
    options: CalibrationOptions,
) -> Result<CalibrationSet, CompressError> {
    let cpu = Arc::new(Cpu::new(Some(threads), None).unwrap());
    let sources: Vec<CalibrationSource> = source.split(',').map(|source| source.parse().unwrap()).collect();
    let pool = crate::thread_pool(threads).unwrap();
    pool.install(|| CalibrationSet::load(&sources, checkpoint, &cpu, &options, &mut |_, _| Ok(())))
}

fn options(samples: usize) -> CalibrationOptions {
    CalibrationOptions { samples, window: 32, ..CalibrationOptions::default() }
}

/// A JSON Lines file of `count` passages and `count` chats, all different.
fn lines(folder: &Path, count: usize) -> String {
    let words = |i: usize| format!("The sea was calm on day {i}. ").repeat(6);
    let passage = |i: usize| json!({ "text": words(i) });
    let chat = |i: usize| {
        let messages = json!([{ "role": "user", "content": format!("Tell me all of day {i}.") }]);
        json!({ "messages": messages, "answer": words(i) })
    };
    let text: String = (0..count).flat_map(|i| [passage(i), chat(i)]).map(|line: Value| format!("{line}\n")).collect();
    let path = folder.join("lines.jsonl");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn held_out_windows_are_not_in_the_statistics() {
    let folder = tempfile::tempdir().unwrap();
    let path = lines(folder.path(), 30);
    let model = demo();
    for select in [Select::Random, Select::Diverse] {
        for (samples, held_out, expected) in [(20, 10, (20, 10)), (8, 0, (8, 0)), (1000, 10, (usize::MAX, 10))] {
            let options = CalibrationOptions { select, held_out, ..options(samples) };
            let set = load(&model, &path, 1, options).unwrap();
            assert_eq!(set.held_out.len(), expected.1, "{select:?} {samples}");
            let distinct: HashSet<&Vec<u32>> = set.windows.iter().chain(&set.held_out).collect();
            assert_eq!(distinct.len(), set.windows.len() + set.held_out.len(), "{select:?} {samples}");
            assert_eq!(set.windows.len() == samples, expected.0 == samples);
            assert_eq!(set.notes.len(), usize::from(set.windows.len() < samples), "{:?}", set.notes);
            assert_eq!(load(&model, &path, 2, options).unwrap(), set);
            let other = load(&model, &path, 1, CalibrationOptions { seed: 1, ..options }).unwrap();
            assert_eq!(other.windows.len(), set.windows.len());
            assert_ne!(other, set);
        }
    }
    let few = load(&model, &path, 1, CalibrationOptions { held_out: 1000, ..options(1000) }).unwrap();
    let all = few.windows.len() + few.held_out.len();
    assert_eq!(few.held_out.len(), all / 5);
    assert!(few.notes[0].contains("lines.jsonl") && few.notes[0].contains("1000"), "{:?}", few.notes);
}

#[test]
fn several_sources_share_the_windows_in_turns() {
    let folder = tempfile::tempdir().unwrap();
    let model = demo();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("sea.txt"), "The sea was calm. ".repeat(2000)).unwrap();
    std::fs::write(path("few.txt"), "One two three four five six seven eight nine ten. ".repeat(3)).unwrap();
    let mixed = lines(folder.path(), 30);
    let both = format!("{},{mixed}", path("sea.txt"));
    let set = load(&model, &both, 1, CalibrationOptions { held_out: 5, ..options(9) }).unwrap();
    let alone = |source: &str, samples, held_out| {
        load(&model, source, 1, CalibrationOptions { held_out, ..options(samples) }).unwrap()
    };
    let (sea, lines) = (alone(&path("sea.txt"), 5, 3), alone(&mixed, 4, 2));
    let expected = |sea: &[Vec<u32>], lines: &[Vec<u32>]| -> Vec<Vec<u32>> {
        (0..sea.len()).flat_map(|i| sea.get(i).into_iter().chain(lines.get(i)).cloned().collect::<Vec<_>>()).collect()
    };
    assert_eq!(set.windows, expected(&sea.windows, &lines.windows));
    assert_eq!(set.held_out, expected(&sea.held_out, &lines.held_out));
    assert!(set.notes.is_empty(), "{:?}", set.notes);
    // One that has too few says so; the others give no more for it.
    let set = load(&model, &format!("{},{}", path("few.txt"), path("sea.txt")), 1, options(20)).unwrap();
    assert!(set.windows.len() < 20 && set.windows.len() > 10, "{}", set.windows.len());
    assert!(set.notes.len() == 1 && set.notes[0].contains("few.txt"), "{:?}", set.notes);
    let with_own = load(&model, &format!("self,{}", path("sea.txt")), 1, options(4)).unwrap();
    assert_eq!(with_own.windows.len(), 4);
    let error = load(&model, &both, 1, options(1)).unwrap_err().to_string();
    assert!(error.contains("--samples") && error.contains("2 sources"), "{error}");
}

#[test]
fn diverse_windows_are_of_every_kind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lines.jsonl");
    // One in forty is about something else.
    let passage = |i: usize| match i {
        17 => "int main(void) { return puts(\"x\") + puts(\"y\"); } // #include <stdio.h>; ".repeat(3),
        _ => format!("{i}. {}", "The sea was calm that day and the boat lay in the harbour. ".repeat(3)),
    };
    let text: String = (0..40).map(|i| format!("{}\n", json!({ "text": passage(i) }))).collect();
    std::fs::write(&path, text).unwrap();
    let model = demo();
    let tokenizer = model.tokenizer().unwrap();
    let has_code = |seed| {
        let options = CalibrationOptions { select: Select::Diverse, seed, ..options(4) };
        let set = load(&model, path.to_str().unwrap(), 1, options).unwrap();
        set.windows.iter().any(|window| tokenizer.decode(window, true).unwrap().contains("puts"))
    };
    assert!((0..8).all(has_code));
}

#[test]
fn files_without_data_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let model = demo();
    let held_out = CalibrationOptions { held_out: 4, ..options(4) };
    for (name, text, options, what) in [
        ("empty.txt", "", options(4), "no passage of at least 16 tokens"),
        ("empty.jsonl", "\n\n", options(4), "no passage of at least 16 tokens"),
        ("short.txt", "Three words only.", options(4), "no passage of at least 16 tokens"),
        ("bad.jsonl", "{\"text\": \"x\"}\n{", options(4), "line 2"),
        ("one.txt", &"The sea was calm that day. ".repeat(3), held_out, "one window"),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let error = load(&model, path.to_str().unwrap(), 1, options).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(what), "{error}");
    }
    let error = load(&model, folder.path().join("absent").to_str().unwrap(), 1, options(4)).unwrap_err();
    assert!(error.to_string().contains("absent"), "{error}");
    // Shorter than a window is enough.
    let path = folder.path().join("some.txt");
    std::fs::write(&path, "The sea was calm that day. ".repeat(4)).unwrap();
    let wide = CalibrationOptions { window: 512, ..options(4) };
    let set = load(&model, path.to_str().unwrap(), 1, wide).unwrap();
    assert!(set.windows.len() == 1 && set.windows[0].len() > 16 && set.notes.len() == 1, "{set:?}");
}

#[test]
fn a_model_writes_full_windows_of_text_and_chats() {
    let model = demo();
    let options = CalibrationOptions { held_out: 2, window: 48, ..options(34) };
    let set = load(&model, "self", 2, options).unwrap();
    assert_eq!((set.windows.len(), set.held_out.len(), set.notes.len()), (34, 2, 0));
    assert!(set.windows.iter().all(|window| window.len() == 48));
    let distinct: HashSet<&Vec<u32>> = set.windows.iter().chain(&set.held_out).collect();
    assert_eq!(distinct.len(), 36);
    let tokenizer = model.tokenizer().unwrap();
    let bos = tokenizer.bos().unwrap();
    for (index, window) in set.windows.iter().enumerate() {
        let text = tokenizer.decode(window, false).unwrap();
        let is_chat = text.starts_with("<|endoftext|><|im_start|>user\n");
        assert!(window[0] == bos && is_chat == (index % 4 == 1), "{index}: {text}");
    }
    assert_eq!(load(&model, "self", 1, options).unwrap(), set, "threads changed the text");
    // Windows do not depend on how many there are.
    let fewer = load(&model, "self", 1, CalibrationOptions { samples: 3, held_out: 0, ..options }).unwrap();
    assert_eq!(fewer.windows, set.windows[..3]);
    let other = load(&model, "self", 1, CalibrationOptions { seed: 1, samples: 3, ..options }).unwrap();
    assert!(!other.windows.iter().any(|window| set.windows.contains(window)));
    let diverse = load(&model, "self", 1, CalibrationOptions { select: Select::Diverse, ..options });
    assert!(diverse.unwrap_err().to_string().contains("--select"));
}

#[test]
fn a_model_that_ends_its_texts_at_once_cannot_write() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        let mut bytes = std::fs::read(assets().join("mica-5m").join(name)).unwrap();
        if name == "config.json" {
            let mut config: Value = serde_json::from_slice(&bytes).unwrap();
            // Whatever it says is the end.
            config["eos_token_id"] = (0..config["vocab_size"].as_u64().unwrap()).collect();
            bytes = serde_json::to_vec(&config).unwrap();
        }
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    let model = Arc::new(Checkpoint::open(folder.path()).unwrap());
    let error = load(&model, "self", 1, options(2)).unwrap_err().to_string();
    assert!(error.contains("ends every text at once"), "{error}");
}
