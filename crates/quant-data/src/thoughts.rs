//! The text of a conversation, with the thoughts of the last answer kept.

use serde_json::{Map, Value};

use crate::{ChatTemplate, Conversation, DataError, RenderOptions};

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";
/// Inserted into the thoughts to see whether a rendering depends on them. A private-use character, so that no
/// template has a rule about it.
const MARK: char = '\u{e000}';

/// The text of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RenderedConversation {
    /// The text, special tokens written out.
    pub text: String,
    /// The template dropped the thoughts of the last answer, and they were put back by hand.
    pub thoughts_restored: bool,
}

impl ChatTemplate {
    /// The text of a whole conversation for calibration.
    ///
    /// Reasoning models are calibrated on their thoughts, but some templates (R1-Distill, QwQ) cut every
    /// assistant turn at `</think>`, because at inference old thoughts leave the context. If the template
    /// drops the thoughts of the *last* assistant message, the text is built by hand: the other messages with
    /// the generation prompt (opening `<think>` when the template does not), thoughts, `\n</think>\n\n`,
    /// answer, EOS. Thoughts of earlier turns stay as the template wants them.
    ///
    /// Thoughts are the text before `</think>` in `content`, or the field `reasoning_content`. They count as
    /// dropped when changing them does not change the rendered text.
    ///
    /// # Errors
    /// [`DataError::Template`] when the template refuses the messages.
    pub fn render_conversation(
        &self,
        conversation: &Conversation,
    ) -> Result<RenderedConversation, DataError> {
        let options = RenderOptions::default();
        let text = self.render(conversation, &options)?;
        let Some(answer) = conversation.messages.last().and_then(Reasoned::of) else {
            return Ok(RenderedConversation { text, thoughts_restored: false });
        };
        if self.render(&conversation.with_last(answer.marked), &options)? != text {
            return Ok(RenderedConversation { text, thoughts_restored: false });
        }
        let mut question = conversation.clone();
        question.messages.pop();
        let options = RenderOptions { add_generation_prompt: true, ..options };
        let mut text = self.render(&question, &options)?;
        if !text.trim_end().ends_with(OPEN) {
            text.push_str(OPEN);
        }
        if text.ends_with(OPEN) {
            text.push('\n');
        }
        text.push_str(&answer.thoughts);
        text.push_str("\n</think>\n\n");
        text.push_str(&answer.answer);
        text.push_str(self.special_tokens().eos.as_deref().unwrap_or_default());
        Ok(RenderedConversation { text, thoughts_restored: true })
    }
}

/// An assistant message taken apart.
struct Reasoned {
    thoughts: String,
    answer: String,
    /// The message with [`MARK`] at the end of the thoughts.
    marked: Map<String, Value>,
}

impl Reasoned {
    /// `None` for messages without thoughts.
    fn of(message: &Map<String, Value>) -> Option<Self> {
        if message.get("role").and_then(Value::as_str) != Some("assistant") {
            return None;
        }
        let content = message.get("content").and_then(Value::as_str).unwrap_or_default();
        let mut marked = message.clone();
        let field = message.get("reasoning_content").and_then(Value::as_str).unwrap_or_default();
        let (thoughts, answer) = if field.trim().is_empty() {
            let (thoughts, answer) = content.split_once(CLOSE)?;
            marked.insert("content".into(), format!("{thoughts}{MARK}{CLOSE}{answer}").into());
            (thoughts, answer)
        } else {
            marked.insert("reasoning_content".into(), format!("{field}{MARK}").into());
            (field, content)
        };
        let thoughts = thoughts.trim_start();
        let thoughts = thoughts.strip_prefix(OPEN).unwrap_or(thoughts).trim();
        if thoughts.is_empty() {
            return None;
        }
        Some(Self { thoughts: thoughts.to_owned(), answer: answer.trim_start().to_owned(), marked })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SpecialTokens;
    use serde_json::json;

    /// Prints its own BOS, opens the thought itself, keeps only what follows the thought of every answer.
    const CUTS_ALL: &str = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[U]{{ m.content }}\
        {% else %}[A]{% set c = m.content %}{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}\
        {{ c }}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}[A]<think>\n{% endif %}";
    /// The same without the opening tag in the generation prompt.
    const CUTS_ALL_OLD: &str = "{% for m in messages %}{% if m.role == 'user' %}[U]{{ m.content }}\
        {% else %}[A]{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}\
        {% if add_generation_prompt %}[A]{% endif %}";
    /// Cuts the answers that are not the last.
    const CUTS_HISTORY: &str = "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}\
        [A]{{ m.content.split('</think>')[-1].lstrip('\n') }}[E]{% else %}[{{ m.role }}]{{ m.content }}[E]{% endif %}\
        {% endfor %}{% if add_generation_prompt %}[A]<think>\n{% endif %}";
    /// Prints the separate field of the last answer.
    const FIELD: &str = "{% for m in messages %}[{{ m.role }}]{% if m.reasoning_content %}<think>\n\
        {{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}[E]{% endfor %}";

    fn render(source: &str, messages: Value) -> RenderedConversation {
        let special = SpecialTokens { bos: Some("<s>".into()), eos: Some("</s>".into()) };
        let template = ChatTemplate::new(source, "test", special).unwrap();
        template.render_conversation(&Conversation::from_json(&messages).unwrap()).unwrap()
    }

    fn dialogue(answer: &str) -> Value {
        json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}])
    }

    #[test]
    fn thoughts_a_template_drops_are_put_back() {
        let rendered = render(CUTS_ALL, dialogue("<think>\nt1\nt2\n</think>\n\nanswer"));
        assert_eq!(rendered.text, "<s>[U]q[A]<think>\nt1\nt2\n</think>\n\nanswer</s>");
        assert!(rendered.thoughts_restored);
        let rendered = render(CUTS_ALL_OLD, dialogue("t1</think>answer"));
        assert_eq!(rendered.text, "[U]q[A]<think>\nt1\n</think>\n\nanswer</s>");
    }

    #[test]
    fn dropping_is_noticed_even_when_the_thought_is_a_word_of_the_question() {
        let rendered = render(CUTS_ALL, dialogue("<think>q</think>q"));
        assert_eq!(rendered.text, "<s>[U]q[A]<think>\nq\n</think>\n\nq</s>");
    }

    #[test]
    fn kept_thoughts_are_left_alone() {
        let rendered = render(CUTS_HISTORY, dialogue("<think>\nt\n</think>\na"));
        assert_eq!(rendered.text, "[user]q[E][assistant]<think>\nt\n</think>\na[E]");
        assert!(!rendered.thoughts_restored);
        for no_thoughts in ["a", "<think>\n\n</think>\n\na"] {
            assert!(!render(CUTS_ALL, dialogue(no_thoughts)).thoughts_restored);
        }
        assert!(!render(CUTS_ALL, json!([{"role": "user", "content": "</think>"}])).thoughts_restored);
    }

    #[test]
    fn history_is_cut_and_only_the_last_answer_restored() {
        let messages = json!([
            {"role": "user", "content": "q1"}, {"role": "assistant", "content": "<think>\nt1\n</think>\n\na1"},
            {"role": "user", "content": "q2"}, {"role": "assistant", "content": "<think>\nt2\n</think>\n\na2"}]);
        let rendered = render(CUTS_ALL, messages.clone());
        assert_eq!(rendered.text, "<s>[U]q1[A]\n\na1</s>[U]q2[A]<think>\nt2\n</think>\n\na2</s>");
        let rendered = render(CUTS_HISTORY, messages);
        assert_eq!(rendered.text, "[user]q1[E][A]a1[E][user]q2[E][assistant]<think>\nt2\n</think>\n\na2[E]");
    }

    /// Behaves as the template of DeepSeek-R1-Distill: the system turns first and unmarked, BOS printed by the template,
    /// every answer cut at the end of its thought, tool calls and their outputs, the opening tag in the prompt.
    const DISTILL: &str = "{% set ns = namespace(system='', output=false) %}\
        {% for m in messages if m['role'] == 'system' %}{% set ns.system = ns.system + m['content'] %}{% endfor %}\
        {{ bos_token }}{{ ns.system }}{% for m in messages %}\
        {% if m['role'] == 'user' %}{% set ns.output = false %}{{ '<｜User｜>' + m['content'] }}\
        {% elif m['role'] == 'tool' %}{% set ns.output = true %}{{ '<｜tool▁output▁begin｜>' + m['content'] + '<｜tool▁output▁end｜>' }}\
        {% elif m['role'] == 'assistant' and m['content'] is none %}{{ '<｜Assistant｜>' }}\
        {% for call in m['tool_calls'] %}{{ '<｜tool▁call▁begin｜>' + call['function']['name'] + '<｜tool▁call▁end｜>' }}{% endfor %}\
        {{ eos_token }}{% elif m['role'] == 'assistant' %}{% if not ns.output %}{{ '<｜Assistant｜>' }}{% endif %}\
        {% set text = m['content'] %}{% if '</think>' in text %}{% set text = text.split('</think>')[-1] %}{% endif %}\
        {{ text + eos_token }}{% endif %}{% endfor %}\
        {% if add_generation_prompt and not ns.output %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}";

    #[test]
    fn a_template_like_r1_distills_keeps_the_last_thought_and_one_bos() {
        let special = SpecialTokens {
            bos: Some("<｜begin▁of▁sentence｜>".into()),
            eos: Some("<｜end▁of▁sentence｜>".into()),
        };
        let template = ChatTemplate::new(DISTILL, "test", special).unwrap();
        let turn = |role: &str, content: &str| json!({"role": role, "content": content});
        let messages = json!([
            turn("system", "Be brief."),
            turn("user", "q1"),
            turn("assistant", "<think>\nold\n</think>\n\na1"),
            turn("user", "q2"),
            turn("assistant", "<think>\nnew thought\n</think>\n\na2")
        ]);
        let rendered = template.render_conversation(&Conversation::from_json(&messages).unwrap()).unwrap();
        assert!(rendered.thoughts_restored);
        assert_eq!(
            rendered.text,
            "<｜begin▁of▁sentence｜>Be brief.<｜User｜>q1<｜Assistant｜>\n\na1<｜end▁of▁sentence｜>\
             <｜User｜>q2<｜Assistant｜><think>\nnew thought\n</think>\n\na2<｜end▁of▁sentence｜>"
        );
        // Without a thought, and after a tool, the template's own text stands.
        let messages = json!([
            turn("user", "q"),
            {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "add"}}]},
            turn("tool", "56"),
            turn("assistant", "a")
        ]);
        let rendered = template.render_conversation(&Conversation::from_json(&messages).unwrap()).unwrap();
        assert!(!rendered.thoughts_restored);
        assert_eq!(
            rendered.text,
            "<｜begin▁of▁sentence｜><｜User｜>q<｜Assistant｜><｜tool▁call▁begin｜>add<｜tool▁call▁end｜>\
             <｜end▁of▁sentence｜><｜tool▁output▁begin｜>56<｜tool▁output▁end｜>a<｜end▁of▁sentence｜>"
        );
    }

    #[test]
    fn the_separate_reasoning_field_is_understood() {
        let messages = json!([{"role": "user", "content": "q"},
            {"role": "assistant", "content": "a", "reasoning_content": "t"}]);
        let rendered = render(FIELD, messages.clone());
        assert_eq!(rendered.text, "[user]q[E][assistant]<think>\nt\n</think>\n\na[E]");
        assert!(!rendered.thoughts_restored);
        let rendered = render(CUTS_ALL, messages);
        assert_eq!(rendered.text, "<s>[U]q[A]<think>\nt\n</think>\n\na</s>");
        assert!(rendered.thoughts_restored);
    }
}
