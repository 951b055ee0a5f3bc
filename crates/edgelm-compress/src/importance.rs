//! How much each input column of each linear layer matters: the mean square of what flows through it.

use crate::{CompressError, Walk};
use edgelm_engine::{Block, Head};
use edgelm_kernels::Cpu;
use edgelm_model::{Checkpoint, LayerTensor, TensorId};
use std::{collections::HashMap, ops::ControlFlow};

/// Mean squares per tensor, `[K]` each. Tensors that share an input share a vector's values.
#[derive(Debug, Clone, Default)]
pub struct Importance {
    mean_squares: HashMap<TensorId, Vec<f32>>,
}

/// Σ x² per column and the number of rows.
#[derive(Default)]
struct Sums {
    squares: Vec<f64>,
    rows: usize,
}

impl Sums {
    fn add(&mut self, x: &[f32], rows: usize) {
        let columns = x.len() / rows.max(1);
        self.squares.resize(columns, 0.0);
        for row in x.chunks_exact(columns.max(1)) {
            for (sum, &value) in self.squares.iter_mut().zip(row) {
                *sum += f64::from(value) * f64::from(value);
            }
        }
        self.rows += rows;
    }

    fn mean(&self) -> Vec<f32> {
        self.squares.iter().map(|sum| (sum / self.rows.max(1) as f64) as f32).collect()
    }
}

impl Importance {
    /// The vector of a tensor; `None` for what no calibration input flows through.
    pub fn of(&self, id: TensorId) -> Option<&[f32]> {
        self.mean_squares.get(&id).map(Vec::as_slice)
    }
}

/// mean_squares[k] = mean over all positions of all windows of x[k]², for the input x of every linear layer and of the
/// output head.
///
/// One layer's weights are in memory at a time, beside what a [`Walk`] holds. `on_layer` is called with (done, total) after each layer, and may end it.
pub fn measure_importance(
    checkpoint: &Checkpoint,
    cpu: &Cpu,
    windows: &[Vec<u32>],
    on_layer: &mut dyn FnMut(usize, usize) -> Result<(), CompressError>,
) -> Result<Importance, CompressError> {
    let mut walk = Walk::begin(checkpoint, cpu, windows)?;
    let layers = checkpoint.config().layers.len();
    let mut importance = Importance::default();
    for layer in 0..layers {
        let block = Block::load(checkpoint, cpu, layer)?;
        let mut sums: HashMap<Vec<LayerTensor>, Sums> = HashMap::new();
        walk.go_through(&block, &mut |readers, x, rows| {
            sums.entry(readers.to_vec()).or_default().add(x, rows);
            ControlFlow::Continue(())
        })?;
        for (readers, sums) in sums {
            let mean = sums.mean();
            for reader in readers {
                importance.mean_squares.insert(TensorId::Layer(layer, reader), mean.clone());
            }
        }
        on_layer(layer + 1, layers)?;
    }
    let head = Head::load(checkpoint, cpu)?;
    let mut sums = Sums::default();
    for (index, window) in windows.iter().enumerate() {
        sums.add(&head.normed(cpu, &walk.hidden(index)?), window.len());
    }
    importance.mean_squares.insert(head.tensor(), sums.mean());
    Ok(importance)
}
