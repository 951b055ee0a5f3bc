//! The calibration data on its way through two models at once: the one that is pruned, and the one that it came from.

use crate::{CompressError, Walk, moments::Moments};
use edgelm_engine::{Block, Observer};
use edgelm_kernels::Cpu;
use edgelm_model::{Checkpoint, Edited, LayerTensor, TensorId, Tensors};
use faer::{Accum, Mat, MatRef, Par, linalg::matmul::matmul};
use std::ops::ControlFlow;

/// What a matrix should do, seen at its input.
pub(crate) struct Seen {
    /// H of its inputs x in the pruned model.
    pub moments: Moments,
    /// Σ r·xᵀ / positions `[R, K]`. For `o` and `down`, r is what the hidden states behind them lack to be the parent's, and
    /// R is the hidden size; for the others, r is what x itself lacks, and R is K.
    pub missing: Mat<f32>,
}

/// Hidden states of parent and child before the next layer of the child.
pub(crate) struct Lockstep<'a> {
    checkpoint: &'a Checkpoint,
    parent: Walk<'a>,
    child: Walk<'a>,
}

impl<'a> Lockstep<'a> {
    /// Before the first layer.
    pub fn begin(checkpoint: &'a Checkpoint, cpu: &'a Cpu, windows: &[Vec<u32>]) -> Result<Self, CompressError> {
        let walk = || Walk::begin(checkpoint, cpu, windows);
        Ok(Self { checkpoint, parent: walk()?, child: walk()? })
    }

    /// What `reader` of the child's next layer sees, with that layer as it is in `edited`.
    pub fn see(&self, edited: &Edited<'_>, reader: LayerTensor) -> Result<Seen, CompressError> {
        use LayerTensor::{Down, Gate, O};
        let (cpu, layer) = (self.child.cpu(), self.child.layer());
        let shape = edited.config().tensor_shape(TensorId::Layer(layer, reader)).unwrap_or_default();
        let columns = shape.last().copied().unwrap_or(0);
        let writes_hidden = matches!(reader, O | Down);
        let outputs = if writes_hidden { edited.config().hidden_size } else { columns };
        let mut moments = Moments::new(columns);
        let mut missing = Mat::<f32>::zeros(outputs, columns);
        let child = Block::load(edited, cpu, layer)?;
        // The hidden states behind `down` are those that the parent's walk has come to.
        let parent = match reader {
            Down => None,
            _ => Some(Block::load(self.checkpoint, cpu, self.parent.layer())?),
        };
        // `o` has written to the hidden states when `gate` reads them.
        let last = match reader {
            O => Some(Gate),
            Down => None,
            other => Some(other),
        };
        let d = edited.config().hidden_size;
        for index in 0..self.child.windows() {
            let mut x = Vec::new();
            let mut after = self.child.hidden(index)?;
            let rows = after.len() / d;
            run(&child, cpu, &mut after, rows, reader, last, &mut x);
            let mut lacks = self.parent.hidden(index)?;
            if let Some(parent) = &parent {
                let mut parent_x = Vec::new();
                run(parent, cpu, &mut lacks, rows, reader, last, &mut parent_x);
                if !writes_hidden {
                    lacks = parent_x;
                }
            }
            let has = if writes_hidden { &after } else { &x };
            lacks.iter_mut().zip(has).for_each(|(lacks, has)| *lacks -= has);
            moments.add(&x, rows);
            let lacks = MatRef::from_row_major_slice(&lacks, rows, outputs);
            let x = MatRef::from_row_major_slice(&x, rows, columns);
            matmul(missing.as_mut(), Accum::Add, lacks.transpose(), x, 1.0, Par::rayon(0));
        }
        let scale = 1.0 / moments.rows().max(1) as f32;
        missing *= faer::Scale(scale);
        Ok(Seen { moments, missing })
    }

    /// Moves the parent to where the child will be after its next layer: before the parent's layer `next`.
    pub fn advance_parent(&mut self, next: usize) -> Result<(), CompressError> {
        while self.parent.layer() < next {
            self.parent.advance(self.checkpoint)?;
        }
        Ok(())
    }

    /// Moves the child on by the layer as it is in `edited`.
    pub fn advance_child(&mut self, edited: &Edited<'_>) -> Result<(), CompressError> {
        self.child.advance(edited)
    }
}

/// Runs a window through a layer, keeping the input of `reader` in `x`, until the input of `last` is reached.
fn run(
    block: &Block,
    cpu: &Cpu,
    hidden: &mut [f32],
    rows: usize,
    reader: LayerTensor,
    last: Option<LayerTensor>,
    x: &mut Vec<f32>,
) {
    let observer: &mut Observer<'_> = &mut |readers, input, _| {
        if readers.contains(&reader) {
            x.extend_from_slice(input);
        }
        match last {
            Some(last) if readers.contains(&last) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    };
    let _ = block.run_window(cpu, hidden, rows, observer);
}
