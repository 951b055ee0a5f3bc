//! The command line as scripts use it: keys, exit statuses, messages.
#![allow(clippy::unwrap_used)]

use assert_cmd::Command;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn edgelm(arguments: &[&str]) -> assert_cmd::assert::Assert {
    command().args(arguments).assert()
}

fn command() -> Command {
    let mut command = Command::cargo_bin("edgelm").unwrap();
    command.env_remove("EDGELM_THREADS").env_remove("EDGELM_ISA").env_remove("RUST_LOG");
    command.env("EDGELM_OFFLINE", "1");
    command
}

fn json(arguments: &[&str]) -> Value {
    let output = command().args(arguments).arg("--json").assert().success().get_output().stdout.clone();
    serde_json::from_slice(&output).unwrap()
}

fn text(arguments: &[&str]) -> String {
    String::from_utf8(edgelm(arguments).success().get_output().stdout.clone()).unwrap()
}

/// Exit status, and the one line on stderr that begins with `error:`.
fn failure(arguments: &[&str]) -> (i32, String) {
    let output = command().args(arguments).assert().failure().get_output().clone();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let line = stderr.lines().find(|line| line.starts_with("error:")).unwrap_or_default().to_owned();
    assert!(!line.is_empty(), "no error line for {arguments:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    (output.status.code().unwrap(), line)
}

fn assets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets")
}

fn reference() -> Value {
    serde_json::from_slice(&std::fs::read(assets().join("mica-5m/reference.json")).unwrap()).unwrap()
}

fn ids(value: &Value) -> String {
    value.as_array().unwrap().iter().map(Value::to_string).collect::<Vec<_>>().join(",")
}

#[test]
fn inspect_tells_the_facts() {
    let facts = json(&["inspect", "demo"]);
    assert_eq!(facts["architecture"], "llama");
    assert_eq!(facts["bits_per_weight"], 16.0);
    assert_eq!(facts["tensors"].as_array().unwrap().len(), 4 * 9 + 2);
    assert_eq!(facts["memory"]["kv_bytes_per_token"], 4 * 2 * 2 * 64 * 2);
    assert_eq!(facts["memory"]["state_bytes"], 0);
    let parameters = facts["parameters"].as_u64().unwrap();
    assert_eq!(facts["memory"]["weights_bytes"].as_u64().unwrap(), parameters * 2);
    assert!(text(&["inspect", "demo", "--tensors"]).contains("model.layers.3.mlp.down_proj.weight"));
}

#[test]
fn text_and_tokens_go_both_ways() {
    let line = "Pump 3: 81 °C — naïve 😀";
    let tokens = json(&["tokenize", "demo", line]);
    assert_eq!(json(&["detokenize", "demo", &ids(&tokens["tokens"])])["text"], line);
    assert_eq!(text(&["tokenize", "demo", line]).trim(), ids(&tokens["tokens"]));
}

#[test]
fn a_template_is_rendered() {
    let folder = tempfile::tempdir().unwrap();
    let messages = folder.path().join("m.json");
    std::fs::write(&messages, r#"[{"role": "user", "content": "hi"}]"#).unwrap();
    let arguments = ["template", "demo", "--messages", messages.to_str().unwrap()];
    assert_eq!(text(&arguments), "<|im_start|>user\nhi<|im_end|>\n");
    let with_prompt = [&arguments[..], &["--add-generation-prompt"]].concat();
    assert!(text(&with_prompt).ends_with("<|im_start|>assistant\n"));
}

#[test]
fn greedy_tokens_are_those_of_the_reference() {
    for case in reference()["greedy"].as_array().unwrap() {
        let got = json(&["run", "demo", "--tokens", &ids(&case["prompt_tokens"]), "--max-tokens", "128"]);
        assert_eq!(got["tokens"], case["tokens"], "line {}", case["line"]);
        assert_eq!(got["finish_reason"], "stop");
        assert_eq!(got["prompt_tokens"], case["prompt_tokens"].as_array().unwrap().len());
    }
}

#[test]
fn run_honours_its_flags() {
    let prompt = ["run", "demo", "List three metals.", "--ignore-eos"];
    let plain = json(&[&prompt[..], &["--max-tokens", "24"]].concat());
    assert_eq!(plain["completion_tokens"], 24);
    assert_eq!(plain["finish_reason"], "length");
    for key in ["load_ms", "ttft_ms", "prefill_tokens_per_second", "decode_tokens_per_second", "peak_rss_bytes"] {
        assert!(plain[key].as_f64().unwrap() > 0.0, "{key}");
    }
    let sampled = |seed: &str| {
        json(&[&prompt[..], &["-n", "24", "--temperature", "1.5", "--seed", seed]].concat())["text"].clone()
    };
    assert_eq!(sampled("1"), sampled("1"));
    assert_ne!(sampled("1"), sampled("2"));
    let whole = plain["text"].as_str().unwrap();
    let stop: String = whole.chars().skip(4).take(5).collect();
    let stopped = json(&[&prompt[..], &["-n", "24", "--stop", &stop]].concat());
    assert_eq!(stopped["text"].as_str().unwrap(), &whole[..whole.find(&stop).unwrap()]);
    assert_eq!(stopped["finish_reason"], "stop");
    let streamed = text(&[&prompt[..], &["-n", "24"]].concat());
    assert_eq!(streamed.strip_suffix('\n').unwrap(), whole);
    let beams = json(&[&prompt[..], &["-n", "12", "--beams", "3"]].concat());
    assert!(beams["completion_tokens"].as_u64().unwrap() <= 12);
    for kv in ["f32", "f16", "q8"] {
        json(&[&prompt[..], &["-n", "4", "--kv", kv]].concat());
    }
}

#[test]
fn a_conversation_goes_on_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("talk");
    let file = path.to_str().unwrap();
    let limits = ["--max-tokens", "8", "--kv", "q4"];
    let run =
        |prompt: &str, more: &[&str]| json(&[&["run", "demo", prompt, "--session", file][..], &limits, more].concat());
    let first = run("The river", &["--raw"]);
    let second = run(" and", &["--raw"]);
    #[cfg(unix)]
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).unwrap()) & 0o777, 0o600);
    let whole = format!("The river{} and", first["text"].as_str().unwrap());
    let at_once = json(&[&["run", "demo", &whole, "--raw"][..], &limits].concat());
    assert_eq!((&second["tokens"], &second["prompt_tokens"]), (&at_once["tokens"], &at_once["prompt_tokens"]));

    let refused = |arguments: &[&str]| {
        failure(&[&["run", "demo", "x", "--session", file, "--max-tokens", "2"][..], arguments].concat())
    };
    let (status, error) = refused(&["--kv", "q4"]);
    assert!(status == 2 && error.contains("begun with --raw"), "{error}");
    let (status, error) = refused(&["--raw", "--kv", "q8"]);
    assert!(status == 1 && error.contains("another model, cache format"), "{error}");
    std::fs::write(&path, "my notes").unwrap();
    let (status, error) = refused(&["--raw"]);
    assert!(status == 1 && error.contains("something else"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "my notes");

    std::fs::remove_file(&path).unwrap();
    let first = run("What is a river?", &["--system", "Be brief."]);
    let second = run("And a lake?", &[]);
    let tokens = |answer: &Value| answer["prompt_tokens"].as_u64().unwrap();
    assert!(tokens(&second) > tokens(&first) + 8, "the conversation so far is part of the prompt");
    let (status, error) = refused(&["--kv", "q4", "--system", "Be long."]);
    assert!(status == 2 && error.contains("another system message"), "{error}");
}

#[test]
fn answers_have_the_form_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let schema = file(
        "s.json",
        r#"{"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
        "additionalProperties": false}"#,
    );
    for extra in [&["--temperature", "0"][..], &["--temperature", "1.5", "--seed", "4"]] {
        let got = json(&[&["run", "demo", "Are you there?", "--json-schema", &schema], extra].concat());
        let answer: Value = serde_json::from_str(got["text"].as_str().unwrap()).unwrap();
        assert!(answer["ok"].is_boolean() && answer.as_object().unwrap().len() == 1, "{got}");
        assert_eq!(got["finish_reason"], "stop");
    }
    let grammar = file("g.lark", "start: \"<\" /[0-9]{3}/ \">\"");
    let got = json(&["run", "demo", "A number", "--grammar", &grammar]);
    assert!(got["text"].as_str().unwrap().len() == 5 && got["finish_reason"] == "stop", "{got}");

    let refused = |flag: &str, path: &str| failure(&["run", "demo", "x", flag, path]);
    let (status, line) = refused("--json-schema", &file("n.json", r#"{"not": {}}"#));
    assert!(status == 1 && line.contains("n.json") && line.contains("not"), "{line}");
    assert!(refused("--json-schema", &file("b.json", "{")).1.contains("b.json"));
    assert!(refused("--grammar", &file("b.lark", "start: x")).1.contains("b.lark"));
    assert_eq!(failure(&["run", "demo", "x", "--grammar", &grammar, "--beams", "2"]).0, 2);
}

#[test]
fn threads_and_kernel_families_agree_on_tokens() {
    let case = &reference()["greedy"][0];
    let arguments = ["run", "demo", "--tokens", &ids(&case["prompt_tokens"]), "--max-tokens", "16"];
    let want: Vec<Value> = case["tokens"].as_array().unwrap().iter().take(16).cloned().collect();
    for extra in [["--threads", "1"], ["--threads", "2"], ["--isa", "scalar"]] {
        assert_eq!(json(&[&arguments[..], &extra].concat())["tokens"], Value::Array(want.clone()), "{extra:?}");
    }
}

#[test]
fn a_long_document_is_worked_through_in_windows() {
    let file = assets().join("demo/text.txt");
    let got = json(&[
        "run",
        "demo",
        "Summarize:",
        "--file",
        file.to_str().unwrap(),
        "--window",
        "1500",
        "--stride",
        "1400",
        "-n",
        "8",
    ]);
    let windows = got["windows"].as_array().unwrap();
    assert!(windows.len() > 3);
    assert_eq!(windows[1]["window"][0], 1400);
    assert_eq!(windows.last().unwrap()["window"][1], got["document_tokens"]);
    let (status, line) = failure(&["run", "demo", "--file", file.to_str().unwrap()]);
    assert_eq!(status, 1);
    assert!(line.contains("context"), "{line}");
}

#[test]
fn logits_have_one_row_per_position() {
    let got = json(&["logits", "demo", "--tokens", "0,5,17"]);
    let rows = got["logits"].as_array().unwrap();
    assert_eq!((rows.len(), rows[0].as_array().unwrap().len()), (3, 8192));
    let last = json(&["logits", "demo", "--tokens", "0,5,17", "--last", "1"]);
    assert_eq!(last["logits"][0], rows[2]);
}

#[test]
fn formats_of_folders_are_written_to_folders() {
    let folder = tempfile::tempdir().unwrap();
    let sample = assets().join("demo/text.txt");
    let sample = sample.to_str().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let divergence = |path: &str| {
        let got = json(&["eval", path, "--text", sample, "--windows", "1", "--against", "demo"]);
        got["kl_divergence"].as_f64().unwrap()
    };
    // Bounds are about three times what was measured.
    let calibrated: &[&str] = &["--activations", "static", "--calibration", sample, "--samples", "4"];
    for (name, extra, bits, kl) in [
        ("int8", &[][..], 8.1, 0.01),
        ("int4", &["--group-size", "32"], 6.1, 0.3),
        ("w8a8", calibrated, 8.1, 0.1),
        ("nf4", &[], 10.0, 0.3),
        ("fp4", &["--group-size", "32"], 10.3, 0.5),
    ] {
        let path = path(name);
        let report = json(&[&["quantize", "demo", "-o", &path, "--format", name], extra].concat());
        assert!(report["bits_per_weight"].as_f64().unwrap() <= bits, "{name}: {}", report["bits_per_weight"]);
        let bytes = std::fs::metadata(Path::new(&path).join("model.safetensors")).unwrap().len();
        assert_eq!(report["output_bytes"].as_u64().unwrap(), bytes);
        let got = divergence(&path);
        assert!(got < kl && got > 0.0, "{name}: {got}");
        assert_eq!(json(&["run", &path, "Hello", "--max-tokens", "4", "--ignore-eos"])["completion_tokens"], 4);
    }
    let out = path("none");
    for (arguments, part) in [
        (&["--format", "int8", "--symmetric", "false"][..], "symmetric"),
        (&["--format", "int4", "--group-size", "48"], "multiple of 32"),
        (&["--format", "int4", "--per", "channel", "--group-size", "64"], "group size"),
        (&["--format", "int4", "--activations", "static", "--calibration", sample], "activations"),
        (&["--format", "w8a8", "--activations", "static"], "--calibration"),
        (&["--format", "w8a8", "--calibrator", "kl"], "calibrator"),
        (&["--format", "Q8_0"], ".gguf"),
        (&["--format", "nf4", "--group-size", "96"], "32, 64, 128"),
        (&["--format", "nf4", "--per", "channel"], "--per"),
        (&["--format", "nf4", "--sparse", "2:4"], "--sparse"),
        (&["--format", "int2", "--sparse", "2:4"], "`symmetric`"),
    ] {
        let output = command().args(["quantize", "demo", "-o", &out]).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(message.contains(part), "{arguments:?}: {message}");
        assert!(!Path::new(&out).exists());
    }
    for (arguments, part) in [
        (&["--format", "nf4"][..], "GGUF has no nf4"),
        (&["--format", "F16", "--sparse", "2:4"], "GGUF has no 2:4 weights"),
        (&["--format", "Q4_0", "--keep", "token_embd.weight=NF4"], "unknown format `NF4`"),
    ] {
        let out = path("none.gguf");
        let output = command().args(["quantize", "demo", "-o", &out]).args(arguments).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && message.contains(part), "{arguments:?}: {message}");
    }
    // 2:4: refused where more is not zero, and stored in less where it is.
    let output =
        command().args(["quantize", "demo", "-o", &out, "--format", "int8", "--sparse", "2:4"]).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && message.contains("--pattern 2:4"), "{message}");
    let pruned = path("pruned");
    json(&["prune", "demo", "-o", &pruned, "--pattern", "2:4", "--method", "magnitude"]);
    let bytes = |name: &str, extra: &[&str]| {
        let path = path(name);
        let report = json(&[&["quantize", &pruned, "-o", &path], extra].concat());
        let against = json(&["eval", &path, "--text", sample, "--windows", "1", "--against", &pruned]);
        let got = against["kl_divergence"].as_f64().unwrap();
        assert!(got < 0.3, "{name}: {got}");
        report["output_bytes"].as_u64().unwrap()
    };
    let sparse = ["--sparse", "2:4"];
    for format in ["int8", "int4", "F16"] {
        let dense = if format == "F16" { 0 } else { bytes(&format!("{format}-dense"), &["--format", format]) };
        let stored = bytes(&format!("{format}-24"), &[&["--format", format], &sparse[..]].concat());
        assert!(dense == 0 || stored < dense, "{format}: {stored} {dense}");
    }
}

#[test]
fn quantized_files_are_smaller_and_nearly_as_good() {
    let folder = tempfile::tempdir().unwrap();
    let sample = assets().join("demo/text.txt");
    let sample = sample.to_str().unwrap();
    let quantize = |name: &str, extra: &[&str]| {
        let path = folder.path().join(format!("{name}{}.gguf", extra.len()));
        let arguments = [&["quantize", "demo", "-o", path.to_str().unwrap(), "--format", name], extra].concat();
        let report = json(&arguments);
        assert_eq!(report["output_bytes"].as_u64().unwrap(), std::fs::metadata(&path).unwrap().len());
        (path.to_str().unwrap().to_owned(), report)
    };
    let divergence = |path: &str| {
        let got = json(&["eval", path, "--text", sample, "--windows", "2", "--against", "demo"]);
        assert_eq!(got["tokens_scored"], 2048);
        assert!(got["top1_agreement"].as_f64().unwrap() <= 1.0);
        got["kl_divergence"].as_f64().unwrap()
    };
    // Bounds are three times what was measured on this text, so that another CPU's rounding stays inside.
    for (name, bits, kl) in [("Q8_0", 8.5, 0.003), ("Q6_K", 7.2, 0.015), ("Q4_K_M", 5.6, 0.15), ("Q4_0", 5.4, 0.3)] {
        let (path, report) = quantize(name, &[]);
        assert!(report["bits_per_weight"].as_f64().unwrap() <= bits + 0.05, "{name}: {}", report["bits_per_weight"]);
        let got = divergence(&path);
        assert!(got < kl && got > 0.0, "{name}: {got}");
        // ffn rows of 704 are no multiple of 256: the output says what they got instead.
        let has_note = report["notes"].as_array().unwrap().iter().any(|note| note.to_string().contains("704"));
        assert_eq!(has_note, name.contains("_K"), "{name}");
        let again = quantize(name, &["-q"]).0;
        assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(again).unwrap(), "{name}: not the same bytes twice");
    }
    let (path, report) = quantize("Q4_0", &["--keep", "blk.*.attn_v.weight=Q8_0"]);
    assert_eq!(report["tensors"]["blk.1.attn_v.weight"], "Q8_0");
    assert_eq!(json(&["inspect", &path])["tensors"].as_array().unwrap().len(), 4 * 9 + 2);
    let plain = divergence(&quantize("Q3_K", &[]).0);
    let weighted =
        divergence(&quantize("Q3_K", &["--method", "imatrix", "--calibration", sample, "--samples", "16"]).0);
    assert!(weighted < plain * 1.05, "importance made it worse: {weighted} after {plain}");
}

/// A recipe file in `folder`, and the arguments that follow it.
fn compress(folder: &Path, recipe: &str) -> Vec<String> {
    let file = folder.join("recipe.toml");
    std::fs::write(&file, recipe).unwrap();
    let output = folder.join("out.gguf");
    ["compress", "demo", "--recipe", file.to_str().unwrap(), "-o", output.to_str().unwrap()].map(String::from).to_vec()
}

fn strings(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

#[test]
fn a_recipe_makes_the_same_file_as_quantize() {
    let folder = tempfile::tempdir().unwrap();
    let text = assets().join("demo/text.txt");
    std::fs::copy(&text, folder.path().join("text.txt")).unwrap();
    let recipe = "[calibration]\nfile = \"text.txt\"\nsamples = 4\n[[pass]]\nkind = \"quantize\"\n\
                  target_bpw = 6.5\nmethod = \"gptq\"\n[gates]\nmax_kl = 1\ntext = \"text.txt\"\nwindows = 1\n";
    let page = folder.path().join("page.html");
    let mut arguments = compress(folder.path(), recipe);
    arguments.extend(["--report".to_owned(), page.to_str().unwrap().to_owned()]);
    let got = json(&strings(&arguments));
    let output = folder.path().join("out.gguf");
    assert_eq!(got["output_bytes"].as_u64().unwrap(), std::fs::metadata(&output).unwrap().len());
    assert_eq!(got["passes"][0]["kind"], "quantize");
    assert_eq!(got["gates"][0]["gate"], "max_kl");
    assert_eq!(got["gates"][0]["passed"], true);
    let page = std::fs::read_to_string(&page).unwrap();
    for part in ["</html>", "max_kl", "<svg class=\"chart\"", "blk.3"] {
        assert!(page.contains(part), "{part}");
    }
    let other = folder.path().join("other.gguf");
    let page = folder.path().join("other.html");
    let quantize = ["quantize", "demo", "-o", other.to_str().unwrap(), "--target-bpw", "6.5", "--method", "gptq"];
    let data = ["--calibration", text.to_str().unwrap(), "--samples", "4", "--report", page.to_str().unwrap()];
    let printed = edgelm(&[&quantize[..], &data].concat()).success().get_output().stdout.clone();
    assert!(String::from_utf8(printed).unwrap().contains("chosen"));
    assert!(std::fs::read_to_string(&page).unwrap().contains("<svg class=\"chart\""));
    assert_eq!(std::fs::read(&output).unwrap(), std::fs::read(&other).unwrap());
}

#[test]
fn a_failed_gate_is_status_3_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let text = assets().join("demo/text.txt");
    let tasks = assets().join("demo/tasks.jsonl");
    let recipe = |limit: &str| {
        format!(
            "[[pass]]\nkind = \"quantize\"\nformat = \"Q4_0\"\n[gates]\nmax_kl = {limit}\nwindows = 1\n\
             max_perplexity_increase = \"40%\"\nmin_task_accuracy = \"10%\"\nsamples = 1\n"
        )
    };
    let arguments = |limit: &str, extra: &[&str]| {
        let mut arguments = compress(folder.path(), &recipe(limit));
        let data = ["--text", text.to_str().unwrap(), "--tasks", tasks.to_str().unwrap()];
        arguments.extend(data.iter().chain(extra).map(|&argument| argument.to_owned()));
        arguments
    };
    let (status, line) = failure(&strings(&compress(folder.path(), &recipe("1"))));
    assert!(status == 2 && line.contains("--text"), "{status}: {line}");
    let (status, line) = failure(&strings(&arguments("0.000001", &[])));
    assert_eq!(status, 3, "{line}");
    assert!(line.contains("max_kl") && line.contains("0.000001"), "{line}");
    let output = folder.path().join("out.gguf");
    assert!(!output.exists());
    let (status, line) = failure(&strings(&arguments("1", &[])));
    assert!(status == 1 && line.contains(".out.gguf.work"), "{status}: {line}");
    let got = json(&strings(&arguments("1", &["--resume"])));
    assert_eq!(got["gates"].as_array().unwrap().len(), 3);
    assert_eq!(got["passes"][0]["resumed"], true);
    assert!(output.exists() && !folder.path().join(".out.gguf.work").exists());
    assert_eq!(json(&["inspect", output.to_str().unwrap()])["architecture"], "llama");
}

#[test]
fn a_recipe_that_cannot_be_followed_says_where() {
    let folder = tempfile::tempdir().unwrap();
    for (recipe, parts) in [
        ("[[pass]]\nkind = \"quantize\"\nformat = \"Q9\"", ["recipe.toml", "Q9"]),
        ("sead = 1", ["line 1", "sead"]),
        ("[[pass]]\nkind = \"distill\"", ["line 2", "distill"]),
    ] {
        let (status, line) = failure(&strings(&compress(folder.path(), recipe)));
        assert!(status == 1 && parts.iter().all(|part| line.contains(part)), "{status}: {line}");
    }
    let output = folder.path().join("out.gguf");
    let ready = ["compress", "demo", "-o", output.to_str().unwrap(), "--recipe"];
    let (status, line) = failure(&[&ready[..], &["balanced"]].concat());
    assert!(status == 2 && line.contains("--calibration"), "{status}: {line}");
    let (status, line) = failure(&[&ready[..], &["fast-prototype", "--text", "x"]].concat());
    assert!(status == 2 && line.contains("--text"), "{status}: {line}");
    let got = json(&[&ready[..], &["fast-prototype"]].concat());
    assert_eq!(got["passes"][0]["tensors"].as_array().unwrap().len(), 4 * 9 + 2);
}

#[test]
fn error_feedback_and_mixtures_gain() {
    let folder = tempfile::tempdir().unwrap();
    let sample = assets().join("demo/text.txt");
    let sample = sample.to_str().unwrap();
    let calibration = ["--calibration", sample, "--samples", "6"];
    let quantize = |name: &str, extra: &[&str]| {
        let path = folder.path().join(format!("{name}.gguf"));
        let arguments = [&["quantize", "demo", "-o", path.to_str().unwrap()], &calibration[..], extra].concat();
        let report = json(&arguments);
        let path = path.to_str().unwrap().to_owned();
        let eval = json(&["eval", &path, "--text", sample, "--windows", "1", "--against", "demo"]);
        (report, eval["kl_divergence"].as_f64().unwrap(), path)
    };
    let (_, weighted, _) = quantize("imatrix", &["--format", "IQ4_NL", "--method", "imatrix"]);
    let (fed_report, fed, path) = quantize("gptq", &["--format", "IQ4_NL", "--method", "gptq"]);
    assert!(fed < weighted, "{fed} after {weighted}");
    let errors = fed_report["details"].as_array().unwrap();
    let known = errors.iter().filter(|tensor| tensor["relative_output_error"].is_number()).count();
    assert_eq!(known, 4 * 7 + 1, "every matrix, the tied embedding too");
    let again = quantize("again", &["--format", "IQ4_NL", "--method", "gptq", "--threads", "1"]).2;
    assert_eq!(std::fs::read(path).unwrap(), std::fs::read(again).unwrap(), "threads changed the bytes");

    let bits = fed_report["bits_per_weight"].as_f64().unwrap().to_string();
    let (mixed_report, mixed, _) = quantize("mixed", &["--target-bpw", &bits, "--method", "gptq"]);
    assert!(mixed_report["bits_per_weight"].as_f64().unwrap() <= bits.parse::<f64>().unwrap());
    assert!(mixed < fed, "{mixed} after {fed}");
    let (sized, _, path) = quantize("sized", &["--target-size", "4MB", "--method", "imatrix"]);
    let bytes = std::fs::metadata(path).unwrap().len();
    assert_eq!(sized["output_bytes"], bytes);
    assert!((3_800_000..=4_000_000).contains(&bytes), "{bytes}");

    let tiny = folder.path().join("tiny.gguf");
    let tiny = tiny.to_str().unwrap();
    let (status, error) =
        failure(&[&["quantize", "demo", "-o", tiny, "--target-size", "1MB"], &calibration[..]].concat());
    assert!(status == 1 && error.contains("cannot be smaller"), "{error}");
    assert!(!std::path::Path::new(tiny).exists());
}

#[test]
fn a_limit_on_divergence_is_kept_on_data_held_out() {
    let folder = tempfile::tempdir().unwrap();
    let sample = assets().join("demo/text.txt");
    let sample = sample.to_str().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let all = ["--keep", "blk.*=Q8_0", "--calibration", sample, "--samples", "8"];
    let out = path("limited.gguf");
    let report = json(&[&["quantize", "demo", "-o", &out, "--max-kl", "0.05"], &all[..]].concat());
    let kl = report["kl_divergence"].as_f64().unwrap();
    assert!(kl > 0.0 && kl <= 0.05 && report["held_out_tokens"].as_u64().unwrap() >= 1024, "{report}");
    assert!(report["trials"].as_array().unwrap().iter().any(|trial| trial["measured_kl"] == report["kl_divergence"]));
    assert!(report["bits_per_weight"].as_f64().unwrap() < 8.0 && report["pareto"]["points"].is_array());
    // Of the same kind of text, all windows: other positions, other cuts.
    let eval = json(&["eval", &out, "--text", sample, "--against", "demo"]);
    let whole = eval["kl_divergence"].as_f64().unwrap();
    assert!((0.5..2.0).contains(&(whole / kl)), "{whole} {kl}");
    let none = path("none.gguf");
    let (status, line) = failure(&[&["quantize", "demo", "-o", &none, "--max-kl", "1e-6"], &all[..]].concat());
    assert!(status == 1 && line.contains("--max-kl 0.000001") && !Path::new(&none).exists(), "{status}: {line}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "something temporary is left");
}

#[test]
fn a_model_can_be_calibrated_on_its_own_text() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let own = ["--calibration", "self", "--samples", "4"];
    let quantize = |name: &str, extra: &[&str]| {
        let out = path(name);
        json(&[&["quantize", "demo", "-o", &out, "--format", "Q4_0", "--method", "imatrix"], &own[..], extra].concat());
        std::fs::read(out).unwrap()
    };
    let once = quantize("a.gguf", &[]);
    assert_eq!(quantize("b.gguf", &["--threads", "1"]), once);
    assert_ne!(quantize("c.gguf", &["--seed", "1"]), once);
    let output = path("p.gguf");
    let pruned = [&["prune", "demo", "-o", &output, "--ffn", "0.25"], &own[..]].concat();
    let pruned = json(&pruned);
    assert!(pruned["parameters_after"].as_u64() < pruned["parameters_before"].as_u64());
}

#[test]
fn pruned_models_run_from_either_kind_of_output() {
    let folder = tempfile::tempdir().unwrap();
    let sample = assets().join("demo/text.txt");
    let sample = sample.to_str().unwrap();
    let prune = |name: &str, extra: &[&str]| {
        let path = folder.path().join(name).to_str().unwrap().to_owned();
        let calibration = ["--calibration", sample, "--samples", "5"];
        let report = json(&[&["prune", "demo", "-o", &path], extra, &calibration].concat());
        (path, report)
    };
    let perplexity =
        |path: &str| json(&["eval", path, "--text", sample, "--windows", "2"])["perplexity"].as_f64().unwrap();
    let parent = perplexity("demo");
    let narrower = ["--ffn", "0.25", "--heads", "0.5", "--allocation", "global"];
    let (as_folder, report) = prune("narrower", &narrower);
    let (as_file, _) = prune("narrower.gguf", &narrower);
    assert!(report["parameters_after"].as_u64().unwrap() < report["parameters_before"].as_u64().unwrap());
    assert_eq!(report["layers"].as_array().unwrap().len(), 4);
    let facts = json(&["inspect", &as_folder]);
    assert_eq!(facts["parameters"], report["parameters_after"]);
    assert_eq!(facts["parameters"], json(&["inspect", &as_file])["parameters"]);
    let (a, b) = (perplexity(&as_folder), perplexity(&as_file));
    assert!((a / b - 1.0).abs() < 1e-3 && a > parent, "{parent} {a} {b}");
    assert!(!text(&["run", &as_folder, "List three metals.", "-n", "8"]).is_empty());
    let (shorter, report) = prune("shorter", &["--layers", "1"]);
    assert_eq!(report["layers_removed"].as_array().unwrap().len(), 1);
    assert!(perplexity(&shorter) > parent);
    let sparse = |method: &str| {
        let (path, report) = prune(&format!("sparse-{method}"), &["--pattern", "2:4", "--method", method]);
        assert!((report["sparsity"].as_f64().unwrap() - 0.5).abs() < 1e-6, "{method}: {}", report["sparsity"]);
        perplexity(&path)
    };
    let (alps, sparsegpt, wanda, magnitude) =
        (sparse("alps"), sparse("sparsegpt"), sparse("wanda"), sparse("magnitude"));
    assert!(
        alps < 1.05 * sparsegpt && sparsegpt < wanda && wanda < magnitude,
        "{alps} {sparsegpt} {wanda} {magnitude}"
    );
    // What is there stays there.
    let (status, line) = failure(&["prune", &as_folder, "-o", &as_folder, "--ffn", "0.5", "--method", "magnitude"]);
    assert_eq!(status, 1);
    assert!(line.contains("is the model being read"), "{line}");
}

/// Skipped, with the reason, where there is no library of ONNX Runtime.
#[test]
fn perplexity_in_onnx_runtime_is_that_of_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.txt");
    std::fs::write(&text, "The pump on line 3 stopped at 81 °C and was restarted by hand. ".repeat(12)).unwrap();
    let text = text.to_str().unwrap();
    let measured = ["--text", text, "--ctx", "64"];
    let own = json(&[&["eval", "demo", "--kv", "f32", "--arithmetic", "exact"], &measured[..]].concat());
    for style in ["qdq", "genai"] {
        let out = folder.path().join(style);
        let out = out.to_str().unwrap();
        edgelm(&["export", "demo", "--format", "onnx", "--onnx-style", style, "-o", out]).success();
        let arguments = [&["eval", out, "--engine", "ort", "--arithmetic", "exact"], &measured[..]].concat();
        let (status, message) = failure(&[&arguments[..], &["--kv", "f16"]].concat());
        assert!(status == 2 && message.contains("--kv is not available with --engine ort"), "{message}");
        let output = command().args(&arguments).arg("--json").output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        if message.contains("ONNX Runtime cannot be loaded") {
            println!("skipped: {message}");
            return;
        }
        assert!(output.status.success(), "{message}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&report["tokens_scored"], &report["windows"]), (&own["tokens_scored"], &own["windows"]));
        let (theirs, ours) = (number(report["perplexity"].clone()), number(own["perplexity"].clone()));
        assert!((theirs / ours - 1.0).abs() < 1e-4, "{style}: {theirs} and {ours}");
    }
}

#[test]
fn evaluation_of_pairs_and_tasks() {
    let folder = tempfile::tempdir().unwrap();
    let pairs = folder.path().join("pairs.jsonl");
    std::fs::write(&pairs, r#"{"prediction": "the cat sat on the mat", "reference": "the cat sat on a mat"}"#).unwrap();
    let got = json(&["eval", "demo", "--pairs", pairs.to_str().unwrap()]);
    assert!((got["rouge_l"].as_f64().unwrap() - 5.0 / 6.0).abs() < 1e-9);
    assert!(got["bleu4"].as_f64().unwrap() > 40.0);
    let tasks = assets().join("demo/tasks.jsonl");
    let report = folder.path().join("report.html");
    let arguments =
        ["eval", "demo", "--tasks", tasks.to_str().unwrap(), "--lines", "4", "--report", report.to_str().unwrap()];
    assert_eq!(json(&arguments)["tasks"]["intent"], 1.0);
    assert!(std::fs::read_to_string(&report).unwrap().contains("</html>"));
}

#[test]
fn bench_prints_its_keys() {
    let rows = json(&["bench", "demo", "-p", "32", "-n", "4", "-r", "2", "-b", "1,2"]);
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.iter().map(|row| row["test"].as_str().unwrap()).collect::<Vec<_>>(), ["pp32", "tg4", "tg4 b2"]);
    for key in ["tokens_per_second", "stddev", "gb_per_second", "fraction_of_limit", "kernel", "threads"] {
        assert!(rows[1].get(key).is_some(), "{key}");
    }
}

#[test]
fn demo_runs_the_whole_way() {
    let got = json(&["demo"]);
    assert_eq!(got["ok"], true);
    let steps: Vec<&str> = got["steps"].as_array().unwrap().iter().map(|step| step["step"].as_str().unwrap()).collect();
    assert_eq!(steps.iter().filter(|step| **step == "quantize").count(), 3);
    assert_eq!(steps.iter().filter(|step| **step == "evaluate").count(), 4);
    assert!(steps.contains(&"generate"));
}

#[test]
fn wrong_usage_is_status_2_and_names_what_is_wrong() {
    for (arguments, name) in [
        (&["run", "demo", "hi", "--no-such-flag"][..], "--no-such-flag"),
        (&["run", "demo", "hi", "--kv", "q3"], "q3"),
        (&["run", "demo", "hi", "--threads", "0"], "0"),
        (&["run", "demo", "hi", "--isa", "mmx"], "mmx"),
        (&["run", "demo", "hi", "--top-p", "2"], "top_p"),
        (&["run", "demo", "--tokens", "1,x"], "x"),
        (&["run", "demo", "hi", "--beams", "2", "--temperature", "1"], "beams"),
        (&["run", "demo", "hi", "--ctx", "1000000"], "context"),
        (&["quantize", "demo", "-o", "out.gguf", "--format", "Q9"], "Q9"),
        (&["quantize", "demo", "-o", "out.bin"], "out.bin"),
        (&["quantize", "demo", "-o", "out.gguf", "--keep", "x"], "x"),
        (&["quantize", "demo", "-o", "out.gguf", "--method", "imatrix"], "--calibration"),
        (&["quantize", "demo", "-o", "out.gguf", "--method", "awq"], "--calibration"),
        (&["quantize", "demo", "-o", "out.gguf", "--method", "smoothquant"], "--calibration"),
        (&["quantize", "demo", "-o", "out.gguf", "--method", "best"], "--calibration"),
        (&["quantize", "demo", "-o", "out.gguf", "--max-kl", "0.1"], "--calibration"),
        (&["quantize", "demo", "-o", "out.gguf", "--max-kl", "0", "--calibration", "self"], "--max-kl 0"),
        (&["quantize", "demo", "-o", "out.gguf", "--max-kl", "nan", "--calibration", "self"], "--max-kl NaN"),
        (&["quantize", "demo", "-o", "out.gguf", "--max-kl", "1", "--format", "Q4_0"], "--format"),
        (&["quantize", "demo", "-o", "out.gguf", "--max-kl", "1", "--target-bpw", "4"], "--target-bpw"),
        (&["quantize", "demo", "-o", "out", "--target-bpw", "4", "--calibration", "x", "--per", "channel"], "--per"),
        (&["prune", "demo", "-o", "out"], "--layers"),
        (&["prune", "demo", "-o", "out", "--ffn", "0.25"], "--calibration"),
        (&["prune", "demo", "-o", "out", "--ffn", "1.5", "--method", "magnitude"], "1.5"),
        (&["prune", "demo", "-o", "out", "--heads", "0.9", "--method", "magnitude"], "all of 2 KV heads"),
        (&["prune", "demo", "-o", "out", "--pattern", "4:2"], "4:2"),
        (&["prune", "demo", "-o", "out", "--sparsity", "0.7", "--pattern", "2:4"], "0.7"),
        (&["eval", "demo"], "--text"),
        (&["logits", "demo"], "--tokens"),
        (&["bench", "demo", "-r", "0"], "-r"),
    ] {
        let (status, _) = failure(arguments);
        assert_eq!(status, 2, "{arguments:?}");
        let stderr = String::from_utf8(edgelm(arguments).get_output().stderr.clone()).unwrap();
        assert!(stderr.contains(name), "{arguments:?}: {stderr}");
    }
}

#[test]
fn what_cannot_be_done_is_status_1_and_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.gguf");
    std::fs::write(&empty, b"").unwrap();
    let broken = folder.path().join("broken.gguf");
    std::fs::write(&broken, b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff").unwrap();
    let (empty, broken) = (empty.to_str().unwrap(), broken.to_str().unwrap());
    let here = folder.path().to_str().unwrap();
    for (arguments, name) in [
        (&["inspect", "no/such/model"][..], "no/such/model"),
        (&["inspect", here], "config.json"),
        (&["inspect", empty], "empty.gguf"),
        (&["inspect", broken], "broken.gguf"),
        (&["pull", "hf.co/org/name"], "hf.co/org/name"),
        (&["run", "demo", "--tokens", "99999"], "99999"),
        (&["detokenize", "demo", "99999"], "99999"),
        (&["template", "demo", "--messages", "/no/such/file"], "/no/such/file"),
        (&["eval", "demo", "--text", "/no/such/file"], "/no/such/file"),
        (&["quantize", "demo", "-o", "/no/such/folder/out.gguf"], "/no/such/folder"),
        (&["quantize", "demo", "-o", "/tmp/out.gguf", "--keep", "nothing*=Q8_0"], "nothing*"),
    ] {
        let (status, line) = failure(arguments);
        assert_eq!(status, 1, "{arguments:?}: {line}");
        assert!(line.contains(name), "{arguments:?}: {line}");
    }
}

#[test]
fn folders_that_others_quantized_run_as_they_mean() {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/goldens/quantized");
    let folder = tempfile::tempdir().unwrap();
    for (name, quantization) in [
        ("awq-4bit", "awq, 4 bits, groups of 32"),
        ("gptq-4bit-desc_act", "gptq, 4 bits, groups of 32, act order"),
        ("fp8-block", "fp8 (e4m3), 8 bits, blocks of 64x64"),
        ("bnb-int8", "bitsandbytes, 8 bits, a scale per row"),
    ] {
        let model = goldens.join(name);
        let expected: Value = serde_json::from_slice(&std::fs::read(model.join("expected.json")).unwrap()).unwrap();
        let model = model.to_str().unwrap();
        assert_eq!(json(&["inspect", model])["quantization"], quantization);
        assert!(text(&["inspect", model]).contains(quantization));

        let prompt = ids(&expected["prompt"]["ids"]);
        let logits = |arithmetic: &[&str]| -> Vec<f64> {
            let rows = json(&[&["logits", model, "--tokens", &prompt], arithmetic].concat())["logits"].take();
            rows.as_array().unwrap().iter().flat_map(|row| row.as_array().unwrap().clone()).map(number).collect()
        };
        let want: Vec<f64> = expected["prompt"]["logits"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|row| row.as_array().unwrap().clone())
            .map(number)
            .collect();
        let worst = |got: &[f64]| got.iter().zip(&want).map(|(got, want)| (got - want).abs()).fold(0.0, f64::max);
        assert!(worst(&logits(&[])) < 1e-4, "{name}");
        assert!(worst(&logits(&["--arithmetic", "fast"])) > 1e-3, "{name}");
        let count = expected["greedy"]["ids"].as_array().unwrap().len().to_string();
        let run = json(&["run", model, "--tokens", &prompt, "--max-tokens", &count, "--ignore-eos"]);
        assert_eq!(run["tokens"], expected["greedy"]["ids"], "{name}");

        for out in ["again.gguf", "again"] {
            let out = folder.path().join(format!("{name}-{out}"));
            json(&["quantize", model, "-o", out.to_str().unwrap()]);
            assert_eq!(
                json(&["logits", out.to_str().unwrap(), "--tokens", "3,4,5"])["tokens"],
                serde_json::json!([3, 4, 5])
            );
        }
    }
    // What a config may not say is named.
    let broken = folder.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    for entry in std::fs::read_dir(goldens.join("awq-4bit")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, broken.join(path.file_name().unwrap())).unwrap();
    }
    let config = std::fs::read_to_string(broken.join("config.json")).unwrap();
    for (from, to, part) in [
        ("\"gemm\"", "\"gemv\"", "`version` `gemv` is not supported"),
        ("\"awq\"", "\"hqq\"", "`quant_method` `hqq` is not supported"),
        ("\"group_size\": 32", "\"group_size\": 64", "`qzeros` has shape"),
    ] {
        assert!(config.contains(from));
        std::fs::write(broken.join("config.json"), config.replace(from, to)).unwrap();
        let (status, line) = failure(&["inspect", broken.to_str().unwrap()]);
        assert!(status == 1 && line.contains(part), "{line}");
    }
}

fn number(value: Value) -> f64 {
    value.as_f64().unwrap()
}

#[test]
fn the_reference_page_is_what_the_program_says() {
    let mut page = String::from(
        "# Command reference\n\nGenerated from the program: `UPDATE_REFERENCE=1 cargo test -p edgelm --test cli reference`.\n",
    );
    let mut add = |arguments: &[&str]| {
        let help = text(&[arguments, &["--help"]].concat());
        let title = [&["edgelm"], arguments].concat().join(" ");
        let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
        page += &format!("\n## `{title}`\n\n```text\n{}\n```\n", lines.join("\n").trim_end());
    };
    add(&[]);
    for command in [
        "demo",
        "inspect",
        "pull",
        "run",
        "logits",
        "tokenize",
        "detokenize",
        "template",
        "quantize",
        "prune",
        "merge",
        "export",
        "compress",
        "eval",
        "bench",
        "serve",
        "keys new",
        "keys show",
    ] {
        add(&command.split(' ').collect::<Vec<_>>());
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference.md");
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == page, "docs/reference.md is not what `--help` says; set UPDATE_REFERENCE=1 to write it anew");
}
