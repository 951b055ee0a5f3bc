//! `cargo xtask quality MODEL TEXT TASKS CALIBRATION[,CALIBRATION] WINDOWS`: size against quality of every format, as a table and a plot in `docs/`.
//!
//! Hours of work, so each point is kept in `target/quality.jsonl` and a run that was ended goes on; remove the file to measure
//! everything anew.

use crate::program::{self, Program, number};
use anyhow::{Context, bail};
use plotters::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    fmt::Write as _,
    fs::{self, File},
    io::Write as _,
    path::Path,
};

/// From nearly lossless to small.
const FORMATS: [&str; 8] = ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M", "Q2_K"];

/// Bits per weight of mixtures: no more than files of llama-quantize have in Q6_K, Q5_K_M, Q4_K_M, IQ4_XS, IQ3_XXS and IQ2_XS, for
/// comparison; and fewer. Those that tell most come first.
const TARGETS: [&str; 7] = ["4.5", "3.6", "2.56", "6.99", "3.1", "5.31", "6.02"];

/// Windows of calibration data: the program's default.
const SAMPLES: &str = "128";

/// The method of mixtures, in tables and plots.
const MIXTURE: &str = "gptq, mixed";

/// In the order of the table, mixtures before them. Those that tell most come first.
const METHODS: [&str; 3] = ["gptq", "imatrix", "rtn"];

/// MODEL TEXT TASKS CALIBRATION WINDOWS. CALIBRATION may be several sources with commas between.
type Arguments<'a> = [&'a str; 5];

/// One measured file.
#[derive(Clone, Serialize, Deserialize)]
struct Point {
    /// What it was measured with.
    arguments: [String; 5],
    name: String,
    method: String,
    bits_per_weight: f64,
    perplexity: f64,
    parent_perplexity: f64,
    kl_divergence: f64,
    top1_agreement: f64,
    accuracy: f64,
}

/// Writes the page and the plot anew with every point.
pub fn run(arguments: &[&str]) -> anyhow::Result<()> {
    let Ok(with) = <&Arguments<'_>>::try_from(arguments) else {
        bail!("usage: cargo xtask quality MODEL TEXT TASKS CALIBRATION WINDOWS");
    };
    let program = Program::build()?;
    let kept = program::target().join("quality.jsonl");
    let before = read(&kept, with)?;
    let mut file = File::options().create(true).append(true).open(&kept)?;
    let root = program::root();
    let mut points: Vec<Point> = Vec::new();
    let formats = METHODS.into_iter().flat_map(|method| FORMATS.map(|name| (name, method)));
    for (name, method) in TARGETS.map(|bits| (bits, MIXTURE)).into_iter().chain(formats) {
        let point = match before.iter().find(|point| (&*point.name, &*point.method) == (name, method)) {
            Some(point) => point.clone(),
            None => {
                let point = measure(&program, name, method, with)?;
                writeln!(file, "{}", serde_json::to_string(&point)?)?;
                point
            }
        };
        eprintln!("{name} {method}: {:.2} bits, KL {:.4}", point.bits_per_weight, point.kl_divergence);
        points.push(point);
        fs::write(root.join("docs/quality.md"), page(&points, with))?;
        plot(&points, &root.join("docs/quality.svg"))?;
    }
    Ok(())
}

/// The points that an earlier run with these arguments left.
fn read(kept: &Path, with: &Arguments<'_>) -> anyhow::Result<Vec<Point>> {
    let lines = if kept.exists() { fs::read_to_string(kept)? } else { String::new() };
    let points = lines.lines().map(|line| Ok(serde_json::from_str::<Point>(line)?));
    let points: Vec<Point> = points.collect::<anyhow::Result<_>>().with_context(|| format!("`{}`", kept.display()))?;
    Ok(points.into_iter().filter(|point| point.arguments == *with).collect())
}

/// Makes a file and measures it.
fn measure(program: &Program, name: &str, method: &str, with: &Arguments<'_>) -> anyhow::Result<Point> {
    let [model, text, tasks, calibration, windows] = with;
    let out = program.scratch("quantized.gguf");
    let mut quantize = vec!["quantize", model, "-o", &out];
    match method {
        "rtn" => quantize.extend(["--format", name]),
        MIXTURE => quantize.extend(["--target-bpw", name, "--method", "gptq"]),
        _ => quantize.extend(["--format", name, "--method", method]),
    }
    if method != "rtn" {
        quantize.extend(["--samples", SAMPLES]);
        quantize.extend(calibration.split(',').flat_map(|source| ["--calibration", source]));
    }
    let made = program.json(&quantize)?;
    let mut eval = vec!["eval", &out, "--against", model, "--text", text, "--windows", windows];
    eval.extend(["--tasks", tasks, "--lines", "20"]);
    let seen = program.json(&eval)?;
    let accuracies = seen["tasks"].as_object().context("no tasks")?.values().filter_map(Value::as_f64);
    let accuracies: Vec<f64> = accuracies.collect();
    Ok(Point {
        arguments: with.map(Into::into),
        name: name.into(),
        method: method.into(),
        bits_per_weight: number(&made, "bits_per_weight")?,
        perplexity: number(&seen, "perplexity")?,
        parent_perplexity: number(&seen, "parent_perplexity")?,
        kl_divergence: number(&seen, "kl_divergence")?,
        top1_agreement: number(&seen, "top1_agreement")?,
        accuracy: accuracies.iter().sum::<f64>() / accuracies.len().max(1) as f64,
    })
}

fn page(points: &[Point], with: &Arguments<'_>) -> String {
    let base = |path: &str| Path::new(path).file_name().map_or(path.into(), |name| name.to_string_lossy().into_owned());
    let [model, _, _, calibration, windows] = with;
    let sources = calibration.split(',').map(base).collect::<Vec<String>>().join(" and ");
    let mut page = format!(
        "# Quality of the block formats, and of mixtures of them\n\nWritten by `cargo xtask quality`. Model: {}, calibrated with \
         {SAMPLES} windows of {sources}; first {windows} windows of 1,024 tokens of the WikiText-2 test split; 20 chats of each of \
         five tasks. Bits count every weight with its scales, embedding and norms too.\n\n\
         ![KL divergence over bits per weight](quality.svg)\n\n\
         | format | method | bits | perplexity | change | KL to parent | same top token | tasks right |\n|---|---|---|---|---|---|---|---|\n",
        base(model)
    );
    let mut points: Vec<&Point> = points.iter().collect();
    let place = |point: &Point| METHODS.iter().position(|method| *method == point.method);
    points.sort_by(|a, b| place(a).cmp(&place(b)).then(b.bits_per_weight.total_cmp(&a.bits_per_weight)));
    for point in points {
        let change = (point.perplexity / point.parent_perplexity - 1.0) * 100.0;
        // Writing to a string cannot fail.
        let _ = writeln!(
            page,
            "| {} | {} | {:.2} | {:.3} | {change:+.2} % | {:.4} | {:.1} % | {:.2} |",
            point.name,
            point.method,
            point.bits_per_weight,
            point.perplexity,
            point.kl_divergence,
            point.top1_agreement * 100.0,
            point.accuracy,
        );
    }
    page
}

fn plot(points: &[Point], path: &Path) -> anyhow::Result<()> {
    let root = SVGBackend::new(path, (760, 460)).into_drawing_area();
    root.fill(&WHITE)?;
    let bits = points.iter().map(|point| point.bits_per_weight);
    let range = bits.clone().fold(f64::MAX, f64::min) - 0.3..bits.fold(0.0, f64::max) + 0.6;
    let kl = points.iter().map(|point| point.kl_divergence);
    let range_kl = kl.clone().fold(f64::MAX, f64::min) / 1.6..kl.fold(0.0, f64::max) * 1.8;
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .caption("size against quality: left is smaller, down is better", ("sans-serif", 15))
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(range, range_kl.log_scale())?;
    chart
        .configure_mesh()
        .x_desc("bits per weight, everything counted")
        .y_desc("KL divergence from the parent (log scale)")
        .light_line_style(WHITE)
        .draw()?;
    let colors = [
        ("rtn", RGBColor(150, 150, 150)),
        ("imatrix", RGBColor(20, 90, 200)),
        ("gptq", RGBColor(0, 130, 70)),
        (MIXTURE, RGBColor(200, 60, 20)),
    ];
    for (method, color) in colors {
        let own = points.iter().filter(|point| point.method == method);
        chart
            .draw_series(own.clone().map(|p| Circle::new((p.bits_per_weight, p.kl_divergence), 4, color.filled())))?
            .label(method)
            .legend(move |(x, y)| Circle::new((x + 8, y), 4, color.filled()));
        if method == "imatrix" {
            let style = ("sans-serif", 12).into_font().color(&BLACK);
            chart.draw_series(
                own.map(|p| Text::new(p.name.clone(), (p.bits_per_weight + 0.07, p.kl_divergence), style.clone())),
            )?;
        }
    }
    let labels = SeriesLabelPosition::UpperRight;
    chart.configure_series_labels().position(labels).border_style(BLACK).background_style(WHITE).draw()?;
    root.present()?;
    Ok(())
}
