//! Answers and their grading: a labelled table, the right answers of GSM8K, texts without an end.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests panic like the tests do")]

use proptest::prelude::*;
use quant_eval::answers::{Gold, GoldKind, gold, grade};
use serde_json::Value;
use std::time::Instant;

/// Lines of `data/answer_pairs.jsonl`, which `tests/references/grade_with_math_verify.py` reads too.
const PAIRS: &str = include_str!("data/answer_pairs.jsonl");

struct Pair {
    gold: String,
    kind: GoldKind,
    answer: String,
    equal: bool,
    note: String,
}

fn pairs() -> Vec<Pair> {
    let kind = |name: &str| match name {
        "expression" => GoldKind::Expression,
        "latex" => GoldKind::Latex,
        "gsm8k" => GoldKind::Gsm8k,
        "exact" => GoldKind::Exact,
        letter => {
            let count = letter.strip_prefix("letter:").and_then(|count| count.parse().ok());
            GoldKind::Letter { count: count.unwrap_or_else(|| panic!("no kind {name:?}")) }
        }
    };
    let pair = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap();
        let text = |key: &str| value[key].as_str().unwrap_or_else(|| panic!("no {key} in {line}")).to_owned();
        let equal = value["equal"].as_bool().unwrap();
        Pair {
            gold: text("gold"),
            kind: kind(&text("gold_kind")),
            answer: text("answer"),
            equal,
            note: text("note"),
        }
    };
    PAIRS.lines().map(pair).collect()
}

#[test]
fn the_table_is_large_enough() {
    let pairs = pairs();
    let unequal: Vec<&Pair> = pairs.iter().filter(|pair| !pair.equal).collect();
    let alike = unequal.iter().filter(|pair| pair.note.starts_with("look alike: ")).count();
    assert!(
        pairs.len() >= 320 && unequal.len() >= 100 && alike >= 60,
        "{} {} {alike}",
        pairs.len(),
        unequal.len()
    );
}

#[test]
fn every_pair_is_graded_as_its_label_says() {
    let wrong = |pair: &Pair| {
        let given = grade(&gold(pair.kind, &pair.gold).unwrap(), &pair.answer);
        let line = format!(
            "{:?} {:?} ({}): expected {}, extracted {:?}",
            pair.gold, pair.answer, pair.note, pair.equal, given.extracted
        );
        (given.correct != pair.equal).then_some(line)
    };
    let wrong: Vec<String> = pairs().iter().filter_map(wrong).collect();
    assert!(wrong.is_empty(), "{} pairs:\n{}", wrong.len(), wrong.join("\n"));
}

/// What math-verify does not read, and so has no place in a table for both: all are right answers.
#[test]
fn what_is_read_beyond_the_reference() {
    let pairs = [
        ("1234567", r"1\,234\,567"),
        ("45", r"45\degree"),
        ("5", "5."),
        ("5", r"5\ eggs"),
        ("809", "(809)"),
        (r"\frac{1}{6}", r"0.1\overline{6}"),
        (r"\frac{7}{2}", "3 1/2"),
        (r"\frac{1,234}{5}", "246.8"),
        (r"33\frac{1}{3}\%", r"\frac13"),
        (r"9\pi", "9 pi"),
        (r"\emptyset", r"\varnothing"),
        (r"\sin 30^\circ", r"\frac12"),
        ("5000000", r"5\text{ million dollars}"),
        ("5000000", "5 million"),
        ("n!", r"\frac{(n+1)!}{n+1}"),
        (r"\binom{n}{2}", r"\frac{n(n-1)}{2}"),
        (r"\binom{n}{k}", r"\frac{n!}{k!(n-k)!}"),
        ("10", r"10\,\text{m}/\text{s}"),
        (r"\sqrt{2}\sqrt{3}+10^{30}", r"10^{30}+\sqrt{6}"),
    ];
    for (gold, answer) in pairs {
        assert!(right(gold, answer), "{gold} {answer}");
    }
    let others = [
        (r"10^{30}+\sqrt{2}", "10^{30}"),
        ("3x", r"3\text{ more than }x"),
        ("15", "5 ft 3 in"),
        ("5", "5 million"),
        (r"\binom{n}{2}", r"\frac{n(n+1)}{2}"),
        ("n!", "(n+1)!"),
    ];
    for (gold, answer) in others {
        assert!(!right(gold, answer), "{gold} {answer}");
    }
    let letter = gold(GoldKind::Letter { count: 4 }, "B").unwrap();
    for answer in [r"\boxed{\text{B}}", r"Answer: $\boxed{B}$", r"\boxed{\textbf{(B)}}"] {
        assert!(grade(&letter, answer).correct, "{answer}");
    }
    let boxed = gold(GoldKind::Latex, r"\boxed{42}").unwrap();
    assert!(grade(&boxed, r"so \fbox{42}, not 43").correct);
}

/// Gold of all 1,319 items, and its own solution as an answer.
#[test]
fn gsm8k_agrees_with_itself() {
    let path = quant_testkit::shared_dir().map(|dir| dir.join("data/gsm8k-test.jsonl"));
    let Some(text) = path.and_then(|path| std::fs::read_to_string(path).ok()) else {
        return quant_testkit::skipped("no ../shared/data/gsm8k-test.jsonl");
    };
    let mut items = 0;
    for line in text.lines() {
        let item: Value = serde_json::from_str(line).unwrap();
        let solution = item["answer"].as_str().unwrap();
        let right = gold(GoldKind::Gsm8k, solution).unwrap();
        let n: i64 = right.text().replace(',', "").parse().unwrap_or_else(|_| panic!("{:?}", right.text()));
        // The solution as it stands, without the calculator's annotations, and with a box behind it.
        let told = solution.rsplit_once("####").unwrap().0;
        let boxed = |n: i64| grade(&right, &format!("{told}\nThe answer is \\boxed{{{n}}}."));
        assert!(boxed(n).correct, "{line}");
        assert!(grade(&right, &format!("#### {n}")).correct, "{line}");
        for other in [n + 1, n - 1, -n - 1, 10 * n + 1] {
            let given = boxed(other);
            assert!(!given.correct && given.extracted == Some(other.to_string()), "{other} {line}");
        }
        items += 1;
    }
    assert_eq!(items, 1319);
}

/// Strings from which something is to be extracted (section 7 (d) of the evaluation's specification): what is taken.
#[test]
fn thirty_texts() {
    let maths = [
        (r"<think>It could be \boxed{5}.</think> It is 7.", "5"),
        (r"<think>It could be \boxed{5}.</think> It is \boxed{7}.", "7"),
        (r"<think>no end, but \boxed{6}", "6"),
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"$\boxed{1}$, hence $x = \boxed{\frac{1}{2}}$", r"\frac{1}{2}"),
        (r"\boxed{\left\{1, 2\right\}}", r"\left\{1, 2\right\}"),
        ("It is 12.", "12"),
        ("We have 3 + 4 = 7 of them", "7"),
        ("no box, the answer is 19", "19"),
        ("Answer: 5, as the other answer 6 is wrong", "5"),
        ("The final answer is 8. The answer is 9.", "8"),
        ("The final answer is $8$. I hope it is correct.", "8"),
        ("that makes 45%", r"45\%"),
        (r"that makes \boxed{45\%}", r"45\%"),
        ("that makes 45 percent", r"45\%"),
        ("it sold 1,234 of them", "1234"),
        ("it sold 1,234.50 of them", "1234.50"),
        (r"it sold \boxed{1,234} of them", "1,234"),
        ("it costs $15", "15"),
        (r"it costs \$15.", "15"),
        (r"so \frac{3}{4}", r"\frac{3}{4}"),
        (r"so \boxed{\frac12}", r"\frac12"),
        (r"so $x = 5$", "x = 5"),
        (r"so \[ x = 5 \]", "x = 5"),
        (r"so \( (1, 2) \)", "(1, 2)"),
        ("Answer: 3/4", "3/4"),
    ];
    let right = gold(GoldKind::Expression, "0").unwrap();
    for (text, wanted) in maths {
        assert_eq!(grade(&right, text).extracted.as_deref(), Some(wanted), "{text}");
    }
    let letters = [
        ("Answer: B.", Some("B")),
        ("**Answer:** (C)", Some("C")),
        ("The answer is D, not A", Some("D")),
        ("A or B, who knows", Some("A")),
        (r"\boxed{C}", Some("C")),
        ("none of them", None),
    ];
    let right = gold(GoldKind::Letter { count: 4 }, "A").unwrap();
    for (text, wanted) in letters {
        assert_eq!(grade(&right, text).extracted.as_deref(), wanted, "{text}");
    }
}

/// Right answers come alone, in delimiters, in sentences and as solutions.
#[test]
fn right_answers_are_read_wherever_they_stand() {
    let cases = [
        (GoldKind::Latex, r"The answer is $5$.", "5"),
        (GoldKind::Latex, r"5", "5"),
        (GoldKind::Latex, r"$5$", "5"),
        (GoldKind::Latex, r"First $\boxed{4}$, and then $\boxed{5}$, as \[4+1=5.\] That is all of 6.", "5"),
        (GoldKind::Latex, r"\text{no real solutions}", r"\text{No real solutions}"),
        (GoldKind::Expression, "The answer is 5", "5"),
        (GoldKind::Expression, "5 apples", "5"),
        (GoldKind::Expression, "1/2", "0.5"),
        (GoldKind::Gsm8k, "so 4\n#### 1,005", "1005"),
    ];
    for (kind, text, answer) in cases {
        let right = gold(kind, text).unwrap();
        assert!(grade(&right, &format!("\\boxed{{{answer}}}")).correct, "{text}");
        assert!(!grade(&right, r"\boxed{5039}").correct, "{text}");
    }
}

#[test]
fn what_is_no_right_answer_is_refused() {
    let cases = [
        (GoldKind::Expression, " \n", "not blank"),
        (GoldKind::Gsm8k, "18", "####"),
        (GoldKind::Gsm8k, "18 ####", "####"),
        (GoldKind::Letter { count: 4 }, "E", "one capital letter"),
        (GoldKind::Letter { count: 4 }, "AB", "one capital letter"),
        (GoldKind::Letter { count: 0 }, "A", "from 1 to 26"),
        (GoldKind::Letter { count: 27 }, "A", "from 1 to 26"),
    ];
    for (kind, text, wanted) in cases {
        let error = gold(kind, text).unwrap_err().to_string();
        assert!(error.contains(wanted) && error.contains(&format!("{text:?}")), "{error}");
    }
}

/// All kinds of right answers.
fn golds() -> Vec<Gold> {
    let kinds = [
        (GoldKind::Expression, "204"),
        (GoldKind::Latex, r"\frac{\sqrt{3}}{2}"),
        (GoldKind::Latex, r"\{1, x\}"),
        (GoldKind::Gsm8k, "#### 5"),
        (GoldKind::Letter { count: 4 }, "B"),
        (GoldKind::Exact, "1 2 3"),
    ];
    kinds.map(|(kind, text)| gold(kind, text).unwrap()).into()
}

/// A megabyte of what nests, opens or repeats is graded in well under a second.
#[test]
fn texts_without_an_end_take_no_time() {
    let parts = [
        "{",
        "}",
        "\\frac{",
        "((((",
        "[(",
        "7",
        "7 ",
        "####",
        "\\boxed{",
        "\\boxed{1}",
        "\\boxed{x}{",
        "$",
        "$$",
        "$x$ ",
        "\\(",
        "\\[",
        " [",
        "answer",
        "answer: ",
        "final answer is ",
        "answer is: 7, ",
        "A ",
        "B. ",
        "=-(",
        "1/",
        "2^",
        "\\sqrt{",
        "\\text{",
        "**",
        "\\",
        "\n",
        "1,",
        "é",
        "\\begin{pmatrix}",
        "|",
        "-",
        "%",
        "!",
        "$\\x$",
        "1234567 = ",
    ];
    for part in parts {
        let text = part.repeat((1 << 20) / part.len());
        for right in golds() {
            let before = Instant::now();
            let given = grade(&right, &text);
            let seconds = before.elapsed().as_secs_f64();
            assert!(seconds < 0.9, "{part:?} {:?} took {seconds} s, {:?}", right.text(), given.correct);
        }
        // As a right answer too, and as an answer that is just short enough to be read.
        for length in [1 << 20, 1990] {
            let text = part.repeat(length / part.len());
            for kind in [GoldKind::Expression, GoldKind::Latex] {
                let before = Instant::now();
                if let Ok(right) = gold(kind, &text) {
                    let boxed = grade(&right, &format!("\\boxed{{{}}}", part.repeat(1990 / part.len())));
                    assert!(boxed.extracted.is_none_or(|text| text.len() <= 2000));
                }
                assert!(before.elapsed().as_secs_f64() < 0.9, "{part:?} as a right answer");
            }
        }
    }
}

/// Expressions of numbers and variables in LaTeX, and as arithmetic would write them.
fn expression() -> impl Strategy<Value = (String, String)> {
    let atom = prop_oneof![
        (0_i64..2000).prop_map(|n| (n.to_string(), n.to_string())),
        (0_i64..100, 1_u32..100).prop_map(|(n, d)| (format!("{n}.{d:02}"), format!("{n}.{d:02}"))),
        (1_i64..30, 2_i64..30).prop_map(|(n, d)| (format!("\\frac{{{n}}}{{{d}}}"), format!("({n}/{d})"))),
        (2_i64..50).prop_map(|n| (format!("\\sqrt{{{n}}}"), format!("sqrt({n})"))),
        prop_oneof!["x", "y", "n"].prop_map(|name| (name.clone(), name)),
        Just(("\\pi".to_owned(), "pi".to_owned())),
    ];
    atom.prop_recursive(3, 12, 2, |inner| {
        let pair = (inner.clone(), inner.clone());
        prop_oneof![
            pair.clone().prop_map(|(a, b)| (format!("{} + {}", a.0, b.0), format!("({} + {})", b.1, a.1))),
            pair.clone()
                .prop_map(|(a, b)| (format!("({}) - ({})", a.0, b.0), format!("(-({}) + ({}))", b.1, a.1))),
            pair.clone().prop_map(|(a, b)| (format!("({})({})", a.0, b.0), format!("({})*({})", b.1, a.1))),
            pair.prop_map(|(a, b)| (
                format!("\\frac{{{}}}{{{}}}", a.0, b.0),
                format!("(({})/({}))", a.1, b.1)
            )),
            (inner, 1_u32..4).prop_map(|(a, n)| (format!("({})^{{{n}}}", a.0), format!("({})^{n}", a.1))),
        ]
    })
}

fn right(gold_text: &str, answer: &str) -> bool {
    let right = gold(GoldKind::Latex, &format!("${gold_text}$")).unwrap();
    grade(&right, &format!("\\boxed{{{answer}}}")).correct
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn equality_is_reflexive_and_symmetric((a, a_plain) in expression(), (b, _) in expression()) {
        prop_assert!(right(&a, &a), "{a}");
        // A division by zero has no value that its other spelling could share.
        let defined = !a.contains("\\frac") || right(&a, &a_plain) == right(&a_plain, &a);
        prop_assert!(defined, "{a} {a_plain}");
        if !a.contains("\\frac{0") && !a.contains("}{0") && !a.contains("-") {
            prop_assert!(right(&a, &a_plain), "{a} {a_plain}");
        }
        prop_assert_eq!(right(&a, &b), right(&b, &a), "{} {}", a, b);
        prop_assert!(!right(&a, &format!("{a} + 1")) || a.contains("}{0"), "{a}");
    }

    #[test]
    fn no_text_is_too_strange(
        text in "\\PC{0,120}",
        marks in prop::collection::vec(prop_oneof![
            "[-+*/^_=<>!%$(){}\\[\\]|,.;:'& 0-9a-zE]", Just("\\frac".to_owned()), Just("\\sqrt".to_owned()),
            Just("\\boxed{".to_owned()), Just("\\text{".to_owned()), Just("\\left(".to_owned()), Just("answer is ".to_owned()),
            Just("\\begin{pmatrix}".to_owned()), Just("\\\\".to_owned()), Just("\\log_".to_owned()), Just("é".to_owned()),
            Just("\\pm".to_owned()), Just("\\infty".to_owned()), Just("99999999999999999999999999999999999999999".to_owned()),
        ], 0..40),
    ) {
        let marks = marks.concat();
        for text in [&text, &marks, &format!("\\boxed{{{marks}}}"), &format!("Answer: ${marks}$")] {
            for right in golds() {
                let given = grade(&right, text);
                prop_assert!(given.gold_seen_in_text || !given.correct);
            }
            for kind in [GoldKind::Expression, GoldKind::Latex, GoldKind::Exact] {
                if let Ok(right) = gold(kind, text) {
                    assert!(!grade(&right, "").correct);
                    let again = grade(&right, text);
                    prop_assert!(again.gold_seen_in_text || !again.correct);
                }
            }
        }
    }
}
