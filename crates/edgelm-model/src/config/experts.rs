//! Feed-forward networks of which each token takes a few (Shazeer et al. 2017, arXiv:1701.06538).

/// The experts of one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Experts {
    /// How many.
    pub count: usize,
    /// How many each token goes through.
    pub per_token: usize,
    /// F of each.
    pub intermediate_size: usize,
    /// F of the one that every token goes through too.
    pub shared: Option<usize>,
    /// The shared expert's output is multiplied by the sigmoid of a product of its own.
    pub shared_gate: bool,
    /// How they are chosen and weighted.
    pub routing: Routing,
    /// gate/up/down have biases.
    pub bias: bool,
}

/// Scores s = score(W x + b); the experts with the largest s (+ c, the selection bias) are taken, and their outputs are
/// added, weighted with s.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Routing {
    /// Of the logits.
    pub score: RoutingScore,
    /// Weights of the experts taken are divided by their sum.
    pub normalize: bool,
    /// Multiplies weights.
    pub scale: f32,
    /// There is a b.
    pub bias: bool,
    /// There is a c.
    pub selection_bias: bool,
}

/// What makes scores of logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoutingScore {
    /// Over all experts.
    Softmax,
    /// Of each.
    Sigmoid,
}

impl Routing {
    /// Softmax, as most families have it.
    pub const fn softmax(normalize: bool) -> Self {
        Self { score: RoutingScore::Softmax, normalize, scale: 1.0, bias: false, selection_bias: false }
    }
}
