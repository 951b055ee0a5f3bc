//! Recipes as they are written, and the model compiled into the program on its way through them.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::thread_pool;
use edgelm_kernels::Cpu;
use edgelm_model::Checkpoint;
use std::{ops::ControlFlow, sync::Arc};

fn assets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../edgelm/assets")
}

fn parse(text: &str) -> Result<Recipe, CompressError> {
    Recipe::parse("test.toml", text, Path::new("/data"))
}

/// Breaks after so many steps, and measures what it is told.
struct Script {
    steps: usize,
    measured: Measured,
    measurements: usize,
}

impl Script {
    fn new(steps: usize) -> Self {
        Self { steps, measured: Measured::default(), measurements: 0 }
    }
}

impl Hooks for Script {
    fn on_step(&mut self, _: &str, _: usize, _: usize, _: &str) -> ControlFlow<()> {
        if self.steps == 0 {
            return ControlFlow::Break(());
        }
        self.steps -= 1;
        ControlFlow::Continue(())
    }

    fn measure(&mut self, _: &Gates, candidate: &Path) -> Result<Measured, Box<dyn std::error::Error + Send + Sync>> {
        Checkpoint::open(candidate)?;
        self.measurements += 1;
        Ok(self.measured)
    }
}

fn follow(recipe: &Recipe, output: &Path, start: Start, script: &mut Script) -> Result<RecipeReport, CompressError> {
    let checkpoint = Arc::new(Checkpoint::open(&assets().join("mica-5m")).unwrap());
    let cpu = Arc::new(Cpu::new(Some(2), None).unwrap());
    let options = RunOptions { output, start };
    thread_pool(2).unwrap().install(|| run_recipe(recipe, &checkpoint, &cpu, &options, script))
}

#[test]
fn every_key_has_its_place() {
    let recipe = parse(
        r#"
        seed = 7
        [calibration]
        file = "calibration.jsonl"
        samples = 8
        window = 256
        select = "diverse"
        [gates]
        max_perplexity_increase = "1%"
        max_kl = 0.02
        min_task_accuracy = 0.9
        text = "/absolute/text.txt"
        windows = 4
        tasks = "tasks.jsonl"
        samples = 5
        [[pass]]
        kind = "quantize"
        target_size = "1.5MB"
        method = "gptq"
        keep = ["blk.0.*=Q8_0"]
        damping = 0.02
        activation_order = true
        [pass.gates]
        max_kl = 0.5
        [[pass]]
        kind = "quantize"
        format = "q4_k_m"
        "#,
    )
    .unwrap();
    let options = CalibrationOptions { samples: 8, window: 256, seed: 7, select: Select::Diverse, held_out: 0 };
    assert_eq!(recipe.calibration_options(), options);
    assert_eq!(recipe.calibration.sources, [CalibrationSource::File("/data/calibration.jsonl".into())]);
    let Pass::Quantize(first) = &recipe.passes[0] else { panic!("{:?}", recipe.passes[0]) };
    assert_eq!(first.target_size, Some(Size(1_500_000)));
    let gates = recipe.gates_after(0);
    assert_eq!((gates.len(), gates[0].max_kl, gates[0].windows), (1, Some(0.5), Some(4)));
    assert_eq!(gates[0].text.as_deref(), Some(Path::new("/absolute/text.txt")));
    assert_eq!(gates[0].max_perplexity_increase, None);
    let last = recipe.gates_after(1);
    assert_eq!((last.len(), last[0].max_perplexity_increase), (1, Some(Fraction(0.01))));
    assert!(recipe.uses_calibration() && recipe.has_gates_on_text() && recipe.has_gates_on_tasks());
    recipe.check_data().unwrap();
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let quantize = |rest: &str| format!("[[pass]]\nkind = \"quantize\"\n{rest}\n");
    for (text, parts) in [
        ("seed = 1".to_owned(), &["no `[[pass]]`"][..]),
        ("seed = -1".to_owned(), &["line 1, column 8", "-1"]),
        ("sed = 1".to_owned(), &["line 1", "sed"]),
        ("[calibration]\nfiles = \"x\"".to_owned(), &["line 2", "files"]),
        ("[calibration]\nsamples = 0\n[[pass]]\nkind = \"quantize\"\nformat = \"Q8_0\"".to_owned(), &["samples"]),
        ("[[pass]]\nkind = \"shrink\"".to_owned(), &["line 2", "shrink", "quantize"]),
        ("[[pass]]\nformat = \"Q8_0\"".to_owned(), &["line ", "kind"]),
        (quantize("format = \"Q9\""), &["line 1", "pass 1 (`quantize`)", "format", "Q9"]),
        (quantize("format = \"Q8_0\"\nmethod = \"magic\""), &["line ", "magic", "gptq"]),
        (quantize("format = \"Q8_0\"\nfromat = 1"), &["line ", "fromat"]),
        (quantize("format = \"Q8_0\"\ntarget_bpw = 4"), &["one of"]),
        (quantize(""), &["one of"]),
        (quantize("target_bpw = -1"), &["target_bpw", "-1"]),
        (quantize("target_bpw = nan"), &["target_bpw"]),
        (quantize("target_size = \"3 parsecs\""), &["parsecs"]),
        (quantize("max_kl = 0"), &["max_kl", "0"]),
        (quantize("max_kl = nan"), &["max_kl", "NaN"]),
        (quantize("max_kl = 0.1\ntarget_bpw = 4"), &["one of"]),
        (quantize("format = \"int4\"\ngroup_size = 48"), &["int4", "group size", "48"]),
        (quantize("format = \"int8\"\nactivations = \"static\""), &["activations", "w8a8"]),
        (quantize("target_bpw = 4\ngroup_size = 32"), &["group_size", "int4"]),
        ("[calibration]\nselect = \"best\"".to_owned(), &["line 2", "best", "diverse"]),
        ("[calibration]\nfile = 3".to_owned(), &["line 2", "`file`", "list"]),
        (quantize("format = \"Q8_0\"\nkeep = [\"x\"]"), &["keep", "`x`"]),
        (quantize("format = \"Q8_0\"\ndamping = 0.1"), &["damping", "gptq"]),
        (quantize("format = \"Q8_0\"\nmethod = \"awq\"\ndamping = 0.1"), &["damping", "best"]),
        (quantize("format = \"Q8_0\"\nmethod = \"gptq\"\ndamping = -0.1"), &["damping", "-0.1"]),
        (quantize("format = \"Q8_0\"\ngates = { windows = 3 }"), &["gates", "no limit"]),
        (quantize("format = \"Q8_0\"\ngates = { max_kl = inf }"), &["gates", "max_kl"]),
        (quantize("format = \"Q8_0\"\n[gates]\nmax_perplexity_increase = \"one\""), &["line 5", "one"]),
        (quantize("format = \"Q8_0\"\n[gates]\nmin_task_accuracy = \"101%\""), &["min_task_accuracy"]),
        (quantize("format = \"Q8_0\"\n[gates]\nmax_kl = 0.1\nwindows = 0"), &["windows"]),
        ("[[pass]".to_owned(), &["line 1"]),
        ("[[pass]]\nkind = \"prune\"".to_owned(), &["pass 1 (`prune`)", "one of"]),
        ("[[pass]]\nkind = \"prune\"\nffn = 1.5".to_owned(), &["ffn", "1.5"]),
        ("[[pass]]\nkind = \"prune\"\npattern = \"5:4\"".to_owned(), &["5:4"]),
        ("[[pass]]\nkind = \"prune\"\nformat = \"Q8_0\"".to_owned(), &["format"]),
    ] {
        let error = parse(&text).unwrap_err().to_string();
        assert!(error.starts_with("recipe `test.toml`: "), "{error}");
        assert!(!error.contains('\n'), "{error}");
        for part in parts {
            assert!(error.contains(part), "{part} is not in {error}");
        }
    }
    let error = Recipe::open("no-such-recipe").unwrap_err().to_string();
    assert!(error.contains("no-such-recipe") && error.contains("balanced"), "{error}");
}

#[test]
fn ready_recipes_are_recipes() {
    for ready in READY {
        let recipe = Recipe::open(ready.name).unwrap();
        assert_eq!(recipe.uses_calibration(), ready.name != "fast-prototype", "{}", ready.name);
        assert_eq!(recipe.check_data().is_err(), ready.name != "fast-prototype");
        assert_eq!(recipe.has_gates_on_text(), ready.name == "safety-critical");
    }
}

const TWO_PASSES: &str = r#"
    seed = 3
    [calibration]
    file = "demo/text.txt"
    samples = 4
    window = 128
    [[pass]]
    kind = "quantize"
    format = "Q8_0"
    [[pass]]
    kind = "quantize"
    target_bpw = 6.5
    method = "gptq"
"#;

#[test]
fn an_interrupted_run_goes_on_and_ends_with_the_same_bytes() {
    let recipe = Recipe::parse("two", TWO_PASSES, &assets()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.gguf");
    let report = follow(&recipe, &whole, Start::Fresh, &mut Script::new(usize::MAX)).unwrap();
    assert_eq!(report.output_bytes, Some(std::fs::metadata(&whole).unwrap().len()));
    assert_eq!((report.passes.len(), report.passes[1].resumed), (2, false));
    let front = report.passes[1].pareto.as_ref().unwrap();
    assert!(front.points.len() > 6 && front.points.is_sorted_by(|a, b| a.expected_kl >= b.expected_kl), "{front:?}");
    assert!(front.chosen.bits_per_weight <= 6.5);
    let path = folder.path().join("parts.gguf");
    let work = folder.path().join(".parts.gguf.work");
    let mut runs = 0;
    let mut start = Start::Fresh;
    // As many steps as writing the file takes and a few more, so that each run ends in another place.
    let resumed = loop {
        runs += 1;
        assert!(runs < 20, "it gets nowhere");
        match follow(&recipe, &path, start, &mut Script::new(45)) {
            Ok(report) => break report,
            Err(CompressError::Interrupted { work: left }) => assert_eq!(left, work),
            Err(error) => panic!("{error}"),
        }
        assert!(work.is_dir() && !path.exists());
        start = Start::Resume;
    };
    assert!(runs >= 3, "{runs}");
    assert!(resumed.passes[0].resumed && !resumed.passes[1].resumed);
    assert_eq!(resumed.passes[1].tensors, report.passes[1].tensors);
    assert!(std::fs::read(&path).unwrap() == std::fs::read(&whole).unwrap(), "not the same bytes");
    assert!(!work.exists());
}

#[test]
fn a_layer_that_is_finished_is_not_quantized_again() {
    let recipe = TWO_PASSES.replace("target_bpw = 6.5", "format = \"Q4_0\"");
    let recipe = Recipe::parse("two", &recipe, &assets()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.gguf");
    let stored = || crate::LayerStore::open(&folder.path().join(".out.gguf.work/pass-2/layers")).unwrap().finished(4);
    let mut seen = Vec::new();
    let mut start = Start::Fresh;
    while let Err(error) = follow(&recipe, &path, start, &mut Script::new(45)) {
        assert!(matches!(error, CompressError::Interrupted { .. }), "{error}");
        seen.push(stored());
        start = Start::Resume;
    }
    assert!(seen.is_sorted() && seen.iter().any(|&count| (1..4).contains(&count)), "{seen:?}");
}

#[test]
fn what_was_pruned_is_quantized() {
    let recipe = "[calibration]\nfile = \"demo/text.txt\"\nsamples = 4\nwindow = 128\n\
                  [[pass]]\nkind = \"prune\"\nffn = \"25%\"\nmethod = \"wanda\"\n\
                  [[pass]]\nkind = \"quantize\"\nformat = \"Q4_0\"\nmethod = \"gptq\"\n";
    let recipe = Recipe::parse("prune", recipe, &assets()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.gguf");
    let report = follow(&recipe, &path, Start::Fresh, &mut Script::new(usize::MAX)).unwrap();
    let [pruned, quantized] = &report.passes[..] else { panic!("{:?}", report.passes) };
    let before = pruned.details["parameters_before"].as_u64().unwrap();
    assert!(pruned.parameters < before && quantized.parameters == pruned.parameters);
    assert_eq!(Checkpoint::open(&path).unwrap().parameters(), pruned.parameters);
}

#[test]
fn folders_hold_integers_and_files_do_not() {
    let recipe = "[[pass]]\nkind = \"prune\"\nffn = \"25%\"\nmethod = \"magnitude\"\nallocation = \"uniform\"\n\
                  [[pass]]\nkind = \"quantize\"\nformat = \"int4\"\ngroup_size = 32\n";
    let recipe = parse(recipe).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    let report = follow(&recipe, &path, Start::Fresh, &mut Script::new(usize::MAX)).unwrap();
    let made = Checkpoint::open(&path).unwrap();
    assert_eq!(made.parameters(), report.passes[1].parameters);
    assert!(report.passes[1].tensors.iter().any(|tensor| tensor.format == "int4 g32"));
    assert!(!folder.path().join(".out.work").exists());
    let again = follow(&recipe, &path, Start::Fresh, &mut Script::new(usize::MAX)).unwrap_err();
    assert!(matches!(again, CompressError::Format(edgelm_format::FormatError::OutputExists { .. })), "{again}");
    let file = folder.path().join("out.gguf");
    let error = follow(&recipe, &file, Start::Fresh, &mut Script::new(usize::MAX)).unwrap_err().to_string();
    assert!(error.contains("pass 2") && error.contains("int4") && error.contains("folder"), "{error}");
    let blocks = Recipe::open("fast-prototype").unwrap();
    let other = folder.path().join("other");
    let error = follow(&blocks, &other, Start::Fresh, &mut Script::new(usize::MAX)).unwrap_err().to_string();
    assert!(error.contains("Q8_0") && error.contains("folder"), "{error}");
    assert!(!file.exists() && !other.exists());
}

#[test]
fn a_recipe_can_do_without_data_and_with_a_limit() {
    let recipe = "[calibration]\nfile = \"self\"\nsamples = 5\nwindow = 64\n\
                  [[pass]]\nkind = \"quantize\"\nmax_kl = 0.05\nmethod = \"imatrix\"\nkeep = [\"blk.*=Q8_0\"]\n";
    let recipe = parse(recipe).unwrap();
    assert_eq!(recipe.calibration.sources, [CalibrationSource::Own]);
    let both = "[calibration]\nfile = [\"a.txt\", \"self\"]\n[[pass]]\nkind = \"quantize\"\nformat = \"Q8_0\"\n";
    assert_eq!(parse(both).unwrap().calibration.sources, ["/data/a.txt", "self"].map(|s| s.parse().unwrap()));
    assert_eq!(recipe.calibration_options().held_out, crate::HELD_OUT_WINDOWS);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.gguf");
    let report = follow(&recipe, &path, Start::Fresh, &mut Script::new(usize::MAX)).unwrap();
    let details = &report.passes[0].details;
    assert!(details["kl_divergence"].as_f64().unwrap() <= 0.05, "{details:?}");
    assert_eq!(details["held_out_tokens"], 32 * 64);
    assert!(report.passes[0].pareto.is_some() && path.exists());
}

#[test]
fn work_of_something_else_is_not_gone_on_with() {
    let recipe = Recipe::parse("two", TWO_PASSES, &assets()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.gguf");
    let all = || Script::new(usize::MAX);
    let error = follow(&recipe, &path, Start::Resume, &mut all()).unwrap_err();
    assert!(matches!(error, CompressError::NoWork { .. }), "{error}");
    follow(&recipe, &path, Start::Fresh, &mut Script::new(10)).unwrap_err();
    let error = follow(&recipe, &path, Start::Fresh, &mut all()).unwrap_err();
    assert!(matches!(error, CompressError::WorkExists { .. }), "{error}");
    for (text, what) in [("seed = 3", "seed = 4"), ("6.5", "6.6"), ("samples = 4", "samples = 5")] {
        let other = Recipe::parse("two", &TWO_PASSES.replace(text, what), &assets()).unwrap();
        let error = follow(&other, &path, Start::Resume, &mut all()).unwrap_err();
        assert!(matches!(error, CompressError::WorkDiffers { .. }) && error.to_string().contains("recipe"), "{error}");
    }
    assert!(!path.exists());
    let other = Recipe::open("fast-prototype").unwrap();
    follow(&other, &path, Start::Restart, &mut all()).unwrap();
    assert!(path.exists() && !folder.path().join(".out.gguf.work").exists());
}

#[test]
fn a_failed_gate_leaves_no_output_and_can_be_loosened() {
    let text = |limit: &str| {
        format!(
            "[[pass]]\nkind = \"quantize\"\nformat = \"Q8_0\"\ngates = {{ max_perplexity_increase = \"50%\", text = \"t\" }}\n\
             [gates]\nmax_kl = {limit}\nmin_task_accuracy = \"80%\"\ntext = \"t\"\ntasks = \"t\""
        )
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.gguf");
    let mut script = Script::new(usize::MAX);
    script.measured = Measured { perplexity_increase: Some(0.1), kl: Some(0.03), task_accuracy: Some(0.8) };
    let strict = parse(&text("0.02")).unwrap();
    let report = follow(&strict, &path, Start::Fresh, &mut script).unwrap();
    assert_eq!((report.gates.len(), report.output_bytes), (3, None));
    let failed = report.failed_gate().unwrap();
    assert_eq!((failed.gate.as_str(), failed.limit, failed.measured), ("max_kl", 0.02, 0.03));
    let line = failed.to_string();
    assert!(
        line.contains("max_kl after pass 1 (quantize)") && line.contains("0.03") && line.contains("0.02"),
        "{line}"
    );
    assert!(!path.exists() && script.measurements == 2);
    let loose = parse(&text("0.04")).unwrap();
    let report = follow(&loose, &path, Start::Resume, &mut script).unwrap();
    assert!(report.failed_gate().is_none() && report.passes[0].resumed && path.exists());
    // The pass's own gate is as it was and was passed before.
    assert_eq!(script.measurements, 3);
    // What was not measured has not passed.
    let unmeasured = loose.gates.judge("pass 1", &Measured::default());
    assert!(unmeasured.iter().all(|gate| !gate.passed), "{unmeasured:?}");
}
