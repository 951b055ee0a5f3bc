//! Generations that share passes, memory and beginnings: each has to come out as if it were alone.
#![allow(clippy::unwrap_used)]

use edgelm_engine::{
    Batch, BatchOptions, EngineError, FinishReason, GenerateOptions, KvStore, LaneId, LoadedAdapter, Model, Sampling,
    Saving,
};
use edgelm_kernels::{Cpu, KvCache, KvDtype};
use edgelm_model::{Adapter, Checkpoint};
use std::{collections::BTreeMap, fs, ops::ControlFlow, path::Path, sync::Arc, time::Duration};

fn testdata() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata")
}

fn model(name: &str) -> Model {
    let folder = testdata().join("goldens").join(name);
    Model::load(Arc::new(Checkpoint::open(&folder).unwrap()), Arc::new(Cpu::new(Some(2), None).unwrap())).unwrap()
}

fn prompt(length: u32, seed: u32) -> Vec<u32> {
    (0..length).map(|i| (i * i * 7 + i * 3 + seed * 11) % 61 + 1).collect()
}

/// SplitMix64: what the caller of a batch does must not matter, so the tests do anything.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// Something to generate.
#[derive(Clone)]
struct Wish {
    prompt: Vec<u32>,
    options: GenerateOptions,
}

impl Wish {
    fn new(prompt: Vec<u32>, seed: u64) -> Self {
        // Every other one is drawn at random, each with its own stream.
        let temperature = if seed.is_multiple_of(2) { 0.0 } else { 1.0 };
        let sampling = Sampling { temperature, seed, ..Sampling::default() };
        let max_tokens = Some(3 + (seed as usize * 5) % 17);
        Self { prompt, options: GenerateOptions { max_tokens, sampling, ignore_eos: true, ..Default::default() } }
    }

    fn alone(&self, model: &Model, kv: Option<KvDtype>) -> Vec<u32> {
        let options = GenerateOptions { kv, ..self.options.clone() };
        model.generate(&self.prompt, &options, &mut |_| ControlFlow::Continue(())).unwrap().tokens
    }
}

/// Eight wishes; the second half begins as the first does.
fn wishes() -> Vec<Wish> {
    (0..8u32)
        .map(|i| {
            let mut tokens = prompt([70, 1, 20, 9][i as usize % 4], i % 4);
            tokens.extend(prompt(2 + i, 40 + i));
            Wish::new(tokens, u64::from(i))
        })
        .collect()
}

/// Lets lanes join, go on in pieces of any size, pause and be interrupted for ever, at random; returns their tokens.
fn together(batch: &mut Batch<'_>, wishes: &[Wish], seed: u64) -> Vec<Vec<u32>> {
    let mut random = Random(seed);
    let mut tokens = vec![Vec::new(); wishes.len()];
    let mut lanes: BTreeMap<LaneId, usize> = BTreeMap::new();
    let mut next = 0;
    while next < wishes.len() || !lanes.is_empty() {
        if next < wishes.len() && (lanes.is_empty() || random.below(3) == 0) {
            let id = batch.begin(&wishes[next].prompt, wishes[next].options.clone()).unwrap();
            lanes.insert(id, next);
            next += 1;
        }
        if random.below(10) == 0 {
            // Somebody who joins and leaves in the middle.
            let id = batch.begin(&wishes[random.below(wishes.len())].prompt, GenerateOptions::default()).unwrap();
            let rows = 1 + random.below(batch.pending(id));
            if batch.reserve(&[(id, rows)]) {
                batch.forward(&[(id, rows)]).unwrap();
                batch.take(id).unwrap();
            }
            batch.end(id);
        }
        let mut plan = Vec::new();
        for &id in lanes.keys() {
            let pending = batch.pending(id);
            assert!(pending > 0);
            plan.push((id, 1 + random.below(pending)));
        }
        while !batch.reserve(&plan) {
            let (victim, _) = plan.pop().unwrap();
            batch.pause(victim);
            assert!(!plan.is_empty(), "one alone always fits");
        }
        if random.below(12) == 0 {
            let (victim, _) = plan.remove(random.below(plan.len()));
            batch.pause(victim);
        }
        batch.forward(&plan).unwrap();
        for (id, _) in plan {
            let progress = batch.take(id).unwrap();
            let wish = lanes[&id];
            tokens[wish].extend(progress.pieces.iter().filter_map(|piece| piece.token));
            if let Some(reason) = progress.finished {
                assert_eq!(reason, FinishReason::Length);
                batch.end(id);
                lanes.remove(&id);
            }
        }
        let memory = batch.memory();
        assert!(memory.budget_bytes.is_none_or(|budget| memory.used_bytes <= budget), "{memory:?}");
    }
    tokens
}

#[test]
fn neighbours_do_not_change_what_is_generated() {
    // Unquantized; two kinds of integers; experts, which rows choose for themselves.
    for name in ["qwen3", "quantized/awq-4bit", "quantized/bnb-int8", "mixtral", "cohere2"] {
        let model = model(name);
        for kv in [KvDtype::Q4, KvDtype::Q8, KvDtype::F16, KvDtype::F32] {
            let wishes = wishes();
            let alone: Vec<_> = wishes.iter().map(|wish| wish.alone(&model, Some(kv))).collect();
            for seed in 0..4 {
                let mut batch = Batch::new(&model, BatchOptions { kv: Some(kv), ..Default::default() }).unwrap();
                assert_eq!(together(&mut batch, &wishes, seed), alone, "{name}, {kv:?}, seed {seed}");
                // What is kept now changes nothing either.
                assert_eq!(together(&mut batch, &wishes, seed + 100), alone, "{name}, {kv:?}, seed {seed}, again");
            }
        }
    }
}

#[test]
fn states_are_never_taken_at_the_wrong_place() {
    for name in ["lfm2", "mamba2", "falcon_h1", "qwen3_next"] {
        let model = model(name);
        let wishes = wishes();
        let alone: Vec<_> = wishes.iter().map(|wish| wish.alone(&model, None)).collect();
        for seed in 0..3 {
            let mut batch = Batch::new(&model, BatchOptions::default()).unwrap();
            assert_eq!(together(&mut batch, &wishes, seed), alone, "{name}, seed {seed}");
            assert_eq!(together(&mut batch, &wishes, seed + 100), alone, "{name}, seed {seed}, again");
        }
    }
}

/// Bytes that hold so many tokens of one lane.
fn budget(model: &Model, kv: KvDtype, tokens: usize) -> usize {
    let engine = model.engine();
    let states = edgelm_engine::state_bytes(engine.config());
    (tokens.div_ceil(KvCache::PAGE_TOKENS) + 1) * KvCache::page_bytes(&engine.kv_shapes(), kv) + states
}

#[test]
fn little_memory_only_takes_time() {
    for name in ["qwen3", "lfm2", "mamba2", "falcon_h1", "qwen3_next"] {
        let model = model(name);
        let kv = model.engine().default_kv();
        let wishes = wishes();
        let alone: Vec<_> = wishes.iter().map(|wish| wish.alone(&model, None)).collect();
        for (seed, tokens) in [(0, 128), (1, 128), (2, 192), (3, 256)] {
            let kv_budget = Some(budget(&model, kv, tokens));
            let mut batch = Batch::new(&model, BatchOptions { kv_budget, ..Default::default() }).unwrap();
            assert_eq!(together(&mut batch, &wishes, seed), alone, "{name}, room for {tokens} tokens");
        }
    }
}

fn store(model: &Model, path: &Path) -> Arc<KvStore> {
    Arc::new(KvStore::open(path, 1 << 24, model, None, "a digest").unwrap())
}

#[test]
fn what_memory_has_no_room_for_comes_back_from_the_store() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["qwen3", "lfm2", "mamba2", "falcon_h1", "qwen3_next"] {
        let model = model(name);
        let kv = model.engine().default_kv();
        let wishes = wishes();
        let alone: Vec<_> = wishes.iter().map(|wish| wish.alone(&model, None)).collect();
        let store = store(&model, &folder.path().join(name));
        for (seed, tokens) in [(0, 128), (1, 128), (2, 192), (3, 256)] {
            let kv_budget = Some(budget(&model, kv, tokens));
            let options = BatchOptions { kv_budget, store: Some(Arc::clone(&store)), ..Default::default() };
            let mut batch = Batch::new(&model, options).unwrap();
            assert_eq!(together(&mut batch, &wishes, seed), alone, "{name}, room for {tokens} tokens");
            if seed % 2 == 1 {
                while batch.save_next(Duration::ZERO) == Saving::Written {}
            }
        }
        let state = store.state();
        assert!(state.read > 0 && state.written > 0 && state.bad_reads + state.failed_writes == 0, "{name}: {state:?}");
    }
}

/// A disk that wears is not written to for prompts that come once.
#[test]
fn what_nobody_came_back_to_goes_without_being_written() {
    let folder = tempfile::tempdir().unwrap();
    let model = model("qwen3");
    let store = store(&model, &folder.path().join("kv"));
    let kv_budget = Some(budget(&model, model.engine().default_kv(), 448));
    let options = BatchOptions { kv_budget, store: Some(Arc::clone(&store)), ..Default::default() };
    let mut batch = Batch::new(&model, options).unwrap();
    let prompts: Vec<_> = (1..12).map(|seed| prompt(150, seed)).collect();
    for tokens in &prompts {
        assert_eq!(cached(&mut batch, tokens, None), 0);
    }
    assert_eq!(store.state().written, 0, "each came once");
    // Again, after it had to go: it was wanted twice, so it is written when it has to go now.
    assert_eq!(cached(&mut batch, &prompts[0], None), 0);
    // And one that is still there is used by another.
    assert_eq!(cached(&mut batch, &prompts[10], None), 149);
    for tokens in &prompts[1..9] {
        assert_eq!(cached(&mut batch, tokens, None), 0);
    }
    assert!(store.state().written >= 5, "{:?}", store.state());
    assert_eq!(store.state().read, 0);
    for index in [0, 10] {
        assert_eq!(cached(&mut batch, &prompts[index], None), 149, "{index}");
    }
    assert!(store.state().read > 0);

    // What is left alone for a while is written however often it came, its beginning first.
    let other = self::store(&model, &folder.path().join("other"));
    let options = BatchOptions { store: Some(Arc::clone(&other)), ..Default::default() };
    let mut batch = Batch::new(&model, options).unwrap();
    cached(&mut batch, &prompts[0], None);
    let delay = Duration::from_secs(3600);
    let Saving::After(left) = batch.save_next(delay) else { panic!("too soon") };
    assert!(left <= delay && left > delay / 2);
    while batch.save_next(Duration::ZERO) == Saving::Written {}
    let state = other.state();
    assert_eq!((state.written, state.written_bytes > state.bytes / 2), (3, true), "{state:?}");
    assert_eq!(batch.save_next(Duration::ZERO), Saving::Nothing);
}

#[test]
fn beginnings_outlive_the_process_that_computed_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kv");
    for name in ["qwen3", "lfm2", "falcon_h1"] {
        let model = model(name);
        let tokens = prompt(200, 1);
        let options = |store| BatchOptions { store: Some(store), ..Default::default() };
        let (again, changed) = {
            let mut batch = Batch::new(&model, options(store(&model, &path))).unwrap();
            assert_eq!(cached(&mut batch, &tokens, None), 0, "{name}");
            let again = cached(&mut batch, &tokens, None);
            while batch.save_next(Duration::ZERO) == Saving::Written {}
            (again, fs::metadata(&path).unwrap().len() / 2)
        };
        assert!(again > 0, "{name}");
        {
            let store = store(&model, &path);
            let mut batch = Batch::new(&model, options(Arc::clone(&store))).unwrap();
            assert_eq!(cached(&mut batch, &tokens, None), again, "{name}: after a restart");
            assert_eq!(store.state().bad_reads, 0);
        }
        // A bit flips on the disk: what is behind it is computed.
        let mut bytes = fs::read(&path).unwrap();
        bytes[changed as usize] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let mut batch = Batch::new(&model, options(store(&model, &path))).unwrap();
        assert!(cached(&mut batch, &tokens, None) <= again, "{name}: changed");
        let other = KvStore::open(&folder.path().join("other"), 1000, &model, None, "a digest");
        assert!(matches!(other, Err(EngineError::KvStore { .. })), "{name}: no room for a page");
    }
}

#[test]
fn what_never_fits_is_refused() {
    let model = model("qwen3");
    let kv_budget = Some(budget(&model, model.engine().default_kv(), 64));
    let mut batch = Batch::new(&model, BatchOptions { kv_budget, ..Default::default() }).unwrap();
    assert_eq!(batch.capacity(), Some(64));
    let wish = |prompt_tokens: u32, max| {
        (prompt(prompt_tokens, 0), GenerateOptions { max_tokens: Some(max), ..Default::default() })
    };
    let (tokens, options) = wish(60, 5);
    let error = batch.begin(&tokens, options).unwrap_err();
    assert!(matches!(error, EngineError::KvBudget { tokens: 65, capacity: 64, .. }), "{error}");
    let (tokens, options) = wish(60, 4);
    batch.begin(&tokens, options).unwrap();
    let too_little = BatchOptions { kv_budget: Some(1000), ..Default::default() };
    assert!(matches!(Batch::new(&model, too_little), Err(EngineError::KvBudget { capacity: 0, .. })));
    for options in [
        GenerateOptions { context: Some(8), ..Default::default() },
        GenerateOptions { kv: Some(KvDtype::Q8), ..Default::default() },
        GenerateOptions { beams: 2, ..Default::default() },
    ] {
        assert!(matches!(batch.begin(&[1], options), Err(EngineError::Option { .. })));
    }
}

/// Runs to the end in whole chunks; returns how many tokens of the prompt were there already.
fn cached(batch: &mut Batch<'_>, tokens: &[u32], adapter: Option<Arc<LoadedAdapter>>) -> usize {
    let options = GenerateOptions { max_tokens: Some(2), ignore_eos: true, adapter, ..Default::default() };
    let id = batch.begin(tokens, options).unwrap();
    loop {
        let rows = batch.pending(id);
        assert!(batch.reserve(&[(id, rows)]));
        batch.forward(&[(id, rows)]).unwrap();
        if batch.take(id).unwrap().finished.is_some() {
            let cached = batch.cached_tokens(id);
            batch.end(id);
            return cached;
        }
    }
}

#[test]
fn beginnings_are_found_again() {
    let model = model("qwen3");
    let mut batch = Batch::new(&model, BatchOptions::default()).unwrap();
    let shared = prompt(100, 1);
    let with = |tail: &[u32]| [&shared[..], tail].concat();
    assert_eq!(cached(&mut batch, &with(&[1, 2, 3]), None), 0);
    // To the token where they differ; and all but the last, whose logits are needed.
    assert_eq!(cached(&mut batch, &with(&[1, 5, 6, 7]), None), 101);
    assert_eq!(cached(&mut batch, &with(&[1, 2, 3]), None), 102);
    assert_eq!(cached(&mut batch, &prompt(100, 2), None), 0);
    assert_eq!(cached(&mut batch, &shared[..70], None), 69);
}

#[test]
fn beginnings_with_states_are_found_at_pages() {
    for name in ["lfm2", "mamba2", "falcon_h1", "qwen3_next"] {
        let model = model(name);
        let mut batch = Batch::new(&model, BatchOptions::default()).unwrap();
        let tokens = prompt(100, 1);
        let page = KvCache::PAGE_TOKENS;
        assert_eq!(cached(&mut batch, &tokens, None), 0, "{name}");
        assert_eq!(cached(&mut batch, &tokens, None), page, "{name}: the same again");
        // Another end: what they share is noticed the second time, and there the third time.
        let other = |tail: u32| [&prompt(150, 3)[..], &prompt(60, tail)].concat();
        let counts: Vec<_> = (4..7).map(|tail| cached(&mut batch, &other(tail), None)).collect();
        assert_eq!(counts, [0, 0, 2 * page], "{name}");
    }
}

#[test]
fn adapters_share_passes_but_no_beginnings() {
    let folder = testdata().join("adapters");
    let mut folders: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|path| path.join("expected.json").exists());
    folders.sort();
    let mut tested = 0;
    for folder in folders {
        let expected: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
        let model = model(expected["base"].as_str().unwrap());
        let adapter = Adapter::open(&folder, model.engine().checkpoint()).unwrap();
        let adapter = Arc::new(LoadedAdapter::load(model.engine(), &[adapter]).unwrap());
        let mut wishes = wishes();
        for wish in wishes.iter_mut().skip(1).step_by(3) {
            wish.options.adapter = Some(Arc::clone(&adapter));
        }
        let alone: Vec<_> = wishes.iter().map(|wish| wish.alone(&model, None)).collect();
        let mut batch = Batch::new(&model, BatchOptions::default()).unwrap();
        assert_eq!(together(&mut batch, &wishes, 1), alone, "{}", folder.display());

        let mut batch = Batch::new(&model, BatchOptions::default()).unwrap();
        let tokens = prompt(80, 9);
        assert_eq!(cached(&mut batch, &tokens, None), 0);
        assert_eq!(cached(&mut batch, &tokens, Some(Arc::clone(&adapter))), 0);
        assert!(cached(&mut batch, &tokens, Some(adapter)) > 0);
        tested += 1;
    }
    assert!(tested > 0, "no adapters");
}
