//! How families of models write calls.

/// The marks around a call and the words inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form {
    /// Begins a call, or a list of calls. Empty: an answer that begins with `{` is a call.
    pub(crate) open: &'static str,
    /// Ends it. Empty: the JSON ends it.
    pub(crate) close: &'static str,
    /// What stands between a function's name and its arguments, where both are not in one JSON object.
    pub(crate) separator: Option<&'static str>,
    /// Calls stand in one JSON array.
    pub(crate) is_list: bool,
    /// The key of the arguments.
    pub(crate) arguments: &'static str,
    /// The template describes tools and writes calls and results; else this is done in its place.
    pub(crate) is_in_template: bool,
}

/// `<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes, Qwen, SmolLM3, Granite 4 and others.
const HERMES: Form = Form {
    open: "<tool_call>",
    close: "</tool_call>",
    separator: None,
    is_list: false,
    arguments: "arguments",
    is_in_template: true,
};

/// The same, described in the prompt to models whose template has no place for tools.
pub(super) const GENERIC: Form = Form { is_in_template: false, ..HERMES };

/// `[TOOL_CALLS][{"name": …, "arguments": …}]`: Mistral up to tokenizer version 7.
const MISTRAL: Form = Form { open: "[TOOL_CALLS]", close: "", is_list: true, ..HERMES };

/// `[TOOL_CALLS]name[ARGS]{…}`: Mistral from tokenizer version 11 on.
const MISTRAL_ARGS: Form = Form { separator: Some("[ARGS]"), is_list: false, ..MISTRAL };

/// `<|tool_call|>[{"name": …, "arguments": …}]`: Granite 3, Phi-4-mini.
const GRANITE: Form = Form { open: "<|tool_call|>", close: "", is_list: true, ..HERMES };

/// `<|tool_call|>[…]<|/tool_call|>`: Phi-4-mini.
const PHI: Form = Form { close: "<|/tool_call|>", ..GRANITE };

/// `{"name": …, "parameters": …}` as the whole answer: Llama 3.
const LLAMA: Form = Form { open: "", close: "", arguments: "parameters", ..HERMES };

impl Form {
    /// The texts that stand around names and arguments.
    pub(crate) fn marks(&self) -> impl Iterator<Item = &'static str> {
        [Some(self.open), Some(self.close), self.separator].into_iter().flatten().filter(|mark| !mark.is_empty())
    }

    /// The form that a template asks its model for; `None` for one that is not known here.
    pub(crate) fn of_template(source: &str) -> Option<Self> {
        let has = |text: &str| source.contains(text);
        Some(match () {
            () if !has("tools") => GENERIC,
            // XML inside the marks, one tag for each argument: Qwen3-Coder.
            () if has("<tool_call>") && has("<function=") => return None,
            () if has("<tool_call>") => HERMES,
            () if has("[TOOL_CALLS]") && has("[ARGS]") => MISTRAL_ARGS,
            () if has("[TOOL_CALLS]") => MISTRAL,
            () if has("<|/tool_call|>") => PHI,
            () if has("<|tool_call|>") => GRANITE,
            () if has("<|python_tag|>") || (has("ipython") && has("\"parameters\"")) => LLAMA,
            () => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_tell_the_form() {
        let of = Form::of_template;
        assert_eq!(of("{% for message in messages %}"), Some(GENERIC));
        assert_eq!(of("{% if tools %}<tool_call>"), Some(HERMES));
        assert_eq!(of("{% if tools %}<tool_call><function=name>"), None);
        assert_eq!(of("{% if tools %}[TOOL_CALLS] ["), Some(MISTRAL));
        assert_eq!(of("{% if tools %}[TOOL_CALLS]name[ARGS]"), Some(MISTRAL_ARGS));
        assert_eq!(of("{% if tools %}<|tool_call|>"), Some(GRANITE));
        assert_eq!(of("{% if tools %}<|tool_call|><|/tool_call|>"), Some(PHI));
        assert_eq!(of("{% if tools %}<|python_tag|>"), Some(LLAMA));
        assert_eq!(of("{% if tools %}<|something_else|>"), None);
    }
}
