//! Calibration data on its way through the layers, one layer at a time.

use crate::{CompressError, activations::Activations, moments::Moments};
use edgelm_engine::{Block, Head, Observer};
use edgelm_kernels::Cpu;
use edgelm_model::{LayerTensor, TensorId, Tensors};
use std::ops::ControlFlow;

/// What a matrix reads of one window.
pub(crate) struct Read {
    /// `[T, K]`; of an expert, the rows that were sent to it.
    pub x: Vec<f32>,
    /// T.
    pub rows: usize,
    /// The hidden states `[T, D]` at that time: what its outputs are added to, where it is the last of its half of the layer.
    pub stream: Vec<f32>,
}

/// The hidden states of all calibration windows before some layer.
///
/// Memory: windows × length × hidden_size × 4 bytes, in a file beyond [`Activations`]' limit; and what one layer needs.
pub struct Walk<'a> {
    cpu: &'a Cpu,
    hidden: Activations,
    hidden_size: usize,
    layer: usize,
}

impl<'a> Walk<'a> {
    /// Before the first layer. Errors on token ids outside the vocabulary.
    pub fn begin(tensors: &dyn Tensors, cpu: &'a Cpu, windows: &[Vec<u32>]) -> Result<Self, CompressError> {
        let d = tensors.config().hidden_size;
        let mut hidden = Activations::new(windows.iter().map(|window| window.len() * d))?;
        for (index, window) in windows.iter().enumerate() {
            hidden.store(index, &edgelm_engine::embed_window(tensors, cpu, window)?)?;
        }
        Ok(Self { cpu, hidden, hidden_size: d, layer: 0 })
    }

    /// The layer that comes next.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// Number of calibration windows.
    pub(crate) fn windows(&self) -> usize {
        self.hidden.len()
    }

    /// The hidden states of a window `[T, D]` before the next layer.
    pub(crate) fn hidden(&self, index: usize) -> Result<Vec<f32>, CompressError> {
        self.hidden.load(index)
    }

    /// D.
    pub(crate) fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    /// Positions of all windows.
    pub(crate) fn positions(&self) -> usize {
        self.hidden.values() / self.hidden_size.max(1)
    }

    /// The machine it runs on.
    pub fn cpu(&self) -> &'a Cpu {
        self.cpu
    }

    /// Shows `observer` the input `[T, K]` of `reader` in the next layer, and T, window by window, without moving on.
    pub(crate) fn inputs(
        &self,
        tensors: &dyn Tensors,
        reader: LayerTensor,
        mut observer: impl FnMut(&[f32], usize),
    ) -> Result<(), CompressError> {
        let block = Block::load(tensors, self.cpu, self.layer)?;
        for index in 0..self.hidden.len() {
            let read = self.read(&block, index, reader)?;
            if read.rows > 0 {
                observer(&read.x, read.rows);
            }
        }
        Ok(())
    }

    /// Shows `observer` what `reader` reads in the next layer of `parent`, which is `parent_block`, and what it reads in that
    /// here, window by window, without moving on.
    pub(crate) fn inputs_beside(
        &self,
        tensors: &dyn Tensors,
        parent: &Walk<'_>,
        parent_block: &Block,
        reader: LayerTensor,
        mut observer: impl FnMut(&Read, &Read),
    ) -> Result<(), CompressError> {
        let block = Block::load(tensors, self.cpu, self.layer)?;
        for index in 0..self.hidden.len() {
            observer(&parent.read(parent_block, index, reader)?, &self.read(&block, index, reader)?);
        }
        Ok(())
    }

    /// What `reader` reads of window `index` in `block`, run as the next layer, and the hidden states then.
    fn read(&self, block: &Block, index: usize, reader: LayerTensor) -> Result<Read, CompressError> {
        self.passed(block, index, reader, Some(reader))
    }

    /// What `reader` reads of window `index` in `block`, run as the next layer, and the hidden states where `until` reads, or
    /// after the layer.
    pub(crate) fn passed(
        &self,
        block: &Block,
        index: usize,
        reader: LayerTensor,
        until: Option<LayerTensor>,
    ) -> Result<Read, CompressError> {
        let mut read = Read { x: Vec::new(), rows: 0, stream: self.hidden.load(index)? };
        let rows = read.stream.len() / self.hidden_size;
        let _ = block.run_window(self.cpu, &mut read.stream, rows, &mut |readers, x, rows| {
            if readers.contains(&reader) {
                (read.x, read.rows) = (x.to_vec(), rows);
            }
            match until {
                Some(until) if readers.contains(&until) => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        });
        Ok(read)
    }

    /// Second moments of the input of `reader` in the next layer.
    pub fn moments(&self, tensors: &dyn Tensors, reader: LayerTensor) -> Result<Moments, CompressError> {
        let shape = tensors.config().tensor_shape(TensorId::Layer(self.layer, reader)).unwrap_or_default();
        let mut moments = Moments::new(shape.last().copied().unwrap_or(0));
        self.inputs(tensors, reader, |x, rows| moments.add(x, rows))?;
        Ok(moments)
    }

    /// Runs the next layer with the weights as they are in `tensors`.
    pub fn advance(&mut self, tensors: &dyn Tensors) -> Result<(), CompressError> {
        let block = Block::load(tensors, self.cpu, self.layer)?;
        self.go_through(&block, &mut |_, _, _| ControlFlow::Continue(()))
    }

    /// Runs `block` as the next layer, for all windows; `observer`, which must not end it, sees the inputs of its linear layers.
    pub(crate) fn go_through(&mut self, block: &Block, observer: &mut Observer<'_>) -> Result<(), CompressError> {
        for index in 0..self.hidden.len() {
            let mut hidden = self.hidden.load(index)?;
            let rows = hidden.len() / self.hidden_size;
            let _ = block.run_window(self.cpu, &mut hidden, rows, observer);
            self.hidden.store(index, &hidden)?;
        }
        self.layer += 1;
        Ok(())
    }

    /// Another walk from here on.
    pub(crate) fn fork(&self) -> Result<Self, CompressError> {
        let loaded = (0..self.hidden.len()).map(|index| self.hidden.load(index));
        let loaded = loaded.collect::<Result<Vec<_>, _>>()?;
        let mut hidden = Activations::new(loaded.iter().map(Vec::len))?;
        loaded.iter().enumerate().try_for_each(|(index, values)| hidden.store(index, values))?;
        Ok(Self { hidden, ..*self })
    }

    /// Second moments of the input of the output head, after the last layer.
    pub fn head_moments(&self, tensors: &dyn Tensors) -> Result<Moments, CompressError> {
        let head = Head::load(tensors, self.cpu)?;
        let mut moments = Moments::new(tensors.config().embedding_size);
        for index in 0..self.hidden.len() {
            let hidden = self.hidden.load(index)?;
            moments.add(&head.normed(self.cpu, &hidden), hidden.len() / self.hidden_size);
        }
        Ok(moments)
    }
}
