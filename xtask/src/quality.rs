//! `cargo xtask quality MODEL TEXT TASKS CALIBRATION WINDOWS`: size against quality of every format, as a table and a plot in `docs/`.

use crate::program::{self, Program, number};
use anyhow::{Context, bail};
use plotters::prelude::*;
use serde_json::Value;
use std::{fmt::Write, fs, path::Path};

/// From nearly lossless to small.
const FORMATS: [&str; 8] = ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M", "Q2_K"];

/// Bits per weight of mixtures: those that files of llama-quantize with these formats have, for comparison.
const TARGETS: [&str; 8] = ["6.99", "6.02", "5.31", "4.73", "4.55", "4.35", "3.61", "3.14"];

/// The method of mixtures, in tables and plots.
const MIXTURE: &str = "gptq, mixed";

/// One measured file.
struct Point {
    name: &'static str,
    method: &'static str,
    bits_per_weight: f64,
    perplexity: f64,
    parent_perplexity: f64,
    kl_divergence: f64,
    top1_agreement: f64,
    accuracy: f64,
}

/// Arguments: MODEL TEXT TASKS CALIBRATION WINDOWS.
pub fn run(arguments: &[&str]) -> anyhow::Result<()> {
    let [model, text, tasks, calibration, windows] = arguments else {
        bail!("usage: cargo xtask quality MODEL TEXT TASKS CALIBRATION WINDOWS");
    };
    let program = Program::build()?;
    let out_name = program.scratch("quantized.gguf");
    let mut points = Vec::new();
    let formats = FORMATS.iter().flat_map(|name| ["rtn", "imatrix", "gptq"].map(|method| (*name, method)));
    for (name, method) in formats.chain(TARGETS.map(|bits| (bits, MIXTURE))) {
        let mut quantize = vec!["quantize", model, "-o", &out_name];
        match method {
            "rtn" => quantize.extend(["--format", name]),
            MIXTURE => quantize.extend(["--target-bpw", name, "--method", "gptq", "--calibration", calibration]),
            _ => quantize.extend(["--format", name, "--method", method, "--calibration", calibration]),
        }
        let made = program.json(&quantize)?;
        let seen = program.json(&[
            "eval",
            &out_name,
            "--against",
            model,
            "--text",
            text,
            "--windows",
            windows,
            "--tasks",
            tasks,
            "--lines",
            "20",
        ])?;
        let accuracies: Vec<f64> =
            seen["tasks"].as_object().context("no tasks")?.values().filter_map(Value::as_f64).collect();
        let point = Point {
            name,
            method,
            bits_per_weight: number(&made, "bits_per_weight")?,
            perplexity: number(&seen, "perplexity")?,
            parent_perplexity: number(&seen, "parent_perplexity")?,
            kl_divergence: number(&seen, "kl_divergence")?,
            top1_agreement: number(&seen, "top1_agreement")?,
            accuracy: accuracies.iter().sum::<f64>() / accuracies.len().max(1) as f64,
        };
        eprintln!("{name} {method}: {:.2} bits, KL {:.4}", point.bits_per_weight, point.kl_divergence);
        points.push(point);
    }
    let root = program::root();
    fs::write(root.join("docs/quality.md"), page(&points, model, windows))?;
    plot(&points, &root.join("docs/quality.svg"))
}

fn page(points: &[Point], model: &str, windows: &str) -> String {
    let name = Path::new(model).file_name().map_or(model.into(), |name| name.to_string_lossy());
    let mut page = format!(
        "# Quality of the block formats, and of mixtures of them\n\nWritten by `cargo xtask quality`. Model: {name}; first {windows} windows of 1,024 tokens of the WikiText-2 test \
         split; 20 chats of each of five tasks. Bits count every weight with its scales, embedding and norms too.\n\n\
         ![KL divergence over bits per weight](quality.svg)\n\n\
         | format | method | bits | perplexity | change | KL to parent | same top token | tasks right |\n|---|---|---|---|---|---|---|---|\n"
    );
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
                own.map(|p| Text::new(p.name, (p.bits_per_weight + 0.07, p.kl_divergence), style.clone())),
            )?;
        }
    }
    let labels = SeriesLabelPosition::UpperRight;
    chart.configure_series_labels().position(labels).border_style(BLACK).background_style(WHITE).draw()?;
    root.present()?;
    Ok(())
}
