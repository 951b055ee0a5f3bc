//! Tables for people: what became of tensors, and what could be had for other sizes.

use crate::output;
use comfy_table::Table;
use edgelm_compress::{TensorReport, mixed::ParetoFront};

/// One row per tensor.
pub fn tensors(tensors: &[TensorReport]) -> Table {
    let has_output_errors = tensors.iter().any(|tensor| tensor.relative_output_error.is_some());
    let mut header = vec!["tensor", "from", "to", "bytes", "relative error"];
    header.extend(has_output_errors.then_some("relative output error"));
    let mut table = output::table(&header);
    for tensor in tensors {
        let error = format!("{:.5}", tensor.relative_rms_error);
        let bytes = output::bytes(tensor.bytes);
        let mut row = vec![tensor.name.clone(), tensor.from.clone(), tensor.format.clone(), bytes, error];
        if has_output_errors {
            row.push(tensor.relative_output_error.map(|error| format!("{error:.5}")).unwrap_or_default());
        }
        table.add_row(row);
    }
    table
}

/// One row per mixture; the one that was chosen is marked.
pub fn pareto(front: &ParetoFront) -> Table {
    let mut table = output::table(&["", "matrices", "bits per weight", "expected KL"]);
    let mut points: Vec<_> = front.points.iter().map(|point| ("", point)).collect();
    let at = points.partition_point(|(_, point)| point.matrix_bytes < front.chosen.matrix_bytes);
    points.insert(at, ("chosen", &front.chosen));
    for (mark, point) in points {
        table.add_row([
            mark.to_owned(),
            output::bytes(point.matrix_bytes),
            format!("{:.2}", point.bits_per_weight),
            format!("{:.5}", point.expected_kl),
        ]);
    }
    table
}
