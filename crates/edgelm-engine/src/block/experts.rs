//! A feed-forward half of which each token takes a few parts.

use super::{
    HalfScratch, Pass,
    feed_forward::{FeedForward, Roles},
    linear_group::LinearGroup,
    matrices::{Matrices, load_vector},
    sigmoid, softmax,
};
use crate::EngineError;
use edgelm_kernels::Matrix;
use edgelm_model::{ExpertTensor, Experts, LayerTensor, RoutingScore, TensorId, Tensors};
use std::ops::ControlFlow;

pub(super) struct MixtureOfExperts {
    config: Experts,
    router: LinearGroup,
    selection_bias: Option<Vec<f32>>,
    experts: Vec<FeedForward>,
    shared: Option<FeedForward>,
    shared_router: Option<LinearGroup>,
}

/// Rows of the batch that one expert takes, and what its results are weighted with.
#[derive(Default)]
struct Share {
    rows: Vec<(usize, f32)>,
    x: Vec<f32>,
    update: Vec<f32>,
}

impl MixtureOfExperts {
    pub(super) fn load(
        tensors: &dyn Tensors,
        matrices: &mut Matrices,
        index: usize,
        config: Experts,
    ) -> Result<Self, EngineError> {
        use LayerTensor as T;
        let selection = TensorId::Layer(index, T::SelectionBias);
        let expert = |expert: usize| {
            let of = |part| T::Expert(expert as u16, part);
            Roles { gate: of(ExpertTensor::Gate), up: of(ExpertTensor::Up), down: of(ExpertTensor::Down) }
        };
        let shared = Roles { gate: T::SharedGate, up: T::SharedUp, down: T::SharedDown };
        let shared_gate = TensorId::Layer(index, T::SharedRouter);
        Ok(Self {
            router: LinearGroup::load(tensors, matrices, index, &[T::Router])?,
            selection_bias: tensors.has(selection).then(|| load_vector(tensors, selection)).transpose()?,
            experts: (0..config.count)
                .map(|number| FeedForward::load(tensors, matrices, index, expert(number)))
                .collect::<Result<_, _>>()?,
            shared: config.shared.map(|_| FeedForward::load(tensors, matrices, index, shared)).transpose()?,
            shared_router: tensors
                .has(shared_gate)
                .then(|| LinearGroup::load(tensors, matrices, index, &[T::SharedRouter]))
                .transpose()?,
            config,
        })
    }

    pub(super) fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let networks = self.experts.iter().chain(&self.shared).flat_map(FeedForward::matrices);
        let routers = std::iter::once(&self.router).chain(&self.shared_router).flat_map(LinearGroup::matrices);
        routers.chain(networks)
    }

    /// Weights of matrices that one token goes through, as a part of all of them.
    pub(super) fn share_per_token(&self) -> f64 {
        self.config.per_token as f64 / self.config.count.max(1) as f64
    }

    /// update = Σ over the experts taken of weight · expert(x), added in the order of their numbers, then the shared one.
    /// Adapters have no part in experts (they are refused when they are opened), only in the shared one.
    pub(super) fn forward(
        &self,
        x: &[f32],
        update: &mut Vec<f32>,
        pass: &mut Pass<'_, '_>,
        scratch: &mut HalfScratch,
    ) -> ControlFlow<()> {
        update.clear();
        update.resize(x.len(), 0.0);
        let mut logits = Vec::new();
        self.router.products(pass, x, [&mut logits]);
        // Rows of an expert are not those of the batch.
        let adapted = std::mem::take(&mut pass.adapted);
        let flow = self.add_experts(x, &logits, update, pass, scratch);
        pass.adapted = adapted;
        flow?;
        let Some(shared) = &self.shared else { return ControlFlow::Continue(()) };
        let mut result = Vec::new();
        shared.forward(x, &mut result, pass, scratch)?;
        let mut gates = Vec::new();
        if let Some(router) = &self.shared_router {
            router.products(pass, x, [&mut gates]);
        }
        let width = x.len() / pass.tables.rows().max(1);
        for (row, (update, result)) in update.chunks_exact_mut(width).zip(result.chunks_exact(width)).enumerate() {
            add(update, result, gates.get(row).map_or(1.0, |&gate| sigmoid(gate)));
        }
        ControlFlow::Continue(())
    }

    fn add_experts(
        &self,
        x: &[f32],
        logits: &[f32],
        update: &mut [f32],
        pass: &mut Pass<'_, '_>,
        scratch: &mut HalfScratch,
    ) -> ControlFlow<()> {
        let width = x.len() / pass.tables.rows().max(1);
        let mut shares: Vec<Share> = self.experts.iter().map(|_| Share::default()).collect();
        for (row, logits) in logits.chunks_exact(self.config.count).enumerate() {
            for (expert, weight) in self.route(logits) {
                shares[expert].rows.push((row, weight));
            }
        }
        for (expert, share) in self.experts.iter().zip(&mut shares).filter(|(_, share)| !share.rows.is_empty()) {
            for (row, _) in &share.rows {
                share.x.extend_from_slice(&x[row * width..][..width]);
            }
            expert.forward(&share.x, &mut share.update, pass, scratch)?;
            for ((row, weight), result) in share.rows.iter().zip(share.update.chunks_exact(width)) {
                add(&mut update[row * width..][..width], result, *weight);
            }
        }
        ControlFlow::Continue(())
    }

    /// The experts that a token takes, by their numbers, with their weights. Ties go to the lower number.
    fn route(&self, logits: &[f32]) -> Vec<(usize, f32)> {
        let routing = &self.config.routing;
        let scores = match routing.score {
            RoutingScore::Softmax => softmax(logits),
            RoutingScore::Sigmoid => logits.iter().map(|&logit| sigmoid(logit)).collect(),
        };
        let rank = |expert: usize| scores[expert] + self.selection_bias.as_ref().map_or(0.0, |bias| bias[expert]);
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| rank(b).total_cmp(&rank(a)).then(a.cmp(&b)));
        order.truncate(self.config.per_token);
        order.sort_unstable();
        let sum = if routing.normalize { order.iter().map(|&expert| scores[expert]).sum() } else { 1.0 };
        order.into_iter().map(|expert| (expert, scores[expert] / sum * routing.scale)).collect()
    }
}

fn add(out: &mut [f32], values: &[f32], weight: f32) {
    out.iter_mut().zip(values).for_each(|(out, value)| *out += weight * value);
}
