//! Where the tensors of a model are stored: Hugging Face's names differ by family, GGUF's mostly do not.

use crate::{ExpertTensor, LayerTensor, Mixer, ModelConfig, TensorId};

/// Names in files of one kind.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// [`TensorId::TokenEmbedding`].
    pub token_embedding: &'static str,
    /// [`TensorId::PositionEmbedding`].
    pub position_embedding: &'static str,
    /// What [`TensorId::EmbeddingNorm`] and its bias begin with.
    pub embedding_norm: &'static str,
    /// What [`TensorId::OutputNorm`] and its bias begin with.
    pub output_norm: &'static str,
    /// What [`TensorId::Output`] and its bias begin with.
    pub output: &'static str,
    /// What stands before a layer's number, e.g. `layers.`.
    pub layers: &'static str,
    /// What stands after a layer's number and a dot, without `.weight` or `.bias`; for a bias, what its weight has. With a
    /// `$` at the end it is the whole name; `{}` is the number of an expert, and without it all experts are one tensor.
    pub layer: fn(LayerTensor) -> &'static str,
    /// Matrices that share one tensor where their names are the same, and how. Their biases and experts do likewise.
    pub fused: &'static [(&'static [LayerTensor], Order)],
    /// Which linear layers are stored [in, out].
    pub transposed: Transposed,
    /// As llama.cpp computes with them: convolutions are stored [C, K], not [C, 1, K]; what Mamba-2 has per head [H, 1], its
    /// norm [G, C / G]; what makes keys and values of latent attention with heads apart.
    pub llama_cpp_shapes: bool,
    /// What names begin with, and those of the output head: the usual first, then what other exports have.
    pub prefixes: &'static [Prefix],
}

/// What the names of the decoder begin with, and what those of its output head do.
pub type Prefix = (&'static str, &'static str);

/// Which linear layers are stored [in, out].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Transposed {
    None,
    All,
    Experts,
}

/// How rows of several matrices lie in one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// All rows of the first, then all of the second, ….
    Stacked,
    /// The first row of each, then the second of each, ….
    Interleaved,
    /// For each KV head: the rows of its query heads, its key head, its value head.
    PerKvHead,
    /// For each head: its rows of the first, its rows of the second, ….
    PerHead,
    /// For each key head of a gated delta net: its share of the first, then of the second; a share that is queries, keys
    /// and values is in this order.
    PerKeyHead,
    /// In four parts, each a quarter of the rows of queries, values and keys, in this order (CodeGen, trained on four TPUs).
    CodeGen,
}

/// Which part of a stored tensor is a tensor of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Of the tensor in the file.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// It holds one matrix (or vector) for each of so many experts, and this is the one.
    pub expert: Option<(usize, usize)>,
    /// Which of its rows, in order; `None` = all of them, as they are.
    pub rows: Option<Rows>,
    /// The rows are columns in the file.
    pub transposed: bool,
    /// Its rows are so many tensors of their own, with their number for `{}` in the name.
    pub spread: Option<usize>,
}

impl Stored {
    /// Which row of the stored tensor a row is, where it is one of its rows.
    pub fn row(&self, row: usize) -> usize {
        match &self.rows {
            None => row,
            Some(Rows::Range(range)) => range.start + row,
            Some(Rows::List(list)) => list.get(row).copied().unwrap_or(row),
        }
    }

    /// Names of the tensors in the file.
    pub fn names(&self) -> Vec<String> {
        match self.spread {
            None => vec![self.name.clone()],
            Some(count) => (0..count).map(|row| self.name.replace("{}", &row.to_string())).collect(),
        }
    }
}

/// Rows of a stored tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Rows {
    Range(std::ops::Range<usize>),
    List(Vec<usize>),
}

impl Names {
    /// Name of the stored tensor that is, or holds, a tensor of the model.
    pub fn name(&self, prefix: Prefix, id: TensorId) -> String {
        let (body, head) = prefix;
        match id {
            TensorId::TokenEmbedding => format!("{body}{}.weight", self.token_embedding),
            TensorId::InputProjection => format!("{body}project_in.weight"),
            TensorId::OutputProjection => format!("{body}project_out.weight"),
            TensorId::PositionEmbedding => format!("{body}{}.weight", self.position_embedding),
            TensorId::EmbeddingNorm => format!("{body}{}.weight", self.embedding_norm),
            TensorId::EmbeddingNormBias => format!("{body}{}.bias", self.embedding_norm),
            TensorId::OutputNorm => format!("{body}{}.weight", self.output_norm),
            TensorId::OutputNormBias => format!("{body}{}.bias", self.output_norm),
            TensorId::Output => format!("{head}{}.weight", self.output),
            TensorId::OutputBias => format!("{head}{}.bias", self.output),
            TensorId::Layer(index, tensor) => {
                let name = (self.layer)(tensor);
                let name = match tensor {
                    LayerTensor::Expert(expert, _) => name.replace("{}", &expert.to_string()),
                    _ => name.to_owned(),
                };
                let (name, end) = match name.strip_suffix('$') {
                    Some(name) => (name, ""),
                    None => (name.as_str(), if tensor.is_bias() { ".bias" } else { ".weight" }),
                };
                format!("{body}{}{index}.{name}{end}", self.layers)
            }
        }
    }

    /// Where a tensor that `config` implies is stored.
    pub fn stored(&self, prefix: Prefix, config: &ModelConfig, id: TensorId) -> Stored {
        let shape = config.tensor_shape(id).unwrap_or_default();
        let mut stored =
            Stored { name: self.name(prefix, id), shape, expert: None, rows: None, transposed: false, spread: None };
        let TensorId::Layer(index, tensor) = id else { return stored };
        if let Some((parts, order)) = self.fused_with(config, index, tensor) {
            let rows: Vec<usize> = parts.iter().map(|&part| rows_of(config, index, part)).collect();
            if let Some(part) = parts.iter().position(|&part| part == tensor) {
                stored.shape[0] = rows.iter().sum();
                stored.rows = Some(order.rows(config, index, &rows, part));
            }
        }
        let is_expert = matches!(tensor, LayerTensor::Expert(..));
        if !is_expert && stored.name.contains("{}") {
            stored.spread = Some(stored.shape.remove(0));
        }
        if matches!(tensor, LayerTensor::XieluSlope | LayerTensor::XieluFloor) {
            // A number, not a vector of one.
            stored.shape.clear();
        }
        if self.llama_cpp_shapes {
            to_llama_cpp(&config.layers[index].mixer, tensor, &mut stored.shape);
        }
        if tensor.is_linear()
            && (self.transposed == Transposed::All || is_expert && self.transposed == Transposed::Experts)
        {
            stored.shape.reverse();
            stored.transposed = true;
        }
        if let (LayerTensor::Expert(expert, _), Some(experts)) = (tensor, config.layers[index].experts)
            && !(self.layer)(tensor).contains("{}")
        {
            stored.shape.insert(0, experts.count);
            stored.expert = Some((usize::from(expert), experts.count));
        }
        stored
    }

    /// The tensors that are stored as one with this one, in order; none where it is stored alone.
    pub fn fused_with(
        &self,
        config: &ModelConfig,
        index: usize,
        tensor: LayerTensor,
    ) -> Option<(Vec<LayerTensor>, Order)> {
        let of = |part: LayerTensor| {
            let part = match (tensor, part) {
                (LayerTensor::Expert(expert, _), LayerTensor::Gate) => LayerTensor::Expert(expert, ExpertTensor::Gate),
                (LayerTensor::Expert(expert, _), LayerTensor::Up) => LayerTensor::Expert(expert, ExpertTensor::Up),
                (tensor, LayerTensor::Gate) if tensor.is_shared() => LayerTensor::SharedGate,
                (tensor, LayerTensor::Up) if tensor.is_shared() => LayerTensor::SharedUp,
                (_, part) => part,
            };
            if tensor.is_bias() { part.bias().unwrap_or(part) } else { part }
        };
        self.fused.iter().find_map(|(parts, order)| {
            let parts: Vec<LayerTensor> = parts
                .iter()
                .map(|&part| of(part))
                .filter(|&part| config.tensor_shape(TensorId::Layer(index, part)).is_some())
                .collect();
            let share = |part: &LayerTensor| (self.layer)(*part) == (self.layer)(tensor);
            (parts.len() > 1 && parts.contains(&tensor) && parts.iter().all(share)).then_some((parts, *order))
        })
    }
}

/// The shape that a tensor of a layer with this mixer has in GGUF files.
fn to_llama_cpp(mixer: &Mixer, tensor: LayerTensor, shape: &mut Vec<usize>) {
    use LayerTensor::*;
    match (mixer, tensor) {
        (_, Conv) => {
            shape.remove(1);
        }
        (Mixer::Mamba2(_) | Mixer::AttentionAndMamba2(_), DecayLog | Skip) => shape.push(1),
        (Mixer::Mamba2(mamba) | Mixer::AttentionAndMamba2(mamba), MixerNorm) => {
            *shape = vec![mamba.groups, mamba.width() / mamba.groups.max(1)];
        }
        (Mixer::LatentAttention(latent), LatentK | LatentV) if latent.transposed_keys => {
            shape[0] /= latent.heads.max(1);
            shape.insert(0, latent.heads);
        }
        _ => {}
    }
}

fn rows_of(config: &ModelConfig, index: usize, tensor: LayerTensor) -> usize {
    config.tensor_shape(TensorId::Layer(index, tensor)).map_or(0, |shape| shape[0])
}

impl Order {
    /// Rows of part `part` of a tensor whose parts have these numbers of rows.
    fn rows(self, config: &ModelConfig, index: usize, rows: &[usize], part: usize) -> Rows {
        let layer = &config.layers[index];
        let (heads, kv_heads, width) = (layer.num_attention_heads, layer.num_key_value_heads, layer.head_dim);
        match self {
            Self::Stacked => {
                let start = rows[..part].iter().sum();
                Rows::Range(start..start + rows[part])
            }
            Self::Interleaved => Rows::List((0..rows[part]).map(|row| row * rows.len() + part).collect()),
            Self::PerKvHead => {
                let group = heads / kv_heads;
                let first = |head: usize| match part {
                    0 => (head / group) * (group + 2) + head % group,
                    _ => head * (group + 2) + group + part - 1,
                };
                let count = if part == 0 { heads } else { kv_heads };
                Rows::List((0..count * width).map(|row| first(row / width) * width + row % width).collect())
            }
            Self::PerHead => {
                let share = |part: usize| rows[part] / heads;
                let (all, before) = ((0..rows.len()).map(share).sum::<usize>(), (0..part).map(share).sum::<usize>());
                let width = share(part);
                Rows::List((0..rows[part]).map(|row| row / width * all + before + row % width).collect())
            }
            Self::PerKeyHead => {
                let Mixer::DeltaNet(net) = layer.mixer else { return Rows::Range(0..rows[part]) };
                let (keys, values) = (net.key_dim, net.value_width() / net.key_heads);
                let shares = |part: usize| match rows[part] == net.channels() {
                    true => vec![keys, keys, values],
                    false => vec![rows[part] / net.key_heads],
                };
                let all: usize = (0..rows.len()).flat_map(shares).sum();
                let mut start: usize = (0..part).flat_map(shares).sum();
                let mut list = Vec::with_capacity(rows[part]);
                for share in shares(part) {
                    list.extend((0..net.key_heads * share).map(|row| row / share * all + start + row % share));
                    start += share;
                }
                Rows::List(list)
            }
            Self::CodeGen => {
                const PARTS: usize = 4;
                let local = (rows[part] / PARTS).max(1);
                let place = [0, 2, 1][part.min(2)];
                Rows::List((0..rows[part]).map(|row| (row / local * 3 + place) * local + row % local).collect())
            }
        }
    }
}

/// The Llama family's names, which most later families took over.
pub(super) const LLAMA_NAMES: Names = Names {
    token_embedding: "embed_tokens",
    position_embedding: "",
    embedding_norm: "",
    output_norm: "norm",
    output: "lm_head",
    layers: "layers.",
    layer: llama_layer,
    fused: &[],
    transposed: Transposed::None,
    llama_cpp_shapes: false,
    prefixes: &[("model.", ""), ("", ""), ("model.language_model.", ""), ("language_model.model.", "language_model.")],
};

/// The Llama family's names inside a layer.
pub(super) fn llama_layer(tensor: LayerTensor) -> &'static str {
    use LayerTensor::*;
    match tensor {
        AttnNorm | AttnNormBias => "input_layernorm",
        Q | QBias => "self_attn.q_proj",
        K | KBias => "self_attn.k_proj",
        V | VBias => "self_attn.v_proj",
        QNorm | QNormBias => "self_attn.q_norm",
        KNorm | KNormBias => "self_attn.k_norm",
        Sinks => "self_attn.sinks$",
        AttnSubNorm => "self_attn.attn_sub_norm",
        QDown => "self_attn.q_a_proj",
        QDownNorm => "self_attn.q_a_layernorm",
        QUp => "self_attn.q_b_proj",
        Latent => "self_attn.kv_a_proj_with_mqa",
        LatentNorm => "self_attn.kv_a_layernorm",
        LatentK => "self_attn.k_b_proj",
        LatentV => "self_attn.v_b_proj",
        QGate | QGateBias => "self_attn.gate_proj",
        O | OBias => "self_attn.o_proj",
        MixerIn | MixerInBias => "mamba.in_proj",
        MixerGate => "linear_attn.in_proj_z",
        MixerBeta => "linear_attn.in_proj_b",
        MixerDecay => "linear_attn.in_proj_a",
        Conv | ConvBias => "mamba.conv1d",
        DecayLog => "mamba.A_log$",
        Skip => "mamba.D$",
        StepBias => "mamba.dt_bias$",
        MixerNorm => "mamba.norm",
        MixerOut | MixerOutBias => "mamba.out_proj",
        PostAttnNorm => "post_self_attn_layernorm",
        FfnNorm | FfnNormBias => "post_attention_layernorm",
        Gate | GateBias => "mlp.gate_proj",
        Up | UpBias => "mlp.up_proj",
        FfnSubNorm => "mlp.ffn_sub_norm",
        Down | DownBias => "mlp.down_proj",
        XieluPositive => "mlp.act_fn.alpha_p$",
        XieluNegative => "mlp.act_fn.alpha_n$",
        XieluSlope => "mlp.act_fn.beta$",
        XieluFloor => "mlp.act_fn.eps$",
        Router | RouterBias => "mlp.gate",
        SelectionBias => "mlp.gate.e_score_correction_bias$",
        SharedRouter => "mlp.shared_expert_gate",
        SharedGate => "mlp.shared_expert.gate_proj",
        SharedUp => "mlp.shared_expert.up_proj",
        SharedDown => "mlp.shared_expert.down_proj",
        Expert(_, ExpertTensor::Gate | ExpertTensor::GateBias) => "mlp.experts.{}.gate_proj",
        Expert(_, ExpertTensor::Up | ExpertTensor::UpBias) => "mlp.experts.{}.up_proj",
        Expert(_, ExpertTensor::Down | ExpertTensor::DownBias) => "mlp.experts.{}.down_proj",
        PostFfnNorm => "post_feedforward_layernorm",
    }
}

/// Names in GGUF files, as llama.cpp spells them.
pub(super) const GGUF: Names = Names {
    token_embedding: "token_embd",
    position_embedding: "position_embd",
    embedding_norm: "token_embd_norm",
    output_norm: "output_norm",
    output: "output",
    layers: "blk.",
    layer: gguf_layer,
    fused: &[],
    transposed: Transposed::None,
    llama_cpp_shapes: true,
    prefixes: &[("", "")],
};

/// The same with queries, keys and values in one tensor.
pub(super) const GGUF_QKV: Names = Names {
    layer: |tensor| match tensor.weight() {
        LayerTensor::Q | LayerTensor::K | LayerTensor::V => "attn_qkv",
        _ => gguf_layer(tensor),
    },
    fused: &[(&[LayerTensor::Q, LayerTensor::K, LayerTensor::V], Order::Stacked)],
    ..GGUF
};

pub(super) fn gguf_layer(tensor: LayerTensor) -> &'static str {
    use LayerTensor::*;
    match tensor {
        AttnNorm | AttnNormBias => "attn_norm",
        Q | QBias => "attn_q",
        K | KBias => "attn_k",
        V | VBias => "attn_v",
        QNorm | QNormBias => "attn_q_norm",
        KNorm | KNormBias => "attn_k_norm",
        Sinks => "attn_sinks",
        AttnSubNorm => "attn_sub_norm",
        QDown => "attn_q_a",
        QDownNorm => "attn_q_a_norm",
        QUp => "attn_q_b",
        Latent => "attn_kv_a_mqa",
        LatentNorm => "attn_kv_a_norm",
        LatentK => "attn_k_b",
        LatentV => "attn_v_b",
        QGate | QGateBias => "attn_gate",
        O | OBias => "attn_output",
        MixerIn | MixerInBias => "ssm_in",
        MixerGate => "ssm_gate",
        MixerBeta => "ssm_beta",
        MixerDecay => "ssm_alpha",
        Conv | ConvBias => "ssm_conv1d",
        DecayLog => "ssm_a$",
        Skip => "ssm_d$",
        StepBias => "ssm_dt.bias$",
        MixerNorm => "ssm_norm",
        MixerOut | MixerOutBias => "ssm_out",
        PostAttnNorm => "post_attention_norm",
        FfnNorm | FfnNormBias => "ffn_norm",
        Gate | GateBias => "ffn_gate",
        Up | UpBias => "ffn_up",
        FfnSubNorm => "ffn_sub_norm",
        Down | DownBias => "ffn_down",
        XieluPositive => "xielu_alpha_p$",
        XieluNegative => "xielu_alpha_n$",
        XieluSlope => "xielu_beta$",
        XieluFloor => "xielu_eps$",
        Router | RouterBias => "ffn_gate_inp",
        SelectionBias => "exp_probs_b.bias$",
        SharedRouter => "ffn_gate_inp_shexp",
        SharedGate => "ffn_gate_shexp",
        SharedUp => "ffn_up_shexp",
        SharedDown => "ffn_down_shexp",
        Expert(_, ExpertTensor::Gate | ExpertTensor::GateBias) => "ffn_gate_exps",
        Expert(_, ExpertTensor::Up | ExpertTensor::UpBias) => "ffn_up_exps",
        Expert(_, ExpertTensor::Down | ExpertTensor::DownBias) => "ffn_down_exps",
        PostFfnNorm => "post_ffw_norm",
    }
}
