//! Which components of a head rotate together, and how rows and gains change when a file with the other convention is
//! written.

use super::{LayerConfig, LayerRope, Mixer, ModelConfig, RopeConfig};
use crate::{LayerTensor, TensorId};
use edgelm_tensor::RopePairs;

impl ModelConfig {
    /// Which row of *this* model's tensor belongs at `row` when the tensor is written to a GGUF file:
    /// `written[row] = read[gguf_row_source(id, row)]`, for weights, biases and per-head norms alike (a bias's "row"
    /// is one value). The identity for every tensor but Q, K and their biases and norms, and for all of them where the
    /// model already pairs components as GGUF wants (it came from a GGUF file, or the architecture keeps halves).
    ///
    /// Within a head of E rows only the first R (the rotary ones) move: Halves → Interleaved is
    /// `2i ← i`, `2i + 1 ← i + R/2` for i < R/2. It is a permutation; its inverse is [`Self::hf_row_source`] of the
    /// same model read back from what was written.
    pub fn gguf_row_source(&self, id: TensorId, row: usize) -> usize {
        self.row_source(id, row, self.arch.gguf_rope_pairs)
    }

    /// What is added to every value of a tensor when it is written to a GGUF file: 1 for the gains of norms that this
    /// model stores less 1, as these files hold the whole factor.
    pub fn gguf_offset(&self, id: TensorId) -> f32 {
        use LayerTensor::*;
        let kind = match id {
            TensorId::EmbeddingNorm | TensorId::OutputNorm => Some(self.style.norm),
            TensorId::Layer(_, AttnNorm | PostAttnNorm | FfnNorm | PostFfnNorm) => Some(self.style.norm),
            TensorId::Layer(_, QNorm | KNorm) => self.style.qk_norm.kind(),
            _ => None,
        };
        if kind.is_some_and(|kind| kind != kind.with_whole_gain()) { 1.0 } else { 0.0 }
    }

    /// [`Self::gguf_row_source`] for a Hugging Face file: `written[row] = read[hf_row_source(id, row)]`.
    pub fn hf_row_source(&self, id: TensorId, row: usize) -> usize {
        self.row_source(id, row, self.arch.hf_rope_pairs)
    }

    /// The same for a file that pairs components so.
    pub(crate) fn row_source(&self, id: TensorId, row: usize, target: RopePairs) -> usize {
        use LayerTensor::*;
        let TensorId::Layer(index, Q | QBias | QNorm | QNormBias | K | KBias | KNorm | KNormBias) = id else {
            return row;
        };
        // In latent attention the last components of a query rotate, not the first: no row moves.
        let moves =
            |layer: &&LayerConfig| layer.rope != LayerRope::None && !matches!(layer.mixer, Mixer::LatentAttention(_));
        let Some(layer) = self.layers.get(index).filter(moves) else { return row };
        let component = row % layer.head_dim;
        if component >= self.rope.rotary_dim {
            return row;
        }
        row - component + self.rope.source_of(component, target)
    }
}

impl RopeConfig {
    /// Which rotary component stands where files that pair them as `target` says have this one.
    pub(crate) fn source_of(&self, component: usize, target: RopePairs) -> usize {
        let half = self.rotary_dim / 2;
        match (self.pairs, target) {
            (RopePairs::Halves, RopePairs::Interleaved) => component / 2 + half * (component % 2),
            (RopePairs::Interleaved, RopePairs::Halves) => 2 * (component % half) + component / half,
            _ => component,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::hf::tests::tiny;

    #[test]
    fn rows_move_as_llama_cpp_expects_and_back() {
        // 2 heads of 6, 4 of them rotary: worked out from reshape(heads, 2, R/2).swapaxes(1, 2).
        let mut config = tiny(r#""num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 6"#);
        config.rope.rotary_dim = 4;
        let q = TensorId::Layer(0, LayerTensor::Q);
        let rows: Vec<_> = (0..12).map(|row| config.gguf_row_source(q, row)).collect();
        assert_eq!(rows, [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]);
        let v = TensorId::Layer(0, LayerTensor::V);
        assert!((0..6).all(|row| config.gguf_row_source(v, row) == row));

        let mut written = config.clone();
        written.rope.pairs = RopePairs::Interleaved;
        for rotary in [2, 4, 6] {
            config.rope.rotary_dim = rotary;
            written.rope.rotary_dim = rotary;
            for row in 0..12 {
                assert_eq!(config.gguf_row_source(q, written.hf_row_source(q, row)), row);
                assert_eq!(written.gguf_row_source(q, row), row);
            }
        }
    }
}
