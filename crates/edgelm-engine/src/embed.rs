//! Embeddings: one vector for a text, from the states a model ends with.

use crate::{EngineError, GenerateOptions, Model, Step, Want, Workspace};

/// How the states of all tokens become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pooling {
    /// The last token's: the only one of a causal model that has seen the whole text.
    #[default]
    Last,
    /// The mean over all tokens.
    Mean,
}

impl Model {
    /// The embedding of a text: states after the last layer and the final norm, pooled, then scaled to length 1.
    /// e = p / ‖p‖₂, p = h\[T−1\] or p = 1/T · Σ_t h\[t\]
    ///
    /// Shapes: `tokens` \[T\]; the result \[D\]. Sums in f64. All zeros where the pooled state is.
    ///
    /// # Errors
    /// No tokens, an id outside the vocabulary, or more tokens than the context of `options` holds.
    pub fn embed(&self, tokens: &[u32], pooling: Pooling, options: &GenerateOptions) -> Result<Vec<f32>, EngineError> {
        let context = options.context.unwrap_or(self.engine().config().context_length());
        if tokens.len() > context {
            return Err(EngineError::ContextLength { prompt: tokens.len(), max_new: 0, context });
        }
        let mut sequence = self.sequence(options);
        let mut workspace = Workspace::default();
        self.engine().forward(&mut [Step { sequence: &mut sequence, tokens, want: Want::Hidden }], &mut workspace)?;
        // As many values per token as the norm writes.
        let width = workspace.states().len() / tokens.len();
        let rows = workspace.states().chunks_exact(width);
        let pooled: Vec<f64> = match pooling {
            Pooling::Last => rows.last().unwrap_or_default().iter().map(|&x| f64::from(x)).collect(),
            Pooling::Mean => rows.fold(vec![0.0; width], |mut sum, row| {
                sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x) / tokens.len() as f64);
                sum
            }),
        };
        Ok(unit_length(&pooled))
    }
}

/// A vector scaled to length 1.
pub fn unit_length(vector: &[f64]) -> Vec<f32> {
    let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    let factor = if length > 0.0 { length.recip() } else { 0.0 };
    vector.iter().map(|x| (x * factor) as f32).collect()
}
