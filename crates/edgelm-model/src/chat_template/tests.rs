#![allow(clippy::unwrap_used)]

use super::*;
use serde_json::json;
use std::path::{Path, PathBuf};

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/model/chat_templates")
}

fn render(source: &str, variables: Value) -> Result<String, ModelError> {
    ChatTemplate::new(source, Some("<s>"), None)?.render(&[], false, variables.as_object().unwrap())
}

#[track_caller]
fn check(source: &str, variables: Value, expected: &str) {
    assert_eq!(render(source, variables).unwrap(), expected, "{source}");
}

#[test]
fn goldens() {
    for name in ["chatml", "gemma", "llama2", "llama3", "mistral", "phi3", "qwen3", "zephyr"] {
        let directory = testdata().join(name);
        let config = std::fs::read(directory.join("tokenizer_config.json")).unwrap();
        let jinja = std::fs::read_to_string(directory.join("chat_template.jinja")).ok();
        let template = ChatTemplate::from_hf(Some(&config), jinja.as_deref()).unwrap().unwrap();
        let expected: Value =
            serde_json::from_slice(&std::fs::read(directory.join("expected.json")).unwrap()).unwrap();
        for case in expected["cases"].as_array().unwrap() {
            let mut arguments = case["arguments"].as_object().unwrap().clone();
            let add_generation_prompt = arguments.remove("add_generation_prompt").unwrap().as_bool().unwrap();
            let rendered = template.render(case["messages"].as_array().unwrap(), add_generation_prompt, &arguments);
            match rendered {
                Ok(text) => assert_eq!(text, case["output"], "{name}: {case}"),
                Err(ModelError::Template(message)) => assert_eq!(message, case["error"], "{name}: {case}"),
                Err(other) => panic!("{name}: {other}"),
            }
        }
    }
}

/// Expected values: jinja2 3.1 in the environment that transformers 5 sets up.
#[test]
fn values_print_as_in_python() {
    let values = json!({"x": {"a": [1, 2.5, "it's", null, true], "b": {}}, "f": [1.0, 1e16, 1e-5, 0.1, 1e15, -2.5e-7]});
    check("{{ x }}", values.clone(), r#"{'a': [1, 2.5, "it's", None, True], 'b': {}}"#);
    check("{{ f }}{{ f[1] }}", values.clone(), "[1.0, 1e+16, 1e-05, 0.1, 1000000000000000.0, -2.5e-07]1e+16");
    check("{{ x.a ~ none ~ true }}", values.clone(), r#"[1, 2.5, "it's", None, True]NoneTrue"#);
    check("{{ f[2]|string }}|{{ nothing }}|{{ none|trim }}", values.clone(), "1e-05||None");
    check("{{ x.items()|list }}", json!({"x": {"a": 1}}), "[('a', 1)]");
}

#[test]
fn tojson_is_json_dumps() {
    let values = json!({"x": {"b": "<a & 'ü'>\n", "a": [1, 2.0, {}, []]}});
    check("{{ x|tojson }}", values.clone(), r#"{"b": "<a & 'ü'>\n", "a": [1, 2.0, {}, []]}"#);
    check("{{ x|tojson(ensure_ascii=true) }}", values.clone(), r#"{"b": "<a & '\u00fc'>\n", "a": [1, 2.0, {}, []]}"#);
    check("{{ x.a|tojson(indent=2) }}", values.clone(), "[\n  1,\n  2.0,\n  {},\n  []\n]");
    check("{{ x|tojson(separators=(',', ':'), sort_keys=true) }}", values, r#"{"a":[1,2.0,{},[]],"b":"<a & 'ü'>\n"}"#);
    check("{{ '\u{1f600}\u{7f}'|tojson(true) }}", json!({}), "\"\\ud83d\\ude00\u{7f}\"");
    assert!(render("{{ nothing|tojson }}", json!({})).is_err());
}

#[test]
fn whitespace_is_controlled_as_in_jinja2() {
    check("a\n  {% if true %}\n  b\n  {% endif %}\nc\n", json!({}), "a\n  b\nc");
    check("a\n  {#- c #}\n b {%+ if true %} c{% endif +%}\nd", json!({}), "a b  c\nd");
    check("a\r\n{% if true %}\r\nb{% endif %}", json!({}), "a\nb");
}

#[test]
fn python_methods_and_loops() {
    let text = json!({"t": "  a,b,,c ", "d": {"k": 1}});
    check("{{ t.strip().split(',') }}{{ t.rstrip().rsplit(',', 1)[-1] }}", text.clone(), "['a', 'b', '', 'c']c");
    check("{{ 'x y  z'.rsplit(none, 1) }}{{ 'a=b=c'.partition('=') }}", text.clone(), "['x y', 'z']('a', '=', 'b=c')");
    check("{{ 'prefix'.removeprefix('pre') }}{{ d.get('z', 7) }}{{ t[2:5] }}{{ t[::-1][:2] }}", text, "fix7a,b c");
    check(
        "{% for i in [1,2,3,4] %}{% if i == 2 %}{% continue %}{% elif i == 4 %}{% break %}{% endif %}{{ loop.previtem }}{{ i }}{% endfor %}",
        json!({}),
        "123",
    );
    check("{% set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", json!({}), "3");
    check("{{ 'a' is sequence }}{{ {} is sequence }}{{ 'a' is iterable }}{{ 1 is iterable }}", json!({}), "TrueTrueTrueFalse");
}

#[test]
fn generation_blocks_write_their_body() {
    check(
        "{% for m in [1] %}\n{%- generation %}\n x{{ '{% generation %}' }}{# {% generation %} #}\n{%- endgeneration -%}\n{% endfor %}",
        json!({}),
        " x{% generation %}",
    );
    check("{% raw %}{% generation %}{{ '{%' }}{% endraw %}{% generation %}y{% endgeneration %}", json!({}), "{% generation %}{{ '{%' }}y");
}

#[test]
fn special_tokens_and_tools_are_visible() {
    check("{{ bos_token }}{{ eos_token is defined }}{{ tools is defined }}{{ tools is none }}", json!({}), "<s>FalseTrueTrue");
    let config = json!({"unk_token": {"content": "<u>"}, "pad_token": null, "chat_template": [
        {"name": "default", "template": "{{ unk_token }}{{ pad_token is defined }}"},
        {"name": "tool_use", "template": "tools: {{ tools[0].name }}"}]});
    let template = ChatTemplate::from_hf(Some(config.to_string().as_bytes()), None).unwrap().unwrap();
    assert_eq!(template.render(&[], true, &Map::new()).unwrap(), "<u>False");
    let arguments = json!({"tools": [{"name": "t"}]});
    assert_eq!(template.render(&[], true, arguments.as_object().unwrap()).unwrap(), "tools: t");
    assert_eq!(template.source(), "{{ unk_token }}{{ pad_token is defined }}");
}

#[test]
fn reasoning_has_all_its_names() {
    let template = ChatTemplate::new("{{ messages[0].thinking }}{{ messages[0].reasoning_content }}", None, None).unwrap();
    let message = json!({"role": "assistant", "reasoning": "r"});
    assert_eq!(template.render(&[message], false, &Map::new()).unwrap(), "rr");
}

#[test]
fn a_folder_without_a_template_has_none() {
    assert!(ChatTemplate::from_hf(None, None).unwrap().is_none());
    assert!(ChatTemplate::from_hf(Some(br#"{"eos_token": "x"}"#), None).unwrap().is_none());
    assert!(ChatTemplate::from_hf(Some(br#"{"chat_template": 3}"#), None).is_err());
    assert!(ChatTemplate::from_hf(Some(br#"{"chat_template": [{"name": "rag", "template": ""}]}"#), None).is_err());
}

#[test]
fn errors_say_what_and_where() {
    let error = render("{% macro m() %}{{ raise_exception('No: ' ~ 1) }}{% endmacro %}{{ m() }}", json!({})).unwrap_err();
    assert_eq!(error.to_string(), "chat template: No: 1");
    let error = render("a\n{{ 'x' + 1 }}", json!({})).unwrap_err().to_string();
    assert!(error.contains("line 2"), "{error}");
    let error = ChatTemplate::new("a\n{% if %}", None, None).err().unwrap().to_string();
    assert!(error.contains("line 2"), "{error}");
}

#[test]
fn hostile_templates_end() {
    let deep = format!("{}1{}", "(".repeat(100_000), ")".repeat(100_000));
    let nested = "{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}";
    for source in [
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 'x' * 99999999999 }}",
        "{% set s = 'x' * 1000000 %}{% for i in range(1000) %}{{ s }}{% endfor %}",
        "{% include 'default' %}",
        &format!("{{{{ {deep} }}}}"),
        &format!("{{% set ns = namespace(x=1) %}}{nested}{{{{ ns.x }}}}"),
        &format!("{{% set ns = namespace(x=1) %}}{nested}{{{{ ns.x|tojson }}}}"),
    ] {
        assert!(render(source, json!({})).is_err(), "{}", &source[..source.len().min(80)]);
    }
}

#[test]
fn dates() {
    let format = "%d %b %Y|%A %-d %B|%H:%M:%S|%I %p|%j|%F|%y%%";
    // Values from the C library's date command.
    assert_eq!(clock::strftime(format, 0).unwrap(), "01 Jan 1970|Thursday 1 January|00:00:00|12 AM|001|1970-01-01|70%");
    assert_eq!(
        clock::strftime(format, 1_709_210_096).unwrap(),
        "29 Feb 2024|Thursday 29 February|12:34:56|12 PM|060|2024-02-29|24%"
    );
    assert_eq!(
        clock::strftime(format, 4_102_444_799).unwrap(),
        "31 Dec 2099|Thursday 31 December|23:59:59|11 PM|365|2099-12-31|99%"
    );
    assert!(clock::strftime("%Q", 0).is_err());
    check("{{ strftime_now('%Y')|length }}", json!({}), "4");
}
