//! Safetensors: parse, list, view every tensor; whatever is accepted, the reference reader accepts with equal views.
#![no_main]

use edgelm_format::{Source, safetensors::SafeTensors};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = SafeTensors::from_sources(vec![Source::owned("fuzz", bytes.to_vec())]) else { return };
    let reference = safetensors::SafeTensors::deserialize(bytes).expect("the reference reader accepts it");
    assert_eq!(file.names().count(), reference.len());
    for name in file.names() {
        let info = file.info(name).expect("a listed tensor is found");
        let expected = reference.tensor(name).expect("the reference reader lists it");
        assert_eq!((info.bytes, info.shape), (Some(expected.data()), expected.shape()));
        match file.get(name) {
            Ok(view) => {
                let view = view.expect("a listed tensor is found");
                assert_eq!(view.rows().checked_mul(view.row_len()), Some(view.elements()));
                assert_eq!(view.bytes.len(), view.elements() * view.dtype.block_bytes());
            }
            Err(error) => assert!(info.dtype.is_none(), "{error}"),
        }
    }
});
