//! Sequences that go through bytes and back.
#![allow(clippy::unwrap_used)]

use edgelm_engine::{EngineError, GenerateOptions, Model, SessionFault};
use edgelm_kernels::{Cpu, KvDtype};
use edgelm_model::Checkpoint;
use std::{ops::ControlFlow, path::Path, sync::Arc};

fn model(name: &str) -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/goldens").join(name);
    Model::load(Arc::new(Checkpoint::open(&folder).unwrap()), Arc::new(Cpu::new(Some(2), None).unwrap())).unwrap()
}

fn options(kv: KvDtype) -> GenerateOptions {
    GenerateOptions { max_tokens: Some(12), ignore_eos: true, kv: Some(kv), ..GenerateOptions::default() }
}

#[test]
fn a_conversation_goes_on_as_if_nothing_had_been() {
    // Attention, windows, latent attention, and three kinds of states.
    for name in ["qwen3", "mistral-swa", "deepseek_v2", "mamba2", "qwen3_next", "lfm2", "falcon_h1"] {
        let model = model(name);
        for kv in [KvDtype::F32, KvDtype::F16, KvDtype::Q8, KvDtype::Q4] {
            let options = options(kv);
            let prompt: Vec<u32> = (0..70).map(|i| (i * i * 5 + i) % 59 + 1).collect();
            let mut sequence = model.sequence(&options);
            let generate = |sequence: &mut _, prompt: &[u32]| {
                model.generate_in(sequence, prompt, &options, &mut |_| ControlFlow::Continue(())).unwrap()
            };
            let first = generate(&mut sequence, &prompt);
            let bytes = model.sequence_to_bytes(&sequence, "a digest", b"said so far").unwrap();
            let (mut restored, note) = model.sequence_from_bytes(&bytes, "a digest", &options).unwrap();
            assert_eq!((restored.tokens(), note), (sequence.tokens(), &b"said so far"[..]), "{name}");
            assert_eq!(model.sequence_to_bytes(&restored, "a digest", b"said so far").unwrap(), bytes, "{name}");

            let second: Vec<u32> = prompt.iter().chain(&first.tokens).copied().chain([3, 9, 27]).collect();
            let wanted = generate(&mut sequence, &second).tokens;
            assert_eq!(generate(&mut restored, &second).tokens, wanted, "{name} {kv:?}");
        }
    }
}

#[test]
fn what_is_not_its_own_is_refused() {
    let model = model("qwen3");
    let options = options(KvDtype::F16);
    let mut sequence = model.sequence(&options);
    model.generate_in(&mut sequence, &[1, 2, 3], &options, &mut |_| ControlFlow::Continue(())).unwrap();
    let bytes = model.sequence_to_bytes(&sequence, "a digest", b"note").unwrap();
    let fault = |bytes: &[u8], identity: &str, kv| {
        let options = GenerateOptions { kv, ..options.clone() };
        match model.sequence_from_bytes(bytes, identity, &options) {
            Ok(_) => None,
            Err(EngineError::Session(fault)) => Some(fault),
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(fault(&bytes, "a digest", Some(KvDtype::F16)), None);
    assert_eq!(fault(&bytes, "another", Some(KvDtype::F16)), Some(SessionFault::Other));
    assert_eq!(fault(&bytes, "a digest", Some(KvDtype::Q8)), Some(SessionFault::Other));
    assert_eq!(fault(b"# Notes", "a digest", None), Some(SessionFault::Foreign));
    for len in (0..bytes.len()).step_by(97).chain([8, 39, 40, 95, 96]) {
        let wanted = if len < 8 { SessionFault::Foreign } else { SessionFault::Damaged };
        assert_eq!(fault(&bytes[..len], "a digest", None), Some(wanted), "{len}");
    }
    for at in (8..bytes.len()).step_by(53) {
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        assert_eq!(fault(&changed, "a digest", None), Some(SessionFault::Damaged), "{at}");
    }
}
