//! `serve --config F.toml`: every flag of `serve` under its own name, and `--print-config`.
//!
//! `[[models]]` tables stand for the hidden flag `--models`, which takes each as an inline table.
//!
//! There is no second list of settings: the keys are the flags that the command line has, so a new flag has its key. What
//! the file says becomes the flags' defaults, so what is given on the command line or in the environment wins.

use crate::{
    failure::Usage,
    options::{Cli, Command as Chosen},
};
use anyhow::Context;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches, error::ErrorKind};
use std::{any::TypeId, ffi::OsString, fmt::Write, fs, ops::Range, path::Path};
use toml::{
    Value,
    de::{DeTable, DeValue},
};

/// Flags that say where settings come from, and are none.
const NO_SETTINGS: [&str; 3] = ["config", "print-config", "help"];
/// The key whose value is not words.
const TABLES: &str = "models";
/// Flags of every command that change what a server does.
const GLOBAL: [&str; 2] = ["threads", "isa"];

/// Reads `arguments` again, with the values of the file where they say nothing.
///
/// # Errors
/// A file that cannot be read; a key that is no flag, or a value that the flag does not take, with its line.
pub fn layered(arguments: &[OsString], path: &Path) -> anyhow::Result<Cli> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let command = over(Cli::command(), &text).map_err(|Fault { at, what }| {
        let line = text.get(..at).map_or(1, |before| before.matches('\n').count() + 1);
        Usage(format!("{}:{line}: {what}", path.display()))
    })?;
    let matches = command.clone().get_matches_from(arguments);
    Ok(Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut command.clone()).exit()))
}

/// What is wrong with a file, and where.
#[derive(Debug)]
struct Fault {
    at: usize,
    what: String,
}

/// The command with the file's values as its defaults.
fn over(mut command: Command, text: &str) -> Result<Command, Fault> {
    let whole = |error: toml::de::Error| Fault {
        at: error.span().map_or(0, |Range { start, .. }| start),
        what: error.message().to_owned(),
    };
    let table = DeTable::parse(text).map_err(whole)?;
    for (key, value) in table.get_ref() {
        let (name, at) = (key.get_ref().as_ref(), key.span().start);
        let fault = |what: String| Fault { at, what: format!("`{name}`: {what}") };
        let arg = settings()
            .into_iter()
            .find(|arg| key_of(arg) == Some(name))
            .ok_or_else(|| Fault { at, what: format!("`{name}` is not a flag of `edgelm serve`") })?;
        let values = match name {
            TABLES => tables(text),
            _ => values(value.get_ref(), &arg),
        };
        let values = values.map_err(fault)?;
        check(&arg, name, &values).map_err(fault)?;
        let default = move |arg: Arg| arg.required(false).default_values(values.clone());
        let id = arg.get_id().to_string();
        command = match GLOBAL.contains(&name) {
            true => command.mut_arg(id, default),
            false => command.mut_subcommand("serve", |serve| serve.mut_arg(id, default)),
        };
    }
    Ok(command)
}

/// The `[[models]]` of a file, each as an inline table.
fn tables(text: &str) -> Result<Vec<String>, String> {
    let file: toml::Table = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    let none = || "must be tables: `[[models]]`".to_owned();
    let all = file.get(TABLES).and_then(Value::as_array).ok_or_else(none)?;
    all.iter().map(|table| table.as_table().map(|_| table.to_string()).ok_or_else(none)).collect()
}

/// A TOML value as the words that the command line would have.
fn values(value: &DeValue<'_>, arg: &Arg) -> Result<Vec<String>, String> {
    let one = |value: &DeValue<'_>| match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map(|number| number.to_string())
            .map_err(|_| "the number is too large".to_owned()),
        DeValue::Float(number) => Ok(number.to_string()),
        other => Err(format!("is {}, not a text or a number", kind(other))),
    };
    match (arg.get_action(), value) {
        (ArgAction::SetTrue, DeValue::Boolean(value)) => Ok(vec![value.to_string()]),
        (ArgAction::SetTrue, other) => Err(format!("is {}, not true or false", kind(other))),
        (_, DeValue::Array(all)) if is_list(arg) => all.iter().map(|value| one(value.get_ref())).collect(),
        (_, DeValue::Array(_)) => Err("takes one value, not an array".to_owned()),
        (_, other) => Ok(vec![one(other)?]),
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// Asks the flag's own parser, so that a fault of the file is told by its line and not as one of the command line.
fn check(arg: &Arg, name: &str, values: &[String]) -> Result<(), String> {
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return Ok(());
    }
    let flag = |value: &String| if arg.is_positional() { value.clone() } else { format!("--{name}={value}") };
    // With a file, so that nothing else is missing.
    let words = ["edgelm", "serve", "--config=-"].into_iter().map(str::to_owned).chain(values.iter().map(flag));
    match Cli::command().try_get_matches_from(words) {
        Ok(_) => Ok(()),
        // What else it needs may be in the file, or on the command line.
        Err(error) if error.kind() == ErrorKind::MissingRequiredArgument => Ok(()),
        Err(error) => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            Err(first.strip_prefix("error: ").unwrap_or(first).to_owned())
        }
    }
}

/// What can be set, with its names as the command line has them.
fn settings() -> Vec<Arg> {
    let cli = Cli::command();
    let global = cli.get_arguments().filter(|arg| key_of(arg).is_some_and(|key| GLOBAL.contains(&key)));
    let serve = cli.find_subcommand("serve").into_iter().flat_map(Command::get_arguments);
    let own = serve.filter(|arg| key_of(arg).is_some_and(|key| !NO_SETTINGS.contains(&key)));
    global.chain(own).cloned().collect()
}

/// A flag's long name; the id of what has none.
fn key_of(arg: &Arg) -> Option<&str> {
    arg.get_long().or_else(|| arg.is_positional().then(|| arg.get_id().as_str()))
}

fn is_list(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append) || arg.get_num_args().is_some_and(|count| count.max_values() > 1)
}

/// What is in force, as a file that says the same. `arguments` are those of the command line.
///
/// # Errors
/// Those of [`layered`].
pub fn effective(arguments: &[OsString], path: Option<&Path>) -> anyhow::Result<String> {
    let mut command = Cli::command();
    if let Some(path) = path {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        command = over(command, &text).map_err(|fault| Usage(fault.what))?;
    }
    let matches = command.get_matches_from(arguments);
    Ok(matches.subcommand_matches("serve").map(written).unwrap_or_default())
}

fn written(matches: &ArgMatches) -> String {
    let mut text = String::new();
    for arg in settings() {
        let Some(key) = key_of(&arg) else { continue };
        let id = arg.get_id().as_str();
        let value = if matches!(arg.get_action(), ArgAction::SetTrue) {
            Value::Boolean(matches.get_flag(id))
        } else {
            let words = matches.get_raw(id).into_iter().flatten();
            let mut values: Vec<Value> = words.map(|word| toml_value(&word.to_string_lossy(), &arg)).collect();
            match (is_list(&arg), values.pop()) {
                (_, None) => continue,
                (false, Some(value)) => value,
                (true, Some(last)) => {
                    values.push(last);
                    Value::Array(values)
                }
            }
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{key} = {value}");
    }
    text
}

/// A number where the flag takes one and it is written as TOML would write it; else a text.
fn toml_value(word: &str, arg: &Arg) -> Value {
    let takes = arg.get_value_parser().type_id();
    let is_text = takes == TypeId::of::<String>() || takes == TypeId::of::<std::path::PathBuf>();
    match word.parse::<i64>() {
        Ok(number) if !is_text && number.to_string() == word => Value::Integer(number),
        _ if key_of(arg) == Some(TABLES) => table_value(word),
        _ => Value::String(word.to_owned()),
    }
}

/// An inline table; a text where it is none, which its parser has refused before.
fn table_value(word: &str) -> Value {
    let parsed = toml::from_str::<toml::Table>(&format!("table = {word}"));
    let table = parsed.ok().and_then(|mut file| file.remove("table"));
    table.unwrap_or_else(|| Value::String(word.to_owned()))
}

/// The command line of this process with the configuration file that it names, if it names one.
///
/// # Errors
/// Those of [`layered`].
pub fn complete(cli: Cli, arguments: &[OsString]) -> anyhow::Result<Cli> {
    match &cli.command {
        Chosen::Serve(args) => match args.config() {
            Some(path) => layered(arguments, path),
            None => Ok(cli),
        },
        _ => Ok(cli),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::parser::ValueSource;

    fn matches(text: &str, arguments: &[&str]) -> Result<ArgMatches, String> {
        let command = over(Cli::command(), text).map_err(|fault| fault.what)?;
        let arguments = ["edgelm", "serve"].iter().chain(arguments);
        command.try_get_matches_from(arguments).map_err(|error| error.to_string())
    }

    fn printed(text: &str, arguments: &[&str]) -> String {
        let matches = matches(text, arguments).expect("valid");
        written(matches.subcommand_matches("serve").expect("serve"))
    }

    #[test]
    fn every_flag_has_its_key() {
        let cli = Cli::command();
        let serve = cli.find_subcommand("serve").expect("serve");
        let keys: Vec<String> = settings().iter().filter_map(|arg| key_of(arg).map(str::to_owned)).collect();
        for arg in serve.get_arguments() {
            let key = key_of(arg).expect("a long name or a place");
            assert_ne!(keys.iter().any(|name| name == key), NO_SETTINGS.contains(&key), "`{key}`");
            assert!(
                matches!(arg.get_action(), ArgAction::Set | ArgAction::Append | ArgAction::SetTrue)
                    || NO_SETTINGS.contains(&key),
                "`{key}` is of a kind that a file cannot have"
            );
        }
        assert!(GLOBAL.iter().all(|key| keys.iter().any(|name| name == key)));
    }

    #[test]
    fn the_file_stands_behind_the_command_line() {
        let text =
            "model = \"demo\"\nport = 9000\nqueue = 3\ninsecure-bind = true\nthreads = 1\nlora = [\"a=b\", \"c=d\"]\n";
        let found = matches(text, &["--port", "9001"]).expect("valid");
        let serve = found.subcommand_matches("serve").expect("serve");
        assert_eq!(serve.get_one::<u16>("port"), Some(&9001));
        assert_eq!(serve.get_one::<usize>("queue"), Some(&3));
        assert_eq!(serve.value_source("queue"), Some(ValueSource::DefaultValue));
        assert!(serve.get_flag("insecure_bind"));
        assert_eq!(serve.get_raw("lora").expect("two").count(), 2);
        let cli = Cli::from_arg_matches(&found).expect("valid");
        assert_eq!(cli.global.threads, Some(1));
    }

    #[test]
    fn what_is_printed_can_be_read_back() {
        let first =
            printed("", &["demo", "--kv-budget", "1.5GiB", "--request-timeout", "0.5", "--lora", "x=y", "--name", "7"]);
        for line in
            ["kv-budget = \"1.5GiB\"", "port = 8080", "name = \"7\"", "insecure-bind = false", "lora = [\"x=y\"]"]
        {
            assert!(first.lines().any(|other| other == line), "{line}\n{first}");
        }
        assert_eq!(printed(&first, &[]), first);
    }

    #[test]
    fn models_may_have_tables() {
        let text = "port = 1\n[[models]]\npath = \"a.gguf\"\nlora = [\"x=d\"]\n\n[[models]]\npath = [\"b\", \"c\"]\nname = \"m\"\n";
        let first = printed(text, &[]);
        let line = first.lines().find(|line| line.starts_with("models = ")).expect("tables");
        assert!(line.contains("path = \"a.gguf\"") && line.contains("name = \"m\""), "{line}");
        assert_eq!(printed(&first, &[]), first);
    }

    #[test]
    fn faults_name_the_key_and_the_place() {
        for (text, what, at) in [
            ("port = 1\n[[models]]\npath = \"x\"\nctx = 5\n", "`models`: invalid value", 11),
            ("models = [\"x\"]\n", "`models`: must be tables", 0),
            ("port = 1\nprot = 2\n", "`prot` is not a flag of `edgelm serve`", 9),
            ("config = \"x\"\n", "`config` is not a flag of `edgelm serve`", 0),
            ("port = 70000\n", "`port`: invalid value '70000'", 0),
            ("port = [1, 2]\n", "`port`: takes one value, not an array", 0),
            ("insecure-bind = \"yes\"\n", "`insecure-bind`: is a text, not true or false", 0),
            ("kv = \"q99\"\n", "`kv`: invalid value 'q99'", 0),
            ("[tls]\ncert = \"x\"\n", "`tls` is not a flag", 1),
            ("queue = true\n", "`queue`: is true or false, not a text or a number", 0),
        ] {
            let fault = over(Cli::command(), text).expect_err("a fault");
            assert!(fault.what.starts_with(what), "{}", fault.what);
            assert_eq!(fault.at, at, "{text}");
        }
        assert!(over(Cli::command(), "port = \n").is_err());
        assert!(over(Cli::command(), "port = 1\nport = 2\n").is_err());
    }

    /// Cut anywhere, and with anything in the place of anything: settings, or a fault with a place in the text.
    #[test]
    fn broken_files_are_faults() {
        let text = "model = [\"démo\"]\nport = 0x1F\nkv = 'q8'\nrequest-timeout = 1e3\n\"queue\" = 1_0\n";
        let strange = [
            "\u{0}",
            "\"",
            "'''",
            "[",
            "{a=1}",
            "99999999999999999999",
            "-inf",
            "1979-05-27",
            "=",
            "\r",
            "é",
            "#",
            "\\",
        ];
        let check = |text: &str| {
            if let Err(Fault { at, what }) = over(Cli::command(), text) {
                assert!(at <= text.len() && !what.is_empty(), "{at} {what} in {text:?}");
            }
        };
        for (index, (at, _)) in text.char_indices().enumerate() {
            let (before, after) = text.split_at(at);
            check(before);
            check(&format!("{before}{}{after}", strange[index % strange.len()]));
            let rest = after.char_indices().nth(3).map_or("", |(end, _)| &after[end..]);
            check(&format!("{before}{}{rest}", strange[(index + 5) % strange.len()]));
        }
    }
}
