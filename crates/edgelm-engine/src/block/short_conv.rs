//! LFM2's mixer: a short convolution between two gates that its input makes.

use super::{
    BlockScratch, Observer, Rows,
    conv::Conv,
    matmul,
    matrices::{Matrices, Projection},
    mixer::MixerScratch,
    shared_input_scale,
};
use crate::{EngineError, adapter::AdaptedRows};
use edgelm_kernels::Cpu;
use edgelm_model::{LayerTensor, ShortConv as Config, TensorId, Tensors};
use std::ops::ControlFlow;

pub(super) struct ShortConv {
    index: usize,
    config: Config,
    input: Projection,
    conv: Conv,
    output: Projection,
    input_scale: Option<f32>,
    output_scale: Option<f32>,
}

impl ShortConv {
    pub(super) fn load(
        tensors: &dyn Tensors,
        matrices: &mut Matrices,
        index: usize,
        config: Config,
    ) -> Result<Self, EngineError> {
        use LayerTensor as T;
        Ok(Self {
            input: Projection::load(tensors, matrices, index, T::MixerIn)?,
            conv: Conv::load(tensors, index, config.channels, None)?,
            output: Projection::load(tensors, matrices, index, T::MixerOut)?,
            input_scale: shared_input_scale(tensors, index, &[T::MixerIn])?,
            output_scale: shared_input_scale(tensors, index, &[T::MixerOut])?,
            index,
            config,
        })
    }

    pub(super) fn projections(&self) -> [&Projection; 2] {
        [&self.input, &self.output]
    }

    /// update = out(c · conv(b · v)), with b, c, v = in(x).
    #[allow(clippy::too_many_arguments)]
    pub(super) fn forward(
        &self,
        cpu: &Cpu,
        x: &[f32],
        update: &mut Vec<f32>,
        slot: usize,
        spans: &mut [Rows<'_>],
        adapted: &AdaptedRows<'_>,
        scratch: &mut BlockScratch,
        observer: &mut Observer<'_>,
    ) -> ControlFlow<()> {
        use LayerTensor as T;
        let BlockScratch { matmul: buffers, mixer, .. } = scratch;
        let MixerScratch { projected, channels, convolved, .. } = mixer;
        let rows: usize = spans.iter().map(|span| span.rows).sum();
        let id = |tensor| TensorId::Layer(self.index, tensor);
        observer(&[T::MixerIn], x, rows)?;
        matmul(cpu, x, rows, self.input_scale, &mut [self.input.linear(projected, rows)], buffers);
        adapted.apply(cpu, id(T::MixerIn), x, rows, self.input.bias(), projected, buffers);
        let width = self.config.channels;
        channels.clear();
        for row in projected.chunks_exact(3 * width) {
            channels.extend(row[..width].iter().zip(&row[2 * width..]).map(|(b, v)| b * v));
        }
        self.conv.forward(cpu, channels, slot, spans, convolved);
        for (row, out) in projected.chunks_exact(3 * width).zip(convolved.chunks_exact_mut(width)) {
            out.iter_mut().zip(&row[width..2 * width]).for_each(|(out, c)| *out *= c);
        }
        observer(&[T::MixerOut], convolved, rows)?;
        matmul(cpu, convolved, rows, self.output_scale, &mut [self.output.linear(update, rows)], buffers);
        adapted.apply(cpu, id(T::MixerOut), convolved, rows, self.output.bias(), update, buffers);
        ControlFlow::Continue(())
    }
}
