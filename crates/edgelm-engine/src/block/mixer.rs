//! The first half of a layer: whatever lets its positions see each other.

use super::{
    HalfScratch, Pass, Rows, Slots, attention::Attention, delta_net::DeltaNet, latent::LatentAttention, mamba2::Mamba2,
    matrices::Matrices, short_conv::ShortConv,
};
use crate::EngineError;
use edgelm_kernels::{Cpu, Matrix, add_assign};
use edgelm_model::{Mixer, Tensors};
use std::{
    ops::{ControlFlow, Range},
    slice,
};

pub(super) enum Mixing {
    Attention(Box<Attention>),
    LatentAttention(Box<LatentAttention>),
    ShortConv(Box<ShortConv>),
    DeltaNet(Box<DeltaNet>),
    Mamba2(Box<Mamba2>),
    AttentionAndMamba2(Box<(Attention, Mamba2)>),
}

/// Buffers of the mixers that are not attention.
#[derive(Default)]
pub(super) struct MixerScratch {
    pub(super) projected: Vec<f32>,
    pub(super) channels: Vec<f32>,
    pub(super) convolved: Vec<f32>,
    pub(super) gate: Vec<f32>,
    pub(super) queries: Vec<f32>,
    pub(super) keys: Vec<f32>,
    pub(super) values: Vec<f32>,
    pub(super) rates: Vec<f32>,
    pub(super) betas: Vec<f32>,
    pub(super) out: Vec<f32>,
    pub(super) spare: Vec<f32>,
}

impl Mixing {
    pub(super) fn load(
        tensors: &dyn Tensors,
        cpu: &Cpu,
        matrices: &mut Matrices,
        index: usize,
    ) -> Result<Self, EngineError> {
        Ok(match tensors.config().layers[index].mixer {
            Mixer::Attention => Self::Attention(Box::new(Attention::load(tensors, matrices, index)?)),
            Mixer::LatentAttention(config) => {
                Self::LatentAttention(Box::new(LatentAttention::load(tensors, cpu, matrices, index, config)?))
            }
            Mixer::ShortConv(config) => Self::ShortConv(Box::new(ShortConv::load(tensors, matrices, index, config)?)),
            Mixer::DeltaNet(config) => Self::DeltaNet(Box::new(DeltaNet::load(tensors, matrices, index, config)?)),
            Mixer::Mamba2(config) => Self::Mamba2(Box::new(Mamba2::load(tensors, matrices, index, config)?)),
            Mixer::AttentionAndMamba2(config) => Self::AttentionAndMamba2(Box::new((
                Attention::load(tensors, matrices, index)?,
                Mamba2::load(tensors, matrices, index, config)?,
            ))),
        })
    }

    pub(super) fn matrices(&self) -> Box<dyn Iterator<Item = &Matrix> + '_> {
        match self {
            Self::Attention(attention) => Box::new(attention.matrices()),
            Self::LatentAttention(attention) => Box::new(attention.matrices()),
            Self::ShortConv(conv) => Box::new(conv.matrices()),
            Self::DeltaNet(net) => Box::new(net.matrices()),
            Self::Mamba2(mamba) => Box::new(mamba.matrices()),
            Self::AttentionAndMamba2(both) => Box::new(both.0.matrices().chain(both.1.matrices())),
        }
    }

    /// update = mixer(x).
    pub(super) fn forward(
        &self,
        x: &[f32],
        update: &mut Vec<f32>,
        slots: Slots,
        pass: &mut Pass<'_, '_>,
        scratch: &mut HalfScratch,
    ) -> ControlFlow<()> {
        match self {
            Self::Attention(attention) => attention.forward(x, update, slots.kv, pass, scratch),
            Self::LatentAttention(attention) => attention.forward(x, update, slots.kv, pass, scratch),
            Self::ShortConv(conv) => conv.forward(x, update, slots.state, pass, scratch),
            Self::DeltaNet(net) => net.forward(x, update, slots.state, pass, scratch),
            Self::Mamba2(mamba) => mamba.forward(x, update, slots.state, pass, scratch),
            Self::AttentionAndMamba2(both) => {
                let (attention, mamba) = &**both;
                mamba.forward(x, update, slots.state, pass, scratch)?;
                let mut first = std::mem::take(&mut scratch.mixer.spare);
                std::mem::swap(&mut first, update);
                attention.forward(x, update, slots.kv, pass, scratch)?;
                add_assign(pass.cpu, update, &first);
                scratch.mixer.spare = first;
                ControlFlow::Continue(())
            }
        }
    }
}

/// Columns of rows of `width`, as rows of their own.
pub(super) fn take_columns(from: &[f32], width: usize, columns: Range<usize>, out: &mut Vec<f32>) {
    out.clear();
    from.chunks_exact(width).for_each(|row| out.extend_from_slice(&row[columns.clone()]));
}

/// Rows of the batch, sequence by sequence, with the state of the layer at `slot`.
pub(super) fn each_state<'a>(
    spans: slice::IterMut<'a, Rows<'_>>,
    slot: usize,
) -> impl Iterator<Item = (Range<usize>, &'a mut [f32])> {
    let mut end = 0;
    spans.map(move |span| {
        let start = end;
        end += span.rows;
        (start..end, span.states[slot].recurrent.as_mut_slice())
    })
}
