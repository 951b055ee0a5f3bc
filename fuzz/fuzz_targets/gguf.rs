//! GGUF: parse, list, view every tensor.
#![no_main]

use edgelm_format::{Source, gguf::GgufFile};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = GgufFile::from_source(Source::owned("fuzz", bytes.to_vec())) else { return };
    for (key, _) in file.metadata() {
        let value = file.get_meta(key).expect("a listed key is found");
        value.as_u64();
        value.as_f64();
        value.as_u64s();
    }
    for name in file.names() {
        let info = file.info(name).expect("a listed tensor is found");
        assert!(file.source_of(name).is_some());
        match file.get(name) {
            Ok(view) => {
                let view = view.expect("a listed tensor is found");
                assert_eq!(view.rows().checked_mul(view.row_len()), Some(view.elements()));
                let row_bytes = view.dtype.row_bytes(view.row_len()).expect("rows are whole blocks");
                assert_eq!(view.bytes.len(), row_bytes * view.rows());
                assert_eq!(info.bytes, Some(view.bytes));
            }
            Err(error) => assert!(info.dtype.is_none(), "{error}"),
        }
    }
});
