//! The HTML page of `compress` and `quantize`: no scripts, no other files. Every text from outside is escaped.

use anyhow::Context;
use edgelm_compress::{
    TensorReport, count_formats,
    mixed::{ParetoFront, ParetoPoint},
    recipe::{GateReport, PassReport},
};
use edgelm_eval::html_parts::{Bar, Escaped, Grouped, Head};
use std::{
    fmt::{self, Display},
    path::Path,
};

/// What a page shows.
pub struct Page<'a> {
    /// Name.
    pub model: &'a str,
    /// File.
    pub output: &'a Path,
    /// Its name, if there was one.
    pub recipe: Option<&'a str>,
    /// Weight files before.
    pub input_bytes: u64,
    /// In order.
    pub passes: &'a [PassReport],
    /// In order.
    pub gates: &'a [GateReport],
}

/// Writes the page to a file.
pub fn write(path: &Path, page: &Page<'_>) -> anyhow::Result<()> {
    std::fs::write(path, page.to_string()).with_context(|| format!("cannot write `{}`", path.display()))
}

impl Display for Page<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = format!("EdgeLM compression: {}", self.model);
        write!(f, "{}", Head { title: &title, heading: &format!("Compression of {}", self.model) })?;
        self.write_facts(f)?;
        write_gates(f, self.gates)?;
        for (index, pass) in self.passes.iter().enumerate() {
            writeln!(f, "<h2>{}. {}</h2>", index + 1, Escaped(&pass.title))?;
            for note in &pass.notes {
                writeln!(f, "<p class=\"note\">{}</p>", Escaped(note))?;
            }
            write_formats(f, &pass.tensors)?;
            if let Some(front) = &pass.pareto {
                write_front(f, front)?;
            }
            write_layers(f, &pass.tensors)?;
            write_tensors(f, &pass.tensors)?;
        }
        f.write_str("</body>\n</html>\n")
    }
}

impl Page<'_> {
    /// Sizes after each pass.
    fn write_facts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<p>{}", Escaped(&self.output.display().to_string()))?;
        if let Some(recipe) = self.recipe {
            write!(f, ", by recipe {}", Escaped(recipe))?;
        }
        f.write_str(
            "</p>\n<table>\n<tr><th></th><th class=\"number\">bytes</th><th class=\"number\">weights</th>\
             <th class=\"number\">bits per weight</th><th class=\"number\">seconds</th><th></th></tr>\n",
        )?;
        writeln!(
            f,
            "<tr><td>before</td><td class=\"number\">{}</td><td></td><td></td><td></td><td>{}</td></tr>",
            Grouped(self.input_bytes),
            Bar(1.0)
        )?;
        for pass in self.passes {
            writeln!(
                f,
                "<tr><td>{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td><td class=\"number\">{:.2}</td>\
                 <td class=\"number\">{:.1}</td><td>{}</td></tr>",
                Escaped(&pass.title),
                Grouped(pass.output_bytes),
                Grouped(pass.parameters),
                pass.bits_per_weight,
                pass.seconds,
                Bar(pass.output_bytes as f64 / self.input_bytes.max(1) as f64)
            )?;
        }
        f.write_str("</table>\n")
    }
}

fn write_gates(f: &mut fmt::Formatter<'_>, gates: &[GateReport]) -> fmt::Result {
    if gates.is_empty() {
        return Ok(());
    }
    f.write_str(
        "<h2>Gates</h2>\n<table>\n<tr><th>gate</th><th>after</th><th class=\"number\">limit</th>\
         <th class=\"number\">measured</th><th></th></tr>\n",
    )?;
    for gate in gates {
        let (class, word) = if gate.passed { ("", "passed") } else { (" class=\"wrong\"", "failed") };
        writeln!(
            f,
            "<tr><td>{}</td><td>{}</td><td class=\"number\">{}</td><td class=\"number\">{:.6}</td><td{class}>{word}</td></tr>",
            Escaped(&gate.gate),
            Escaped(&gate.after),
            gate.limit,
            gate.measured
        )?;
    }
    f.write_str("</table>\n")
}

/// Bytes per format.
fn write_formats(f: &mut fmt::Formatter<'_>, tensors: &[TensorReport]) -> fmt::Result {
    if tensors.is_empty() {
        return Ok(());
    }
    f.write_str(
        "<h3>Formats</h3>\n<table>\n<tr><th>format</th><th class=\"number\">tensors</th><th class=\"number\">bytes</th>\
         <th></th></tr>\n",
    )?;
    let bytes = |name: &str| tensors.iter().filter(|tensor| tensor.format == name).map(|tensor| tensor.bytes).sum();
    let total: u64 = tensors.iter().map(|tensor| tensor.bytes).sum();
    for (name, count) in count_formats(tensors) {
        let bytes: u64 = bytes(name);
        writeln!(
            f,
            "<tr><td>{}</td><td class=\"number\">{count}</td><td class=\"number\">{}</td><td>{}</td></tr>",
            Escaped(name),
            Grouped(bytes),
            Bar(bytes as f64 / total.max(1) as f64)
        )?;
    }
    f.write_str("</table>\n")
}

/// Where its output is known, the error of that, else of the weights.
fn error_of(tensor: &TensorReport) -> f64 {
    tensor.relative_output_error.unwrap_or(tensor.relative_rms_error)
}

/// `blk.3` of `blk.3.attn_q.weight`; other tensors stand for themselves.
fn layer_of(name: &str) -> &str {
    let end = name.match_indices('.').nth(1).map_or(name.len(), |(at, _)| at);
    if name.starts_with("blk.") { &name[..end] } else { name }
}

/// Root of the mean square of the errors of a layer's tensors, as bars.
fn write_layers(f: &mut fmt::Formatter<'_>, tensors: &[TensorReport]) -> fmt::Result {
    let mut layers: Vec<(&str, f64, usize)> = Vec::new();
    for tensor in tensors.iter().filter(|tensor| tensor.relative_rms_error > 0.0) {
        let (name, square) = (layer_of(&tensor.name), error_of(tensor).powi(2));
        match layers.iter_mut().find(|layer| layer.0 == name) {
            Some(layer) => {
                layer.1 += square;
                layer.2 += 1;
            }
            None => layers.push((name, square, 1)),
        }
    }
    let errors: Vec<(&str, f64)> =
        layers.into_iter().map(|(name, sum, count)| (name, (sum / count as f64).sqrt())).collect();
    let largest = errors.iter().map(|layer| layer.1).fold(0.0, f64::max);
    if largest <= 0.0 {
        return Ok(());
    }
    f.write_str(
        "<h3>Relative error by layer</h3>\n<p class=\"note\">Of outputs on the calibration data where the method looks at \
         them, else of weights.</p>\n<table>\n",
    )?;
    for (name, error) in errors {
        let bar = Bar(error / largest);
        writeln!(f, "<tr><td>{}</td><td class=\"number\">{error:.5}</td><td>{bar}</td></tr>", Escaped(name))?;
    }
    f.write_str("</table>\n")
}

fn write_tensors(f: &mut fmt::Formatter<'_>, tensors: &[TensorReport]) -> fmt::Result {
    if tensors.is_empty() {
        return Ok(());
    }
    write!(
        f,
        "<details>\n<summary>{} tensors</summary>\n<table>\n<tr><th>tensor</th><th>from</th><th>to</th>\
         <th class=\"number\">bytes</th><th class=\"number\">relative error</th>\
         <th class=\"number\">of outputs</th></tr>\n",
        tensors.len()
    )?;
    for tensor in tensors {
        let output = tensor.relative_output_error.map(|error| format!("{error:.5}")).unwrap_or_default();
        writeln!(
            f,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td class=\"number\">{}</td><td class=\"number\">{:.5}</td>\
             <td class=\"number\">{output}</td></tr>",
            Escaped(&tensor.name),
            Escaped(&tensor.from),
            Escaped(&tensor.format),
            Grouped(tensor.bytes),
            tensor.relative_rms_error
        )?;
    }
    f.write_str("</table>\n</details>\n")
}

/// Size against expected divergence, the latter on a logarithmic axis.
fn write_front(f: &mut fmt::Formatter<'_>, front: &ParetoFront) -> fmt::Result {
    const WIDTH: f64 = 640.0;
    const HEIGHT: f64 = 300.0;
    const MARGIN: f64 = 56.0;
    // A sum of zero has no logarithm; nothing that small is told apart by eye.
    let height_of = |point: &ParetoPoint| point.expected_kl.max(1e-9).log10();
    let all = || front.points.iter().chain([&front.chosen]);
    let (mut left, mut right) = (f64::INFINITY, f64::NEG_INFINITY);
    let (mut bottom, mut top) = (f64::INFINITY, f64::NEG_INFINITY);
    for point in all() {
        (left, right) = (left.min(point.bits_per_weight), right.max(point.bits_per_weight));
        (bottom, top) = (bottom.min(height_of(point)), top.max(height_of(point)));
    }
    (left, right, bottom, top) = (left.floor(), right.ceil(), bottom.floor(), top.ceil());
    let x = |bits: f64| MARGIN + (bits - left) / (right - left).max(1.0) * (WIDTH - 1.5 * MARGIN);
    let y = |log: f64| HEIGHT - MARGIN - (log - bottom) / (top - bottom).max(1.0) * (HEIGHT - 1.5 * MARGIN);
    write!(
        f,
        "<h3>Best mixtures by size</h3>\n<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"expected KL divergence over bits per weight\" font-size=\"12\" fill=\"currentColor\">\n"
    )?;
    let mut step = bottom;
    while step <= top {
        writeln!(
            f,
            "<path d=\"M{MARGIN} {0:.1}H{1}\" stroke=\"#8884\"/><text x=\"{2}\" y=\"{3:.1}\" text-anchor=\"end\">1e{step}</text>",
            y(step),
            WIDTH - MARGIN / 2.0,
            MARGIN - 6.0,
            y(step) + 4.0
        )?;
        step += 1.0;
    }
    let mut step = left;
    while step <= right {
        writeln!(
            f,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{step}</text>",
            x(step),
            HEIGHT - MARGIN + 18.0
        )?;
        step += 1.0;
    }
    writeln!(
        f,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">bits per weight</text><text x=\"{MARGIN}\" y=\"14\">expected KL</text>",
        WIDTH / 2.0,
        HEIGHT - 12.0
    )?;
    let line: Vec<String> = front
        .points
        .iter()
        .map(|point| format!("{:.1},{:.1}", x(point.bits_per_weight), y(height_of(point))))
        .collect();
    writeln!(f, "<polyline points=\"{}\" fill=\"none\" stroke=\"#3b7dd8\" stroke-width=\"2\"/>", line.join(" "))?;
    for point in all() {
        let (color, radius) = if *point == front.chosen { ("#c2410c", 6) } else { ("#3b7dd8", 3) };
        writeln!(
            f,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{radius}\" fill=\"{color}\"/>",
            x(point.bits_per_weight),
            y(height_of(point))
        )?;
    }
    f.write_str("</svg>\n")
}
