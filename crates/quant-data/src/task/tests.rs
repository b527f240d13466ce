//! Task files and the items they make, in the layouts in which data sets are published; all texts are ours.

use super::*;
use crate::Tokenizer;
use std::path::{Path, PathBuf};

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny-reasoner")
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_dir(&model()).unwrap()
}

fn file(name: &str, text: &str) -> (tempfile::TempDir, Vec<PathBuf>) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(name), text).unwrap();
    let files = vec![folder.path().join(name)];
    (folder, files)
}

/// Context and continuation of every choice as text, and the right one.
fn asked(task: &str, record: &str) -> (Vec<(String, String)>, usize) {
    let (_folder, files) = file("items.jsonl", record);
    let tokenizer = tokenizer();
    let item = built_in_task(task).unwrap().choices(&files, &tokenizer, None).unwrap().remove(0);
    let text = |ids: &[u32]| tokenizer.decode(ids, false).unwrap();
    let choices = item.choices.iter().map(|c| (text(&c.context), text(&c.continuation)));
    (choices.collect(), item.gold)
}

#[test]
fn every_task_that_ships_is_whole() {
    for shipped in TASKS {
        let task = Task::parse(shipped.text).unwrap_or_else(|e| panic!("{}: {e}", shipped.name));
        assert_eq!(task.name(), shipped.name);
        assert!(!task.summary().is_empty() && !task.source().files.is_empty(), "{}", shipped.name);
        let own = shipped.name.starts_with("tiny-");
        assert!(
            own || (task.source().repository.is_some() && task.source().split.is_some()),
            "{}",
            shipped.name
        );
        if let TaskKind::Generate(ask) = task.kind() {
            assert_eq!(ask.seeds.len(), if ask.sampling.is_some() { 3 } else { 1 }, "{}", shipped.name);
        }
    }
    assert!(TASKS.is_sorted_by_key(|task| task.name));
}

#[test]
fn what_is_wrong_with_a_file_is_named() {
    let good = "version: 1\nname: a\nkind: generate\nsource: { files: [a.jsonl] }\nprompt: '{{ q }}'\ngold: '{{ a }}'\nscorer: exact\n";
    Task::parse(good).unwrap();
    for (from, to, words) in [
        ("version: 1", "version: 2", "version: expected 1; found 2"),
        ("version: 1\n", "", "version: expected 1; it is missing"),
        ("generate", "generat", "did you mean \"generate\"?"),
        ("prompt", "promt", "did you mean \"prompt\"?"),
        ("scorer: exact", "metric: acc", "\"metric\" belongs to tasks of the kind choice"),
        ("files: [a.jsonl]", "file: [a.jsonl]", "source: unknown key \"file\" (did you mean \"files\"?)"),
        ("files: [a.jsonl]", "files: []", "source.files: expected a list of names"),
        ("a.jsonl", "../a.jsonl", "leads out of the data folder"),
        ("a.jsonl", "/etc/passwd", "leads out of the data folder"),
        ("'{{ q }}'", "'{{ q '", "prompt"),
        ("name: a", "name: 'a b'", "letters, digits"),
        ("scorer: exact", "scorer: exact\nseeds: [-1]", "seeds: expected a list of numbers"),
        ("scorer: exact", "scorer: exact\nthought: opened", "did you mean \"open\"?"),
        (
            "scorer: exact",
            "scorer: exact\nmax_tokens: 0",
            "max_tokens: expected a whole number from 1 on; found 0",
        ),
        ("scorer: exact", "scorer: exact\nsampling: { temperature: -1 }", "sampling.temperature"),
        ("scorer: exact", "scorer: exact\nsampling: { top_pp: 1 }", "did you mean \"top_p\"?"),
        ("scorer: exact", "scorer: exact\nthought_marks: [a]", "a list of two texts"),
        ("scorer: exact\n", "", "scorer: expected a text; it is missing"),
        ("version: 1", "version: 1\nversion: 1", "duplicate"),
    ] {
        let text = good.replacen(from, to, 1);
        let message = Task::parse(&text).unwrap_err().to_string();
        assert!(message.contains(words), "{to}: {message}");
    }
    for (text, words) in [("- a", "a mapping"), ("a: [", "not YAML"), ("", "a mapping")] {
        assert!(Task::parse(text).unwrap_err().to_string().contains(words), "{text}");
    }
}

#[test]
fn questions_of_school_science() {
    for (task, labels, gold) in
        [("arc-easy", r#"["A","B","C"]"#, "C"), ("arc-challenge", r#"["1","2","3"]"#, "3")]
    {
        let record = format!(
            r#"{{"id":"x1","question":"Which is wet?","choices":{{"text":["sand","glass","water"],"label":{labels}}},"answerKey":"{gold}"}}"#
        );
        let (choices, gold) = asked(task, &record);
        assert_eq!(choices[1], ("Question: Which is wet?\nAnswer:".to_owned(), " glass".to_owned()));
        assert_eq!((choices.len(), gold), (3, 2));
    }
}

#[test]
fn scenes_lose_their_annotations() {
    let record = r#"{"activity_label":"Tea","ctx_a":"A pot [header] stands  here.","ctx_b":"the WATER","endings":[" boils [step] over.","is [title] cold","c","d"],"label":"1"}"#;
    let (choices, gold) = asked("hellaswag", record);
    assert_eq!(choices[0].0, "Tea: A pot stands here. The water");
    assert_eq!((choices[0].1.as_str(), choices[1].1.as_str(), gold), (" boils over.", " is. cold", 1));
}

#[test]
fn a_pronoun_has_two_contexts() {
    let record = r#"{"sentence":"The cup did not fit the box since _ was big. Yes.","option1":"cup","option2":"box","answer":"1"}"#;
    let (choices, gold) = asked("winogrande", record);
    let after = " was big. Yes.".to_owned();
    assert_eq!(choices[0], ("The cup did not fit the box since cup".to_owned(), after.clone()));
    assert_eq!(choices[1], ("The cup did not fit the box since box".to_owned(), after));
    assert_eq!(gold, 0);
}

#[test]
fn solutions_and_last_words() {
    let (choices, gold) = asked("piqa", r#"{"goal":"cool tea","sol1":"wait","sol2":"shout","label":0}"#);
    assert_eq!(choices[1], ("Question: cool tea\nAnswer:".to_owned(), " shout".to_owned()));
    assert_eq!(gold, 0);
    let (choices, gold) = asked("lambada", r#"{"text":"She had two and wanted  three"}"#);
    // The second blank belongs to the last word.
    assert_eq!(
        (choices[0].0.as_str(), choices[0].1.as_str(), gold),
        ("She had two and wanted", "  three", 0)
    );
}

#[test]
fn characters_are_those_of_the_choice() {
    let (_folder, files) = file("a.jsonl", r#"{"goal":"g","sol1":"ab \u00e9","sol2":"b","label":1}"#);
    let item = built_in_task("piqa").unwrap().choices(&files, &tokenizer(), None).unwrap().remove(0);
    assert_eq!(item.choices[0].characters, 4, "without the blank that it begins with");
}

#[test]
fn a_continuation_without_a_context_follows_the_token_that_ends_texts() {
    let tokenizer = tokenizer();
    let (context, continuation) = split_continuation(&tokenizer, "  ", "word", false).unwrap();
    assert_eq!(context, [tokenizer.eos_id().unwrap()]);
    assert_eq!(tokenizer.decode(&continuation, false).unwrap(), "  word");
    assert!(
        split_continuation(&tokenizer, "word", "", false)
            .unwrap_err()
            .to_string()
            .contains("the context alone")
    );
}

#[test]
fn options_stand_where_the_seed_says() {
    let records: String = (0..40)
        .map(|i| format!(r#"{{"Question":"Q{i}?","Correct Answer":"right","Incorrect Answer 1":"w1 ","Incorrect Answer 2":"w2","Incorrect Answer 3":"w3"}}"#) + "\n")
        .collect();
    let (_folder, files) = file("q.jsonl", &records);
    let task = built_in_task("gpqa-diamond").unwrap();
    let of = |seed, limit| task.questions(&files, seed, limit).unwrap();
    let (all, golds) =
        (of(42, None), |items: &[Question]| items.iter().map(|q| q.gold.clone()).collect::<String>());
    let letters = golds(&all);
    assert!("ABCD".chars().all(|letter| letters.contains(letter)), "{letters}");
    // An item's order depends on nothing but seed and number.
    assert_eq!(all[..7], of(42, Some(7))[..]);
    assert_ne!(letters, golds(&of(43, None)));
    for question in &all {
        let Said::Chat(conversation) = &question.said else { panic!() };
        let prompt = conversation.messages[0]["content"].as_str().unwrap();
        assert!(
            prompt.contains(&format!("{}) right\n", question.gold)) || prompt.ends_with("D) right"),
            "{prompt}"
        );
        let others: Vec<usize> = ["w1", "w2", "w3"].iter().map(|w| prompt.find(w).unwrap()).collect();
        assert!(others.is_sorted(), "the others keep their order");
        assert_eq!(question.options, 4);
        let letter = question.place.and_then(|place| "ABCD".get(place..=place));
        assert_eq!(letter, Some(question.gold.as_str()));
    }
}

#[test]
fn questions_of_the_tiny_model() {
    let model = model();
    let files = vec![model.join("tasks/test.jsonl")];
    let (tokenizer, template) =
        (tokenizer(), crate::ChatTemplate::from_dir(&model, tokenizer().special_tokens()).unwrap());
    let mut numbers = Vec::new();
    for task in TASKS.iter().filter(|task| task.name.starts_with("tiny-") && task.name != "tiny-text") {
        let task = built_in_task(task.name).unwrap();
        let questions = task.questions(&files, 42, None).unwrap();
        assert_eq!(questions.len(), 60);
        let prompt = task.encode_question(&questions[0], &tokenizer, template.as_ref()).unwrap();
        assert!(prompt.opens_thought);
        assert!(tokenizer.decode(&prompt.tokens, false).unwrap().ends_with("<|Assistant|><think>\n"));
        let without = task.encode_question(&questions[0], &tokenizer, None).unwrap_err().to_string();
        assert!(without.contains("no chat template"), "{without}");
        numbers.extend(questions.iter().map(|question| question.number));
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (0..360).collect::<Vec<_>>(), "an item's number is its place in the file");
}

#[test]
fn texts_become_windows() {
    let (model, tokenizer) = (model(), tokenizer());
    let task = built_in_task("tiny-text").unwrap();
    let windows = task.windows(&[model.join("tasks/test.jsonl")], &tokenizer, &model, None).unwrap();
    assert!(windows.len() > 50 && windows.iter().all(|window| window.len() == 256));
    let text = tokenizer.decode(&windows[0], false).unwrap();
    assert!(
        text.starts_with("<|User|>What is 74 + 51?<|Assistant|><think>\n4+1+0=5")
            && text.contains("<|end|><|User|>")
    );
    assert_eq!(
        task.windows(&[model.join("tasks/test.jsonl")], &tokenizer, &model, Some(3)).unwrap(),
        windows[..3]
    );
    // Rows keep their line ends and are joined by a blank line; a text file is taken as it is.
    let task = Task::parse("version: 1\nname: t\nkind: text\nsource: { files: [t] }\nwindow: 4\n").unwrap();
    let (_a, rows) =
        file("t", "{\"text\": \" = A = \\n\"}\n{\"text\": \"\"}\n{\"text\": \"b c d e f\\n\"}\n");
    let (_b, whole) = file("t", " = A = \n\n\n\n\nb c d e f\n");
    let windows = task.windows(&rows, &tokenizer, &model, None).unwrap();
    assert_eq!(windows, task.windows(&whole, &tokenizer, &model, None).unwrap());
    let (_c, short) = file("t", "ab");
    let message = task.windows(&short, &tokenizer, &model, None).unwrap_err().to_string();
    assert!(message.contains("less than one window of 4"), "{message}");
}

#[test]
fn items_that_do_not_fit_are_named() {
    let task = Task::parse(
        "version: 1\nname: caps\nkind: choice\nsource: { repository: us/caps, split: test, files: [caps.jsonl, data/test-*.jsonl], \
         columns: [c] }\ncontext: '{{ raise_exception(\"no\") if c == \"bad\" else c }}'\nchoices: list\ngold: g\n",
    )
    .unwrap();
    let good = "{\"c\": \"x\", \"list\": [\"a\", \"b\"], \"g\": 1}\n";
    for (bad, words) in [
        ("{\"d\": 1}", "the field \"c\" is missing; it has d"),
        ("{\"c\": \"bad\", \"list\": [\"a\"], \"g\": 0}", "no"),
        ("{\"c\": \"x\", \"list\": \"a\", \"g\": 0}", "a list of texts is expected"),
        ("{\"c\": \"x\", \"list\": [\"a\"], \"g\": 1}", "the right choice is number 1 of 1"),
        ("{\"c\": \"x\", \"list\": [\"a\"], \"g\": -1}", "a number from 0 on"),
        ("{\"c\": \"x\", \"list\": [\"a\"]}", "gold"),
        ("3", "no JSON object"),
    ] {
        let (_folder, files) = file("caps.jsonl", &format!("{good}{bad}\n"));
        let message = task.choices(&files, &tokenizer(), None).unwrap_err().to_string();
        assert!(message.contains("caps.jsonl, line 2") && message.contains(words), "{bad}: {message}");
    }
    let (folder, files) = file("caps.jsonl", "\n");
    assert!(task.choices(&files, &tokenizer(), None).is_err(), "an empty file");
    let (_text, prose) = file("caps.txt", "only words");
    let message = task.choices(&prose, &tokenizer(), None).unwrap_err().to_string();
    assert!(message.contains("one a line"), "{message}");
    // Where it was looked, and for what.
    let nowhere = task.source().find("caps", &[PathBuf::from("/nowhere")]).unwrap_err().to_string();
    assert!(
        ["us/caps", "split test", "columns c", "/nowhere", "data/test-*.jsonl"]
            .iter()
            .all(|w| nowhere.contains(w)),
        "{nowhere}"
    );
    std::fs::create_dir(folder.path().join("data")).unwrap();
    std::fs::remove_file(folder.path().join("caps.jsonl")).unwrap();
    for shard in ["test-1.jsonl", "test-0.jsonl", "train-0.jsonl"] {
        std::fs::write(folder.path().join("data").join(shard), good).unwrap();
    }
    let found = task.source().find("caps", &[folder.path().to_owned()]).unwrap();
    assert_eq!(
        found.iter().map(|p| p.file_name().unwrap()).collect::<Vec<_>>(),
        ["test-0.jsonl", "test-1.jsonl"]
    );
    let items = task.choices(&found, &tokenizer(), None).unwrap();
    assert_eq!(items.iter().map(|item| item.number).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn programs_are_asked_for_with_their_beginning_or_their_input() {
    let record = |starter: &str| {
        let tests = "[{\"input\": \"1\", \"output\": \"2\"}]";
        serde_json::json!({
            "question_content": "Double it.", "starter_code": starter, "question_id": "q1", "public_test_cases": tests,
            // Longer than what a template prints.
            "private_test_cases": "x".repeat(70 << 20), "metadata": "{}", "difficulty": "easy",
        })
        .to_string()
    };
    let task = built_in_task("livecodebench").unwrap();
    for (starter, words, not) in [
        ("", "from stdin", "fill it in"),
        ("class Solution:\n    def f(self):", "def f(self):\n```", "stdin"),
    ] {
        let (_folder, files) = file("livecodebench-v4_v5.jsonl", &record(starter));
        let question = task.questions(&files, 42, None).unwrap().remove(0);
        assert_eq!(question.id, "q1");
        let Said::Chat(said) = &question.said else { panic!("{:?}", question.said) };
        let text = said.messages[0]["content"].as_str().unwrap();
        assert!(text.contains("Double it.") && text.contains(words) && !text.contains(not), "{text}");
        let gold: serde_json::Value = serde_json::from_str(&question.gold).unwrap();
        let names: Vec<&String> = gold.as_object().unwrap().keys().collect();
        assert_eq!(names, ["public_test_cases", "private_test_cases", "metadata"]);
        assert_eq!(gold["private_test_cases"].as_str().unwrap().len(), 70 << 20);
    }
}

#[test]
fn what_is_right_is_a_template_or_fields() {
    let task = |gold: &str| {
        Task::parse(&format!(
            "version: 1\nname: a\nkind: generate\nsource: {{ files: [a.jsonl] }}\nprompt: '{{{{ q }}}}'\nscorer: exact\n{gold}\n"
        ))
    };
    let (_folder, files) = file("a.jsonl", r#"{"q": "1 + 1", "b": 2, "a": "x"}"#);
    let gold =
        |written: &str| task(written).unwrap().questions(&files, 1, None).map(|all| all[0].gold.clone());
    assert_eq!(gold("gold_fields: [a, b]").unwrap(), r#"{"a":"x","b":2}"#);
    assert!(gold("gold_fields: [a, c]").unwrap_err().to_string().contains("no field \"c\""));
    for (written, words) in [
        ("gold_fields: [a]\ngold: '{{ a }}'", "gold: it stands beside `gold_fields`"),
        ("gold_fields: []", "gold_fields: expected at least one field"),
        ("gold_fields: a", "gold_fields: expected a list of texts"),
        ("", "gold: expected a text; it is missing"),
    ] {
        let error = task(written).unwrap_err().to_string();
        assert!(error.contains(words), "{written}: {error}");
    }
}
