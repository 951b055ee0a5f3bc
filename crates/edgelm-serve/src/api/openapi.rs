//! `GET /openapi.json`: what this server answers, as an OpenAPI 3.1 document.
//!
//! The tables here are checked against the routes and against the parsers by tests, in both directions, and
//! `docs/api.md` is written from them.

use axum::Json;
use serde_json::{Map, Value, json};

/// One route.
pub(super) struct Endpoint {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) api: &'static str,
    pub(super) about: &'static str,
    /// Fields of the body that are honoured.
    pub(super) fields: &'static [&'static [Field]],
    /// Fields that are known and refused, unless their value asks for nothing.
    pub(super) refused: &'static [&'static [&'static str]],
}

/// A field: name (with `!` where it is required), JSON types separated by `|`, meaning.
pub(super) type Field = (&'static str, &'static str, &'static str);

const MODEL: &[Field] = &[("model!", "string", "id of the model, as `/v1/models` lists it")];
const ANY_MODEL: &[Field] = &[("model", "string", "id of the model, if any is named")];

const SAMPLING: &[Field] = &[
    ("temperature", "number", "0 to 2; 0 takes the most probable token; the model's default, else 1"),
    ("top_p", "number", "0 to 1"),
    ("top_k", "integer", "0 or -1 switches it off"),
    ("min_p", "number", "0 to 1"),
    ("repetition_penalty", "number", "1 switches it off"),
    ("presence_penalty", "number", "-2 to 2"),
    ("frequency_penalty", "number", "-2 to 2"),
];

const OVERFLOW: Field =
    ("overflow", "string", "of a prompt that is too long: `refuse`, `slide` (leave out the oldest) or `summarize` it");

const COMMON: &[Field] = &[
    ("max_tokens", "integer", "a prompt that leaves no room for as many is refused"),
    ("max_completion_tokens", "integer", "the newer word for `max_tokens`"),
    ("logit_bias", "object", "token ids to numbers from -100 to 100"),
    ("stop", "string|array", "up to 16 texts, none of which appears in the answer"),
    ("ignore_eos", "boolean", "go on after the end of sequence"),
    ("skip_special_tokens", "boolean", "false keeps control tokens in the text"),
    ("n", "integer", "1 to 8 answers"),
    ("priority", "integer", "smaller goes first"),
    OVERFLOW,
    ("timeout", "number", "seconds from arrival to the last token, after which the request fails"),
    ("seed", "integer", "the same seed gives the same answer; answer number i takes seed + i"),
    ("response_format", "object", "`text`, `json_object` or `json_schema`; always enforced"),
    ("structured_outputs", "object", "`json`, `regex`, `choice`, `grammar` (Lark) or `json_object`"),
    ("guided_json", "object|string", "as `structured_outputs.json`"),
    ("guided_regex", "string", "as `structured_outputs.regex`"),
    ("guided_choice", "array", "as `structured_outputs.choice`"),
    ("guided_grammar", "string", "as `structured_outputs.grammar`"),
    ("guided_json_object", "boolean", "as `structured_outputs.json_object`"),
    ("user", "string", "a label of the caller's; changes nothing"),
    ("safety_identifier", "string", "a label of the caller's; changes nothing"),
    ("prompt_cache_key", "string", "a hint to caches; changes nothing"),
    ("prompt_cache_retention", "string", "a hint to caches; changes nothing"),
    ("metadata", "object", "labels of the caller's; change nothing"),
];

const LABELS: &[Field] = &[
    ("user", "string", "a label of the caller's; changes nothing"),
    ("safety_identifier", "string", "a label of the caller's; changes nothing"),
    ("prompt_cache_key", "string", "a hint to caches; changes nothing"),
    ("prompt_cache_retention", "string", "a hint to caches; changes nothing"),
    ("metadata", "object", "labels of the caller's; change nothing"),
];

const STREAM: &[Field] =
    &[("stream", "boolean", "send the answer as events"), ("stream_options", "object", "`include_usage`")];

const TOOLS: &[Field] = &[
    ("tools", "array", "functions; a `strict` one is called with valid arguments only"),
    ("tool_choice", "string|object", "`none`, `auto`, `required` (enforced) or one function (enforced)"),
    ("parallel_tool_calls", "boolean", "false allows one call in an answer (enforced)"),
];

const OPENAI_REFUSED: &[&str] = &[
    "audio",
    "min_tokens",
    "modalities",
    "moderation",
    "prediction",
    "prompt_cache_options",
    "reasoning_effort",
    "service_tier",
    "stop_token_ids",
    "store",
    "use_beam_search",
    "verbosity",
    "web_search_options",
];

const OLLAMA: &[Field] = &[
    (
        "options",
        "object",
        "`num_predict`, `temperature`, `top_k`, `top_p`, `min_p`, `repeat_penalty`, `repeat_last_n`, \
      `presence_penalty`, `frequency_penalty`, `stop`, `seed`, `num_ctx` (no more than the server's)",
    ),
    ("format", "string|object", "`json` or a JSON schema; always enforced"),
    ("logprobs", "boolean", "log-probabilities of tokens"),
    ("top_logprobs", "integer", "0 to 20 alternatives"),
    (
        "keep_alive",
        "string|number",
        "how long the model stays loaded afterwards: `5m`, seconds, 0 = not, below 0 = for ever",
    ),
    OVERFLOW,
    ("stream", "boolean", "JSON lines; true unless said otherwise"),
];

const ANTHROPIC_PROMPT: &[Field] = &[
    ("messages!", "array", "texts, `tool_use` and `tool_result`; the last one must be the user's"),
    ("system", "string|array", "text"),
    ("tools", "array", "functions of the client's own; a `strict` one is called with valid arguments only"),
    ("tool_choice", "object", "`auto`, `any` (enforced), `tool` (enforced), `none`; `disable_parallel_tool_use`"),
];

const ANTHROPIC_REFUSED: &[&str] = &[
    "cache_control",
    "container",
    "context_management",
    "diagnostics",
    "inference_geo",
    "mcp_servers",
    "output_config",
    "output_format",
    "service_tier",
    "speed",
    "thinking",
    "user_profile_id",
    "workspace_id",
];

const fn get(api: &'static str, path: &'static str, about: &'static str) -> Endpoint {
    Endpoint { method: "get", path, api, about, fields: &[], refused: &[] }
}

/// Every route.
pub(super) const ENDPOINTS: &[Endpoint] = &[
    Endpoint {
        method: "post",
        path: "/v1/chat/completions",
        api: "OpenAI",
        about: "Answers a conversation",
        fields: &[
            MODEL,
            &[
                ("messages!", "array", "roles `system`, `developer`, `user`, `assistant`, `tool`; contents are text"),
                ("logprobs", "boolean", "log-probabilities of tokens, as the model gives them before any constraint"),
                ("top_logprobs", "integer", "0 to 20 alternatives"),
                ("chat_template_kwargs", "object", "further variables of the chat template, as `enable_thinking`"),
            ],
            TOOLS,
            SAMPLING,
            COMMON,
            STREAM,
        ],
        refused: &[OPENAI_REFUSED, &["add_generation_prompt", "continue_final_message", "function_call", "functions"]],
    },
    Endpoint {
        method: "post",
        path: "/v1/completions",
        api: "OpenAI",
        about: "Continues a prompt",
        fields: &[
            MODEL,
            &[
                ("prompt!", "string|array", "one text, or tokens"),
                ("echo", "boolean", "begin the answer with the prompt; not with `logprobs`"),
                ("logprobs", "integer", "0 to 5 alternatives"),
            ],
            SAMPLING,
            COMMON,
            STREAM,
        ],
        refused: &[
            OPENAI_REFUSED,
            &["best_of", "parallel_tool_calls", "suffix", "tool_choice", "tools", "top_logprobs"],
        ],
    },
    Endpoint {
        method: "post",
        path: "/v1/responses",
        api: "OpenAI",
        about: "Answers a conversation; nothing is stored",
        fields: &[
            MODEL,
            &[
                ("input!", "string|array", "a text, or messages, calls and their outputs"),
                ("instructions", "string", "system message"),
                ("max_output_tokens", "integer", "a prompt that leaves no room for as many is refused"),
                ("top_logprobs", "integer", "0 to 20 alternatives"),
                ("text", "object", "`format`: `text`, `json_object` or `json_schema`; always enforced"),
                ("truncation", "string", "`disabled` and `auto` are `overflow`: `refuse` and `slide`"),
                OVERFLOW,
            ],
            TOOLS,
            SAMPLING,
            LABELS,
            STREAM,
        ],
        refused: &[&[
            "access_programs",
            "background",
            "background_options",
            "context_management",
            "conversation",
            "image",
            "include",
            "max_tool_calls",
            "moderation",
            "previous_response_id",
            "prompt",
            "prompt_cache_options",
            "reasoning",
            "service_tier",
            "store",
        ]],
    },
    Endpoint {
        method: "post",
        path: "/v1/embeddings",
        api: "OpenAI",
        about: "Embeds texts: states after the last layer and norm, of length 1",
        fields: &[
            MODEL,
            &[
                ("input!", "string|array", "a text, tokens, or an array of either; too long ones are refused"),
                ("dimensions", "integer", "keep this many values, scaled to length 1 again"),
                ("encoding_format", "string", "`float` or `base64`"),
                ("pooling", "string", "`last` (of the last token) or `mean` (of all)"),
            ],
            LABELS,
        ],
        refused: &[],
    },
    get("OpenAI", "/v1/models", "The model served"),
    get("OpenAI", "/v1/models/{id}", "The model served, by its id"),
    Endpoint {
        method: "post",
        path: "/v1/messages",
        api: "Anthropic",
        about: "Answers a conversation",
        fields: &[
            MODEL,
            ANTHROPIC_PROMPT,
            &[
                ("max_tokens!", "integer", "a prompt that leaves no room for as many is refused"),
                ("temperature", "number", "0 to 1"),
                ("top_p", "number", "0 to 1"),
                ("top_k", "integer", "0 switches it off"),
                ("stop_sequences", "array", "up to 16 texts, none of which appears in the answer"),
                ("metadata", "object", "`user_id`: a label; changes nothing"),
                ("stream", "boolean", "send the answer as events"),
                OVERFLOW,
            ],
        ],
        refused: &[ANTHROPIC_REFUSED],
    },
    Endpoint {
        method: "post",
        path: "/v1/messages/count_tokens",
        api: "Anthropic",
        about: "Counts the tokens of a conversation",
        fields: &[MODEL, ANTHROPIC_PROMPT],
        refused: &[ANTHROPIC_REFUSED],
    },
    Endpoint {
        method: "post",
        path: "/api/chat",
        api: "Ollama",
        about: "Answers a conversation; without messages, says that the model is loaded",
        fields: &[
            MODEL,
            &[
                ("messages", "array", "roles `system`, `user`, `assistant`, `tool`; images are refused"),
                ("tools", "array", "functions"),
            ],
            OLLAMA,
        ],
        refused: &[&["shift", "think", "truncate"]],
    },
    Endpoint {
        method: "post",
        path: "/api/generate",
        api: "Ollama",
        about: "Answers a prompt; without one, says that the model is loaded",
        fields: &[
            MODEL,
            &[
                ("prompt", "string", "put into the chat template, unless `raw`"),
                ("system", "string", "system message"),
                ("raw", "boolean", "take the prompt as it is"),
            ],
            OLLAMA,
        ],
        refused: &[&[
            "context", "height", "images", "shift", "steps", "suffix", "template", "think", "truncate", "width",
        ]],
    },
    Endpoint {
        method: "post",
        path: "/api/embed",
        api: "Ollama",
        about: "Embeds texts",
        fields: &[
            MODEL,
            &[
                ("input!", "string|array", "texts"),
                ("truncate", "boolean", "true cuts texts that are too long; else they are refused"),
                ("dimensions", "integer", "keep this many values, scaled to length 1 again"),
                ("options", "object", "none has a meaning here"),
                (
                    "keep_alive",
                    "string|number",
                    "how long the model stays loaded afterwards: `5m`, seconds, 0 = not, below 0 = for ever",
                ),
            ],
        ],
        refused: &[],
    },
    Endpoint {
        method: "post",
        path: "/api/embeddings",
        api: "Ollama",
        about: "Embeds one text",
        fields: &[
            MODEL,
            &[
                ("prompt!", "string", "the text"),
                ("options", "object", "none has a meaning here"),
                (
                    "keep_alive",
                    "string|number",
                    "how long the model stays loaded afterwards: `5m`, seconds, 0 = not, below 0 = for ever",
                ),
            ],
        ],
        refused: &[],
    },
    Endpoint {
        method: "post",
        path: "/api/show",
        api: "Ollama",
        about: "What the model is",
        fields: &[&[
            ("model", "string", "id of the model"),
            ("name", "string", "the older word for `model`"),
            ("verbose", "boolean", "taken, and without effect"),
        ]],
        refused: &[],
    },
    get("Ollama", "/api/tags", "The model served"),
    get("Ollama", "/api/ps", "The model loaded"),
    get("Ollama", "/api/version", "Version of this server"),
    Endpoint {
        method: "post",
        path: "/generate",
        api: "EdgeLM",
        about: "Continues a prompt, in the simplest form",
        fields: &[
            ANY_MODEL,
            &[("prompt!", "string|array", "one text, or tokens"), ("stream", "boolean", "send the answer as events")],
            SAMPLING,
            COMMON,
        ],
        refused: &[OPENAI_REFUSED, &["logprobs"]],
    },
    Endpoint {
        method: "post",
        path: "/tokenize",
        api: "EdgeLM",
        about: "Ids of a text or a conversation, as vLLM and llama.cpp's server answer",
        fields: &[
            ANY_MODEL,
            &[
                ("prompt", "string", "vLLM: a prompt; the model's special tokens are added"),
                ("messages", "array", "vLLM: a conversation"),
                ("add_special_tokens", "boolean", "vLLM: false adds none"),
                ("content", "string", "llama.cpp: a text; nothing is added"),
                ("add_special", "boolean", "llama.cpp: true adds the model's special tokens"),
                ("with_pieces", "boolean", "llama.cpp: the text of each token as well"),
            ],
            TOOLS,
        ],
        refused: &[&["add_generation_prompt", "parse_special", "return_token_strs"]],
    },
    Endpoint {
        method: "post",
        path: "/detokenize",
        api: "EdgeLM",
        about: "Text of ids",
        fields: &[ANY_MODEL, &[("tokens!", "array", "ids")]],
        refused: &[],
    },
    get("EdgeLM", "/", "For browsers: the dashboard"),
    get("EdgeLM", "/dashboard", "The dashboard"),
    get("EdgeLM", "/dashboard/style.css", "A part of it"),
    get("EdgeLM", "/dashboard/script.js", "A part of it"),
    get("EdgeLM", "/dashboard/state", "Models and requests, for the dashboard"),
    get("EdgeLM", "/health", "200 when the model is ready, 503 while it loads"),
    get("EdgeLM", "/metrics", "Metrics for Prometheus"),
    get("EdgeLM", "/openapi.json", "This document"),
    get("EdgeLM", "/v1/traces", "Chrome traces that can be fetched: of requests with the header `x-edgelm-trace: 1`"),
    get("EdgeLM", "/v1/traces/{id}", "One of them, by the id of its request"),
];

/// `GET /openapi.json`.
pub(super) async fn document() -> Json<Value> {
    Json(openapi())
}

fn openapi() -> Value {
    let mut paths = Map::new();
    for endpoint in ENDPOINTS {
        let mut operation = json!({
            "summary": endpoint.about,
            "tags": [endpoint.api],
            "responses": {
                "200": {"description": "the answer"},
                "4XX": {"description": "the request is refused; the message names the field"},
                "5XX": {"description": "the server cannot answer now"},
            },
        });
        if endpoint.path.contains("{id}") {
            operation["parameters"] =
                json!([{"name": "id", "in": "path", "required": true, "schema": {"type": "string"}}]);
        }
        if endpoint.method == "post" {
            operation["requestBody"] =
                json!({"required": true, "content": {"application/json": {"schema": body(endpoint)}}});
        }
        let path = paths.entry(endpoint.path).or_insert_with(|| json!({}));
        path[endpoint.method] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "EdgeLM",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "One language model behind the APIs of OpenAI, Ollama and Anthropic. A field is honoured or \
                refused, never ignored; those under `x-refused` are known and refused, unless their value asks for nothing.",
        },
        "paths": paths,
        "components": {"securitySchemes": {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }},
        "security": [{}, {"bearer": []}, {"key": []}],
    })
}

fn body(endpoint: &Endpoint) -> Value {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for (name, types, about) in endpoint.fields.iter().copied().flatten() {
        let types: Vec<&str> = types.split('|').collect();
        let kind = if let [one] = types[..] { json!(one) } else { json!(types) };
        let plain = name.trim_end_matches('!');
        if plain != *name {
            required.push(plain);
        }
        properties.insert(plain.to_owned(), json!({"type": kind, "description": about}));
    }
    let refused: Vec<&str> = endpoint.refused.iter().copied().flatten().copied().collect();
    let mut schema = json!({"type": "object", "properties": properties, "additionalProperties": false});
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    if !refused.is_empty() {
        schema["x-refused"] = json!(refused);
    }
    schema
}

#[cfg(test)]
mod tests;
