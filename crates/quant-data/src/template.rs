//! Chat templates: the Jinja programs that turn messages into the text a model was trained on.

use std::path::Path;

use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior};
use serde_json::Map;

use crate::bounded::{Bounded, MAX_TEXT};
use crate::clock::strftime;
use crate::contain::contain;
use crate::files::read_text;
use crate::filters::{add_filters, too_long};
use crate::python_methods::method;
use crate::python_value::{from_entries, from_json, write_str};
use crate::tokenizer::{SpecialTokens, read_config};
use crate::{Conversation, DataError};

/// The time `strftime_now` reports: 26 July 2024, 00:00 UTC, in seconds since 1970.
///
/// Some templates write today's date into the system turn. A calibration set that changes every midnight
/// could not be reproduced; this date is what the Llama 3 templates themselves fall back to.
const TEMPLATE_TIME: i64 = 1_721_952_000;

// The bounds of one rendering. Real templates have less than 100 KB and take about a hundred steps per message.

/// Longest source in bytes.
const MAX_SOURCE: usize = 1 << 20;
/// Steps of the template engine.
const FUEL: u64 = 1_000_000;
/// Stack of the thread that renders. A step nests values by one level at most, and printing or dropping a level takes
/// a few hundred bytes of stack, so the bound on steps bounds it. Only what is touched becomes resident.
const STACK: usize = 1 << 30;
const NAME: &str = "chat";

/// A compiled chat template with the special tokens it may print.
///
/// The environment imitates the one of `transformers`: `trim_blocks` and `lstrip_blocks`, Python's string,
/// list and dictionary methods, loop controls, `raise_exception`, `strftime_now`, `tojson` with Python's
/// separators, and values printed as Python prints them. It differs
/// where nothing can be hooked in: a list or dictionary written out in the template prints as the engine does inside `~` and
/// `join`, a tuple written out prints as a list, and `%` does not format strings. `{% generation %}` marks are accepted
/// and have no effect.
pub struct ChatTemplate {
    environment: Environment<'static>,
    origin: String,
    special: SpecialTokens,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("origin", &self.origin)
            .field("special", &self.special)
            .finish_non_exhaustive()
    }
}

/// What one rendering needs besides the messages.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RenderOptions {
    /// Ends the text with what precedes an assistant's answer.
    pub add_generation_prompt: bool,
    /// Further variables, for example `tools` or `enable_thinking`; they override the standard ones.
    pub extra: Map<String, serde_json::Value>,
}

impl ChatTemplate {
    /// Compiles a template. `origin` names it in errors.
    ///
    /// # Errors
    /// [`DataError::Template`] when the source does not parse or has more than a MiB.
    pub fn new(source: &str, origin: &str, special: SpecialTokens) -> Result<Self, DataError> {
        let bad = |reason: String| DataError::Template { origin: origin.to_owned(), reason };
        if source.len() > MAX_SOURCE {
            return Err(bad(format!("{} bytes long, at most {MAX_SOURCE} are read", source.len())));
        }
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(method);
        environment.set_formatter(|out, _state, value| {
            // Output that a block captures does not pass the bounded writer.
            if value.as_str().is_some_and(|text| text.len() > MAX_TEXT) {
                return Err(too_long());
            }
            Ok(write_str(out, value)?)
        });
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| {
            strftime(&format, TEMPLATE_TIME).map_err(|directive| {
                let message = format!("strftime_now does not know the directive {directive}");
                Error::new(ErrorKind::InvalidOperation, message)
            })
        });
        add_filters(&mut environment);
        contain(|| environment.add_template_owned(NAME, without_generation_marks(&unix_lines(source))))
            .map_err(bad)?
            .map_err(|e| bad(explain(&e)))?;
        Ok(Self { environment, origin: origin.to_owned(), special })
    }

    /// The same, but printing something undefined is an error: the fields of an item are known, and a name among them that is none is a
    /// mistake. Whether something is there can still be asked.
    pub(crate) fn strict(mut self) -> Self {
        self.environment.set_undefined_behavior(UndefinedBehavior::SemiStrict);
        self
    }

    /// The template of a checkpoint folder: `chat_template.jinja`, else `chat_template` of
    /// `tokenizer_config.json` (one string, or a list of named templates of which `default` is taken). `None`
    /// when there is none.
    ///
    /// # Errors
    /// [`DataError`] when a file is unreadable, has another shape, or the template does not parse.
    pub fn from_dir(folder: &Path, special: &SpecialTokens) -> Result<Option<Self>, DataError> {
        let path = folder.join("chat_template.jinja");
        if path.symlink_metadata().is_ok() {
            let source = read_text(&path, MAX_SOURCE as u64)?;
            return Self::new(&source, &path.display().to_string(), special.clone()).map(Some);
        }
        let path = folder.join("tokenizer_config.json");
        let config = read_config(&path)?;
        let bad = |reason: &str| DataError::TokenizerFile { path: path.clone(), reason: reason.to_owned() };
        let source = match config.get("chat_template") {
            None | Some(serde_json::Value::Null) => return Ok(None),
            Some(serde_json::Value::String(source)) => source.as_str(),
            Some(serde_json::Value::Array(list)) => list
                .iter()
                .find(|entry| entry["name"] == "default")
                .and_then(|entry| entry["template"].as_str())
                .ok_or_else(|| bad("the list chat_template has no entry named 'default' with a template"))?,
            Some(_) => return Err(bad("chat_template is neither a string nor a list of named templates")),
        };
        Self::new(source, &path.display().to_string(), special.clone()).map(Some)
    }

    /// The special tokens the template may print.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    /// Renders messages as they are; see [`ChatTemplate::render_conversation`] for calibration text.
    ///
    /// Variables: `messages`, `add_generation_prompt`, `bos_token` and `eos_token` (where the tokenizer has
    /// them), `tools` and `documents` (none), and those of `options.extra`, first the conversation's, then
    /// the options'.
    ///
    /// # Errors
    /// [`DataError::Template`] when the template raises an exception, uses something undefined, or exceeds the
    /// bounds on steps and on the length of the text.
    pub fn render(&self, conversation: &Conversation, options: &RenderOptions) -> Result<String, DataError> {
        let mut variables = Map::new();
        variables.insert("messages".into(), conversation.messages_json());
        variables.insert("add_generation_prompt".into(), options.add_generation_prompt.into());
        variables.insert("tools".into(), serde_json::Value::Null);
        variables.insert("documents".into(), serde_json::Value::Null);
        for (name, token) in [("bos_token", &self.special.bos), ("eos_token", &self.special.eos)] {
            if let Some(token) = token {
                variables.insert(name.into(), token.as_str().into());
            }
        }
        let extra = conversation.extra.iter().chain(&options.extra);
        variables.extend(extra.map(|(name, value)| (name.clone(), value.clone())));
        self.render_with(&variables)
    }

    /// Renders with exactly these variables.
    pub(crate) fn render_with(
        &self,
        variables: &Map<String, serde_json::Value>,
    ) -> Result<String, DataError> {
        let bad = |reason| DataError::Template { origin: self.origin.clone(), reason };
        let render = || {
            let mut text = Bounded::new(MAX_TEXT);
            self.environment
                .get_template(NAME)
                .and_then(|template| {
                    let variables =
                        from_entries(variables.iter().map(|(name, value)| (name.as_str(), from_json(value))));
                    template.render_captured_to(variables, &mut text)
                })
                .map_err(|e| explain(&e))?;
            text.into_text()
        };
        std::thread::scope(|scope| {
            let thread =
                std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || contain(render));
            let outcome = thread.map_err(|e| format!("no thread to render in: {e}"))?.join();
            // What can panic is contained already.
            outcome.unwrap_or_else(|_| Err("the thread that renders ended early".to_owned()))?
        })
        .map_err(bad)
    }
}

/// Message, line and cause of a template error.
fn explain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    text
}

/// Jinja2 takes every line end for a plain newline before it reads a template.
fn unix_lines(source: &str) -> String {
    source.replace("\r\n", "\n").replace('\r', "\n")
}

/// Training frameworks mark assistant text with `{% generation %}`; the marks print nothing, so they become a
/// block that always runs, with the same whitespace control.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            return out + tag;
        };
        let (inside, after) = (&tag[2..end], &tag[end + 2..]);
        let name = inside.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        let replacement = match name {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => name,
        };
        if replacement == name {
            out.push_str(&tag[..end + 2]);
        } else {
            out.push_str(&format!("{{%{}%}}", inside.replace(name, &format!(" {replacement} "))));
        }
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn special() -> SpecialTokens {
        SpecialTokens { bos: Some("<s>".into()), eos: Some("</s>".into()) }
    }

    fn render(source: &str, messages: serde_json::Value) -> Result<String, DataError> {
        let conversation = Conversation::from_json(&messages)?;
        ChatTemplate::new(source, "test", special())?.render(&conversation, &RenderOptions::default())
    }

    fn one(content: &str) -> serde_json::Value {
        json!([{"role": "user", "content": content}])
    }

    #[test]
    fn whitespace_is_trimmed_as_in_transformers() {
        let source =
            "{% for m in messages %}\n    {% if true %}\n[{{ m.content }}]\n    {% endif %}\n{% endfor %}\n";
        assert_eq!(render(source, one("a")).unwrap(), "[a]\n");
    }

    #[test]
    fn python_idioms_work() {
        let cases = [
            ("{{ messages[0]['content'].split(':')[-1].strip() }}", "c"),
            ("{{ messages[0].content.startswith('a') }}", "True"),
            ("{{ messages[::-1][0].role.upper() }}", "USER"),
            ("{{ messages[0].get('name') }}", "None"),
            ("{% for k, v in messages[0].items() %}{{ k }},{% endfor %}", "role,content,"),
            (
                "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
                "1",
            ),
            ("{% for i in range(5) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
            ("{% if tools is none and enable_thinking is not defined %}y{% endif %}", "y"),
            ("{{ bos_token }}{{ eos_token }}{{ pad_token }}", "<s></s>"),
            ("{{ messages[0].content.lstrip('a') }}", ":b: c "),
            ("{{ messages[0] | tojson }}", r#"{"role": "user", "content": "a:b: c "}"#),
            ("{{ {'z': 1, 'a': '<'} | tojson(indent=1) }}", "{\n \"z\": 1,\n \"a\": \"<\"\n}"),
            ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
            ("{%- generation -%} x {%- endgeneration -%}", "x"),
            ("a\n{% generation %}\nb\n{% endgeneration %}\nc", "a\nb\nc"),
        ];
        for (source, expected) in cases {
            assert_eq!(render(source, one("a:b: c ")).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn errors_carry_the_templates_own_message() {
        let error = render("{{ raise_exception('roles must alternate') }}", one("x")).unwrap_err();
        assert!(error.to_string().contains("roles must alternate"), "{error}");
        let error = render("{% if %}", one("x")).unwrap_err();
        assert!(matches!(error, DataError::Template { .. }));
        let error = render("{{ strftime_now('%Q') }}", one("x")).unwrap_err();
        assert!(error.to_string().contains("%Q"), "{error}");
    }

    #[test]
    fn an_endless_template_is_stopped() {
        let source = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
        let error = render(source, one("x")).unwrap_err();
        assert!(error.to_string().contains("fuel"), "{error}");
    }

    #[test]
    fn what_a_template_can_build_is_bounded() {
        let refused = |source: &str, expected: &str| {
            let error = render(source, one("x")).unwrap_err();
            assert!(matches!(error, DataError::Template { .. }), "{source}: {error:?}");
            assert!(error.to_string().contains(expected), "{source}: {error}");
        };
        refused("{{ messages | tojson(indent=1000000000000) }}", "indent of");
        refused("{{ 'a\nb' | indent(1000000000000) }}", "width of");
        refused("{{ 'a\nb' | indent(width=18446744073709551615) }}", "width of");
        refused("{{ '%1000000000000d' | format(1) }}", "width of");
        refused("{{ '%*d' | format(1000000000000, 1) }}", "written out");
        refused("{{ '{:>1000000000000}'.format(1) }}", "width of");
        refused("{{ '{:>{}}'.format(1, 1000000000000) }}", "invalid conversion");
        refused("{{ [1] | batch(1000000000000, 0) }}", "width of");
        refused("{{ [1] | slice(1000000000000) }}", "width of");
        refused("{{ 'a' * 1000000000000 }}", "too large");
        // Past the limit on the whole text, on one printed value, and on one captured value.
        refused("{% for i in range(70) %}{{ 'a' * 1000000 }}{% endfor %}", "more than 67108864 bytes");
        refused("{{ 'a' * 70000000 }}", "more than 67108864 bytes");
        refused("{% set x %}{{ 'a' * 70000000 }}{% endset %}", "more than 67108864 bytes");
        refused("{{ ('a' * 70000000) | tojson }}", "more than 67108864 bytes");
        let long = "a".repeat(MAX_SOURCE + 1);
        refused(&long, "at most 1048576");
        let text = render("{{ '%05.1f|%s' | format(2.5, 'b') }}{{ '{:>3}'.format(7) }}", one("x")).unwrap();
        assert_eq!(text, "002.5|b  7");
    }

    /// Rows of our own; what they give was made with Jinja2, configured as `transformers` configures it.
    #[test]
    fn text_is_that_of_jinja2() {
        let table: serde_json::Value =
            serde_json::from_str(include_str!("../tests/data/jinja2.json")).unwrap();
        let variables = table["variables"].as_object().unwrap();
        let rows = table["rows"].as_array().unwrap();
        let mut wrong = Vec::new();
        for row in rows {
            let (source, expected) = (row["template"].as_str().unwrap(), row["expected"].as_str().unwrap());
            let text = ChatTemplate::new(source, "row", special()).and_then(|t| t.render_with(variables));
            if text.as_deref().ok() != Some(expected) {
                wrong.push(format!("{source:?}\n  expected {expected:?}\n  arrived  {text:?}"));
            }
        }
        assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
        assert!(rows.len() >= 60);
    }

    #[test]
    fn indent_is_the_engines() {
        let environment = Environment::new();
        for call in
            ["indent", "indent(2)", "indent(width=3, first=true)", "indent(2, true, true)", "indent(0)"]
        {
            for text in ["a", "a\n\nb\n", "\na\n", "", "a\n b"] {
                let source = format!("{{{{ messages[0].content | {call} }}}}");
                let theirs = environment.render_str(
                    &source,
                    minijinja::context!(messages => [minijinja::context!(content => text)]),
                );
                assert_eq!(render(&source, one(text)).unwrap(), theirs.unwrap(), "{call} of {text:?}");
            }
        }
    }

    #[test]
    fn deep_values_do_not_exhaust_the_stack() {
        let (open, close) = ("[".repeat(50), "]".repeat(50));
        let nest = |rounds: usize, use_it: &str| {
            format!(
                "{{% set ns = namespace(x=[]) %}}{{% for i in range({rounds}) %}}{{% set ns.x = {open}ns.x{close} %}}\
                 {{% endfor %}}{use_it}"
            )
        };
        for use_it in ["", "{{ ns.x | tojson }}", "{{ ns.x }}", "{{ ns.x == ns.x }}"] {
            // 15 000 rounds of 50 levels are nearly all the steps there are.
            let text = render(&nest(15_000, use_it), one("x"));
            assert!(use_it.is_empty() <= text.is_ok(), "{use_it}: {}", text.unwrap_err());
            assert!(render(&nest(22_000, use_it), one("x")).unwrap_err().to_string().contains("fuel"));
        }
    }

    #[test]
    fn variables_can_be_given() {
        let template = ChatTemplate::new("{{ enable_thinking }}", "t", special()).unwrap();
        let mut options = RenderOptions::default();
        options.extra.insert("enable_thinking".into(), false.into());
        let conversation = Conversation::from_json(&one("x")).unwrap();
        assert_eq!(template.render(&conversation, &options).unwrap(), "False");
    }

    #[test]
    fn the_jinja_file_wins_over_the_config() {
        let folder = tempfile::tempdir().unwrap();
        let of_folder = || ChatTemplate::from_dir(folder.path(), &special());
        let text = |template: Option<ChatTemplate>| {
            let conversation = Conversation::from_json(&one("x")).unwrap();
            template.unwrap().render(&conversation, &RenderOptions::default()).unwrap()
        };
        let config = |value: serde_json::Value| {
            std::fs::write(folder.path().join("tokenizer_config.json"), value.to_string()).unwrap();
        };
        assert!(of_folder().unwrap().is_none());
        config(json!({"chat_template": null}));
        assert!(of_folder().unwrap().is_none());
        config(json!({"chat_template": "string"}));
        assert_eq!(text(of_folder().unwrap()), "string");
        config(
            json!({"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}),
        );
        assert_eq!(text(of_folder().unwrap()), "d");
        config(json!({"chat_template": [{"name": "rag", "template": "r"}]}));
        assert!(of_folder().unwrap_err().to_string().contains("'default'"));
        config(json!({"chat_template": 3}));
        assert!(of_folder().is_err());
        std::fs::write(folder.path().join("chat_template.jinja"), "file").unwrap();
        assert_eq!(text(of_folder().unwrap()), "file");
    }
}
