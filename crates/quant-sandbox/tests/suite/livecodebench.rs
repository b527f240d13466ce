//! Answers to problems.

use super::sandbox;
use quant_sandbox::livecodebench::{Case, Failure, Grade, Tests, grade, limits};
use std::time::Duration;

fn tests(function: Option<&str>, cases: &[(&str, &str)]) -> Tests {
    let case = |&(input, output): &(&str, &str)| Case { input: input.to_owned(), output: output.to_owned() };
    Tests { function: function.map(str::to_owned), cases: cases.iter().map(case).collect() }
}

fn graded(code: &str, tests: &Tests) -> Option<Grade> {
    let mut limits = limits();
    limits.wall = Duration::from_secs(20);
    Some(grade(sandbox()?, code, tests, &limits).unwrap())
}

const PASS: Option<Failure> = None;

#[test]
fn programs_that_read_and_print() {
    let squares = tests(None, &[("2\n", "4\n"), ("3\n", "9.0"), ("-1", "1")]);
    for code in [
        "print(int(input()) ** 2)",
        "if __name__ == '__main__':\n    n = int(open(0).read())\n    print(n * n)",
        // All is at hand, by its name and by that of its module.
        "n = int(stdin.readline())\nprint(floor(math.pow(n, 2)), file=sys.stdout)\nexit(1)",
        "@functools.cache\ndef f(n: List[int]):\n    return 0 if n == 0 else 1 + f(n - 1)\nf(3000)\nprint(int(input()) ** 2)",
        "import dataclasses\n@dataclasses.dataclass\nclass A:\n    n: int\nprint(A(int(input())).n ** 2)",
        "def main():\n    print(int(input()) ** 2)\nimport threading\nthreading.Thread(target=main).start()",
    ] {
        let Some(grade) = graded(code, &squares) else { return };
        assert_eq!((grade.passed, &grade.failure), (3, &PASS), "{code}");
        assert!(grade.is_pass());
    }
    let failed = |code| graded(code, &squares).unwrap();
    let wrong = |text: &str| Some(Failure::WrongAnswer(text.to_owned()));
    assert_eq!(failed("print(4)"), Grade { passed: 1, failure: wrong("4\\n") });
    assert_eq!(failed(""), Grade { passed: 0, failure: wrong("") });
    let error = Some(Failure::Error("ZeroDivisionError: division by zero".to_owned()));
    assert_eq!(failed("print(4)\n1 / 0"), Grade { passed: 0, failure: error });
    assert!(
        matches!(failed("print(4").failure, Some(Failure::Error(text)) if text.starts_with("SyntaxError"))
    );
    assert_eq!(failed("x = [0] * (1 << 40)").failure, Some(Failure::OutOfMemory));
    assert_eq!(failed("while True: print('x' * 9999)").failure, Some(Failure::OutputCapped));
}

#[test]
fn functions_that_are_called() {
    let sums = tests(Some("add"), &[("[1, 2]\n3", "[4, 5]"), ("[]\n1", "[]"), ("[0.5]\n1\n", "[1.5]")]);
    for code in [
        "class Solution:\n    def add(self, a: List[int], b: int) -> List[int]:\n        return [x + b for x in a]",
        "def add(a, b):\n    print('noise')\n    return tuple(x + b for x in a)",
        "from fractions import Fraction\ndef add(a, b):\n    return [Fraction(x) + b for x in a]",
    ] {
        let Some(grade) = graded(code, &sums) else { return };
        assert_eq!((grade.passed, grade.failure), (3, PASS), "{code}");
    }
    let failure =
        |returned: &str| graded(&format!("def add(a, b):\n    {returned}"), &sums).unwrap().failure.unwrap();
    let wrong = |text: &str| Failure::WrongAnswer(text.to_owned());
    assert_eq!(failure("return {x + b for x in a}"), wrong("a value of type set"));
    // Only the outermost tuple counts as a list.
    assert_eq!(failure("return [(4, 5)]"), wrong("a value of type tuple"));
    assert_eq!(failure("return [4, 6]"), wrong("[4, 6]"));
    assert_eq!(failure("return [4, float('nan')]"), wrong("a value of type float"));
    assert_eq!(failure("return {1: 2}"), wrong("a value of type dict"));
    assert_eq!(failure("raise KeyError(3)"), Failure::Error("KeyError: 3".to_owned()));
    let missing = graded("x = 1", &tests(Some("sum_of"), &[("1", "1")])).unwrap().failure.unwrap();
    assert!(matches!(missing, Failure::Error(text) if text.contains("AttributeError")));
}

#[test]
fn large_numbers_keep_all_their_digits() {
    let powers = tests(Some("f"), &[("100", "1267650600228229401496703205376"), ("1", "2.0"), ("0", "true")]);
    let Some(grade) = graded("def f(n): return 2 ** n", &powers) else { return };
    assert!(grade.is_pass(), "{grade:?}");
    let grade = graded("def f(n): return 2 ** n + 1", &powers).unwrap();
    assert_eq!((grade.passed, grade.is_pass()), (0, false));
}

#[test]
fn answers_do_not_see_what_is_expected() {
    // The number is in no file, no variable and no memory that an answer can look through.
    let secret = tests(None, &[("", "8460417359")]);
    // Put together where it is needed, so that the answer does not find itself.
    let code = "import gc, os\ndef number(): return ''.join(['84604', '17359'])\n\
                texts = [o for o in gc.get_objects() if isinstance(o, (dict, list, tuple))]\n\
                print(any(number() in repr(t) for t in texts), \
                any(number() in open('/tmp/' + f).read() for f in os.listdir('/tmp')))";
    let Some(grade) = graded(code, &secret) else { return };
    assert_eq!(grade.failure, Some(Failure::WrongAnswer("False False\\n".to_owned())));
    // It would be seen.
    let grade = graded(&format!("hint = '8460417359'\n{code}"), &secret).unwrap();
    assert_eq!(grade.failure, Some(Failure::WrongAnswer("True True\\n".to_owned())));
}

#[test]
fn slow_answers_are_stopped() {
    let Some(sandbox) = sandbox() else { return };
    let mut short = limits();
    short.wall = Duration::from_secs(1);
    let any = tests(None, &[("", "")]);
    let graded = grade(sandbox, "while True: pass", &any, &short).unwrap();
    assert_eq!(graded.failure, Some(Failure::TimedOut));
}
