//! A decoder layer: both halves, joined to the stream as the description says.

use crate::{OnnxError, graph::Value, network::Network};
use edgelm_model::{LayerTensor, Residual, TensorId};

impl Network<'_> {
    /// The stream after layer `index`.
    pub(crate) fn layer(&mut self, hidden: Value, index: usize) -> Result<Value, OnnxError> {
        use LayerTensor as T;
        let style = self.config.style;
        let norms = style.norms;
        let attn_norm = norms.attn.then_some((T::AttnNorm, T::AttnNormBias));
        let ffn_norm = norms.ffn.then_some((T::FfnNorm, T::FfnNormBias));
        let post_attn = norms.post_attn.then_some((T::PostAttnNorm, T::PostAttnNorm));
        let post_ffn = norms.post_ffn.then_some((T::PostFfnNorm, T::PostFfnNorm));
        match style.residual {
            Residual::Parallel => {
                let x = self.layer_norm(hidden.clone(), index, attn_norm)?;
                let update = self.attention(x.clone(), index)?;
                let update = self.finished(update, index, post_attn)?;
                let x = match ffn_norm {
                    Some(norm) => self.layer_norm(hidden.clone(), index, Some(norm))?,
                    None => x,
                };
                let second = self.feed_forward(&x, index)?;
                let hidden = self.graph.apply("Add", &[&hidden, &update]);
                self.joined(hidden, second, index, post_ffn)
            }
            Residual::Sequential | Residual::Normed => {
                let is_normed = style.residual == Residual::Normed;
                let x = self.layer_norm(hidden.clone(), index, attn_norm)?;
                let update = self.attention(x.clone(), index)?;
                let update = self.finished(update, index, post_attn)?;
                let stream = if is_normed { x } else { hidden };
                let hidden = self.graph.apply("Add", &[&stream, &update]);
                let x = self.layer_norm(hidden.clone(), index, ffn_norm)?;
                let update = self.feed_forward(&x, index)?;
                let stream = if is_normed { x } else { hidden };
                self.joined(stream, update, index, post_ffn)
            }
            Residual::NormAfter => {
                let update = self.attention(hidden.clone(), index)?;
                let hidden = self.graph.apply("Add", &[&hidden, &update]);
                let hidden = self.layer_norm(hidden, index, attn_norm)?;
                let update = self.feed_forward(&hidden, index)?;
                let hidden = match update {
                    Some(update) => self.graph.apply("Add", &[&hidden, &update]),
                    None => hidden,
                };
                self.layer_norm(hidden, index, ffn_norm)
            }
        }
    }

    /// x through a norm, or as it is.
    fn layer_norm(
        &mut self,
        x: Value,
        index: usize,
        norm: Option<(LayerTensor, LayerTensor)>,
    ) -> Result<Value, OnnxError> {
        let Some((gain, bias)) = norm else { return Ok(x) };
        self.graph.enter(&format!("layers.{index}.{gain:?}"));
        self.norm(&x, TensorId::Layer(index, gain), TensorId::Layer(index, bias))
    }

    /// What becomes of a half's result before it is added to the stream.
    fn finished(
        &mut self,
        update: Value,
        index: usize,
        norm: Option<(LayerTensor, LayerTensor)>,
    ) -> Result<Value, OnnxError> {
        let update = self.layer_norm(update, index, norm)?;
        Ok(self.graph.scale(update, self.config.style.residual_scale))
    }

    /// The stream with what the second half adds, if there is one.
    fn joined(
        &mut self,
        stream: Value,
        update: Option<Value>,
        index: usize,
        norm: Option<(LayerTensor, LayerTensor)>,
    ) -> Result<Value, OnnxError> {
        let Some(update) = update else { return Ok(stream) };
        let update = self.finished(update, index, norm)?;
        Ok(self.graph.apply("Add", &[&stream, &update]))
    }
}
