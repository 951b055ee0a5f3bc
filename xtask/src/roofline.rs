//! The roofline: speed over operations per byte read, under the two lines that no program can cross.
//! Williams, Waterman and Patterson 2009, doi:10.1145/1498765.1498785.

use crate::benchmarks::Row;
use crate::random_model::Shape;
use anyhow::Context;
use plotters::prelude::*;
use std::path::Path;

const COLORS: [(&str, RGBColor); 3] =
    [("Q4_0", RGBColor(20, 90, 200)), ("Q4_K_M", RGBColor(210, 110, 10)), ("Q8_0", RGBColor(30, 140, 70))];

/// One measurement.
struct Point {
    format: &'static str,
    test: String,
    /// Operations per byte of weights.
    intensity: f64,
    /// Operations per second, in 10⁹; and the other program's.
    gops: f64,
    other_gops: Option<f64>,
}

/// Draws the tests with two threads at depth 0; `prompt` is the length of the prefill tests.
pub fn plot(rows: &[Row], shape: &Shape, prompt: usize, path: &Path) -> anyhow::Result<()> {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.figures["threads"] == 2 && row.kv == "f16").collect();
    let points: Vec<Point> = rows.iter().filter_map(|row| point(row, shape, prompt)).collect();
    let largest = |unit: &str| {
        let limits = rows.iter().filter(|row| row.number(unit).is_some()).filter_map(|row| row.number("limit"));
        limits.fold(0.0, f64::max)
    };
    let (bandwidth, peak) = (largest("gb_per_second"), largest("tops") * 1e3);
    let speeds = || points.iter().flat_map(|point| [Some(point.gops), point.other_gops].into_iter().flatten());
    let lowest = speeds().min_by(f64::total_cmp).context("nothing was measured")?;
    let highest = speeds().fold(peak, f64::max);
    let right = points.iter().map(|point| point.intensity).fold(peak / bandwidth, f64::max) * 3.0;

    let root = SVGBackend::new(path, (760, 460)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .caption(format!("{}, 2 threads: nearer to the line is better", shape.name), ("sans-serif", 15))
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d((1.0..right).log_scale(), (lowest / 3.0..highest * 3.0).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("operations per byte of weights (log scale)")
        .y_desc("10⁹ operations per second (log scale)")
        .light_line_style(WHITE)
        .draw()?;
    let knee = peak / bandwidth;
    let roof = [(1.0, bandwidth), (knee, peak), (right, peak)];
    chart
        .draw_series(LineSeries::new(roof, BLACK.stroke_width(2)))?
        .label(format!("limit: {bandwidth:.0} GB/s, {:.1} TOPS", peak / 1e3))
        .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], BLACK.stroke_width(2)));
    for (format, color) in COLORS {
        let own = points.iter().filter(|point| point.format == format);
        let others = own.clone().filter_map(|point| Some((point.intensity, point.other_gops?)));
        chart
            .draw_series(own.map(|point| Circle::new((point.intensity, point.gops), 4, color.filled())))?
            .label(format)
            .legend(move |(x, y)| Circle::new((x + 8, y), 4, color.filled()));
        chart.draw_series(others.map(|at| Circle::new(at, 4, color.stroke_width(2))))?;
    }
    if points.iter().any(|point| point.other_gops.is_some()) {
        let hollow = BLACK.stroke_width(2);
        chart
            .draw_series(std::iter::empty::<Circle<(f64, f64), i32>>())?
            .label("hollow: llama.cpp")
            .legend(move |(x, y)| Circle::new((x + 8, y), 4, hollow));
    }
    // The formats of a test stand close together: one label for them, over the fastest.
    let style = ("sans-serif", 11).into_font().color(&BLACK);
    let is_fastest = |point: &&Point| points.iter().all(|p| p.test != point.test || p.gops <= point.gops);
    chart.draw_series(
        points
            .iter()
            .filter(is_fastest)
            .map(|point| Text::new(point.test.clone(), (point.intensity / 1.1, point.gops * 1.35), style.clone())),
    )?;
    let position = SeriesLabelPosition::LowerRight;
    chart.configure_series_labels().position(position).border_style(BLACK).background_style(WHITE).draw()?;
    root.present()?;
    Ok(())
}

/// Decode: two operations for every weight and sequence, head included. Prefill: the layers' weights, read once for
/// the whole prompt at best.
fn point(row: &Row, shape: &Shape, prompt: usize) -> Option<Point> {
    let rate = row.number("tokens_per_second")?;
    let (gops, intensity) = if let Some(tops) = row.number("tops") {
        let weights = shape.layer_weights() as f64;
        let bytes = row.file_bytes as f64 * weights / (weights + 2.0 * shape.head_weights() as f64);
        (tops * 1e3, 2.0 * weights * prompt as f64 / bytes)
    } else {
        let gops = 2.0 * (shape.layer_weights() + shape.head_weights()) as f64 * rate / 1e9;
        (gops, gops / row.number("gb_per_second")?)
    };
    let other_gops = row.number("vs_tokens_per_second").map(|other| gops * other / rate);
    Some(Point { format: row.format, test: row.test().to_owned(), intensity, gops, other_gops })
}
