//! What a sequence keeps for layers whose memory of the past has a fixed size.
//!
//! The one thing a reader would get wrong: it cannot be rewound. Whoever forgets positions has to start from zeros.

use edgelm_model::{Mixer, ModelConfig, StateSize};

/// Of one layer, zeros before the first position.
#[derive(Clone)]
pub(crate) struct State {
    /// The last inputs of the convolution `[K-1, C]`.
    pub(super) conv: Vec<f32>,
    /// Of all heads.
    pub(super) recurrent: Vec<f32>,
}

impl State {
    fn new(size: StateSize) -> Self {
        Self { conv: vec![0.0; size.conv], recurrent: vec![0.0; size.recurrent] }
    }

    /// Of those layers of a model that have one, in order.
    pub(crate) fn of_layers(config: &ModelConfig) -> Vec<Self> {
        config.layers.iter().filter_map(|layer| layer.mixer.state()).map(Self::new).collect()
    }

    /// That of one layer, if it has one.
    pub(super) fn of_layer(mixer: &Mixer) -> Vec<Self> {
        mixer.state().map(Self::new).into_iter().collect()
    }

    /// Nothing was seen.
    pub(crate) fn reset(&mut self) {
        self.conv.fill(0.0);
        self.recurrent.fill(0.0);
    }

    pub(crate) fn bytes(&self) -> usize {
        (self.conv.len() + self.recurrent.len()) * size_of::<f32>()
    }

    /// Appends the numbers, little-endian.
    pub(crate) fn write(&self, to: &mut Vec<u8>) {
        to.extend(self.conv.iter().chain(&self.recurrent).flat_map(|number| number.to_le_bytes()));
    }

    /// Takes what [`State::write`] appended; returns what follows. None where that is too short.
    pub(crate) fn read<'a>(&mut self, from: &'a [u8]) -> Option<&'a [u8]> {
        let (mine, rest) = from.split_at_checked(self.bytes())?;
        let numbers = mine.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four));
        self.conv.iter_mut().chain(&mut self.recurrent).zip(numbers).for_each(|(to, number)| *to = number);
        Some(rest)
    }
}

/// Where a layer's keys and values lie in the cache, and its state among the states.
#[derive(Clone, Copy, Default)]
pub(crate) struct Slots {
    pub(super) kv: usize,
    pub(super) state: usize,
}

impl Slots {
    /// Those of the layer after one with this mixer.
    pub(crate) fn after(self, mixer: &Mixer) -> Self {
        Self {
            kv: self.kv + usize::from(mixer.has_attention()),
            state: self.state + usize::from(mixer.state().is_some()),
        }
    }
}
