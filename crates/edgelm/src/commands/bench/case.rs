//! What one row of the table times, and how.

use edgelm_engine::{Engine, Sequence, Step, Want, Workspace};
use edgelm_kernels::KvDtype;
use std::time::Instant;

/// One row of the table.
pub(super) struct Case {
    pub name: String,
    /// Tokens in the context before the clock starts.
    pub depth: usize,
    pub kind: Kind,
}

#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// A prompt of this many tokens.
    Prefill(usize),
    /// `steps` tokens of each of `batch` sequences.
    Decode { steps: usize, batch: usize },
}

impl Case {
    /// Every combination that was asked for.
    pub fn all(depths: &[usize], prompts: &[usize], generate: &[usize], batches: &[usize]) -> Vec<Self> {
        let mut cases = Vec::new();
        for &depth in depths {
            let at = if depth > 0 { format!(" @ d{depth}") } else { String::new() };
            for &n in prompts.iter().filter(|&&n| n > 0) {
                cases.push(Self { name: format!("pp{n}{at}"), depth, kind: Kind::Prefill(n) });
            }
            for &steps in generate.iter().filter(|&&n| n > 0) {
                for &batch in batches {
                    let name = if batch > 1 { format!("tg{steps} b{batch}{at}") } else { format!("tg{steps}{at}") };
                    cases.push(Self { name, depth, kind: Kind::Decode { steps, batch } });
                }
            }
        }
        cases
    }

    /// Positions that one sequence needs.
    pub fn positions(&self) -> usize {
        self.depth
            + match self.kind {
                Kind::Prefill(n) => n,
                Kind::Decode { steps, .. } => steps,
            }
    }

    /// Tokens of a timed run, all sequences together.
    fn tokens(&self) -> usize {
        match self.kind {
            Kind::Prefill(n) => n,
            Kind::Decode { steps, batch } => steps * batch,
        }
    }

    /// Tokens per second of one run, the filling of the depth not counted.
    pub fn rate(&self, engine: &Engine, kv: KvDtype) -> anyhow::Result<f64> {
        let mut workspace = Workspace::default();
        let mut start = engine.sequence(kv);
        if self.depth > 0 {
            let tokens = ids(engine, self.depth);
            engine.forward(&mut [Step { sequence: &mut start, tokens: &tokens, want: Want::None }], &mut workspace)?;
        }
        let seconds = match self.kind {
            Kind::Prefill(n) => prefill(engine, &mut start, n, &mut workspace)?,
            Kind::Decode { steps, batch } => decode(engine, vec![start; batch], steps, &mut workspace)?,
        };
        Ok(self.tokens() as f64 / seconds)
    }
}

/// Seconds from a prompt of `n` tokens to its first logits, in a fresh state.
pub(super) fn first_token(engine: &Engine, kv: KvDtype, n: usize) -> anyhow::Result<f64> {
    prefill(engine, &mut engine.sequence(kv), n, &mut Workspace::default())
}

fn prefill(engine: &Engine, sequence: &mut Sequence, n: usize, workspace: &mut Workspace) -> anyhow::Result<f64> {
    let tokens = ids(engine, n);
    let begin = Instant::now();
    engine.forward(&mut [Step { sequence, tokens: &tokens, want: Want::Last }], workspace)?;
    Ok(begin.elapsed().as_secs_f64())
}

fn decode(
    engine: &Engine,
    mut sequences: Vec<Sequence>,
    steps: usize,
    workspace: &mut Workspace,
) -> anyhow::Result<f64> {
    let tokens = ids(engine, sequences.len());
    let begin = Instant::now();
    for _ in 0..steps {
        let mut batch: Vec<Step<'_>> = sequences
            .iter_mut()
            .zip(tokens.chunks(1))
            .map(|(sequence, tokens)| Step { sequence, tokens, want: Want::Last })
            .collect();
        engine.forward(&mut batch, workspace)?;
    }
    Ok(begin.elapsed().as_secs_f64())
}

/// Token ids spread over the vocabulary, the same in every run.
fn ids(engine: &Engine, count: usize) -> Vec<u32> {
    let vocab = engine.config().vocab_size as u64;
    (0..count as u64).map(|i| (i.wrapping_mul(2_654_435_761) % vocab) as u32).collect()
}
