//! LFM2's mixer: a short convolution between two gates that its input makes.

use super::{HalfScratch, Pass, conv::Conv, linear_group::LinearGroup, matrices::Matrices, mixer::MixerScratch};
use crate::EngineError;
use edgelm_kernels::Matrix;
use edgelm_model::{LayerTensor, ShortConv as Config, Tensors};
use std::ops::ControlFlow;

pub(super) struct ShortConv {
    config: Config,
    input: LinearGroup,
    conv: Conv,
    output: LinearGroup,
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
            input: LinearGroup::load(tensors, matrices, index, &[T::MixerIn])?,
            conv: Conv::load(tensors, index, config.channels, None)?,
            output: LinearGroup::load(tensors, matrices, index, &[T::MixerOut])?,
            config,
        })
    }

    pub(super) fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        self.input.matrices().chain(self.output.matrices())
    }

    /// update = out(c · conv(b · v)), with b, c, v = in(x).
    pub(super) fn forward(
        &self,
        x: &[f32],
        update: &mut Vec<f32>,
        slot: usize,
        pass: &mut Pass<'_, '_>,
        scratch: &mut HalfScratch,
    ) -> ControlFlow<()> {
        let cpu = pass.cpu;
        let HalfScratch { mixer, .. } = scratch;
        let MixerScratch { projected, channels, convolved, .. } = mixer;
        self.input.forward(pass, x, [&mut *projected])?;
        let width = self.config.channels;
        channels.clear();
        for row in projected.chunks_exact(3 * width) {
            channels.extend(row[..width].iter().zip(&row[2 * width..]).map(|(b, v)| b * v));
        }
        self.conv.forward(cpu, channels, slot, pass.spans, convolved);
        for (row, out) in projected.chunks_exact(3 * width).zip(convolved.chunks_exact_mut(width)) {
            out.iter_mut().zip(&row[width..2 * width]).for_each(|(out, c)| *out *= c);
        }
        self.output.forward(pass, convolved, [&mut *update])?;
        ControlFlow::Continue(())
    }
}
