//! `docs/models.md` is what the descriptions say.
#![allow(clippy::unwrap_used)]

use edgelm_model::{Arch, ModelConfig, arch::ARCHS};
use edgelm_onnx::{OnnxStyle, unsupported};
use std::{fmt::Write, path::Path};

fn row(arch: &Arch, goldens: &Path) -> String {
    let yes = |flag: bool| if flag { "yes" } else { "no" };
    let config = std::fs::read_dir(goldens).unwrap().find_map(|entry| {
        let path = entry.unwrap().path().join("config.json");
        let config = ModelConfig::from_hf(&std::fs::read(&path).ok()?, &path).unwrap();
        (config.arch == arch).then_some(config)
    });
    let config = config.unwrap_or_else(|| panic!("`{}` has no golden in testdata", arch.name));
    let gguf = arch.gguf_name.map_or_else(|| "no".to_owned(), |name| format!("`{name}`"));
    let folds = yes(config.is_plain());
    let styles = [OnnxStyle::Genai, OnnxStyle::Qdq].into_iter().filter(|&style| unsupported(&config, style).is_none());
    let styles: Vec<String> = styles.map(|style| style.to_string()).collect();
    let onnx = if styles.is_empty() { "no".to_owned() } else { styles.join(", ") };
    format!("| {} | `{}` | yes | yes | {folds} | {folds} | {gguf} | {onnx} |", arch.name, arch.hf_name)
}

#[test]
fn models_page_is_what_the_descriptions_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut page = String::from(
        "# Models\n\nMade from the code: one row per description in `crates/edgelm-model/src/arch`. Each has a tiny checkpoint with the\n\
         logits of transformers among the tests. Whatever is not here is refused by name.\n\n\
         Load, run: Hugging Face folders, through every command that runs a model. Quantize: `rtn`, `imatrix`, `gptq` and mixtures,\n\
         into folders and, where there is a GGUF name, GGUF files; `awq`, `smoothquant`, `best` and rotation fold factors into\n\
         neighbouring matrices and need layers as Llama has them. Prune: heads, FFN channels, hidden width; layers go\n\
         everywhere, single weights where every layer has attention and one feed-forward network. GGUF: its name there.\n\
         ONNX: styles that can be exported (docs/onnx.md), each compared with the same logits in ONNX Runtime.\n\n\
         | family | transformers | load, run | quantize | fold | prune widths | GGUF | ONNX |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for arch in ARCHS {
        writeln!(page, "{}", row(arch, &root.join("testdata/goldens"))).unwrap();
    }
    let path = root.join("docs/models.md");
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == page,
        "docs/models.md is not what the descriptions say; set UPDATE_REFERENCE=1 to write it anew"
    );
}
