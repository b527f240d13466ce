"""Grades the labelled pairs of quant-eval with math-verify, and prints each difference.

Settings are those of the evaluation that quant_eval::answers follows: five decimals, boxes first, LaTeX and plain
expressions, the first string as a fallback; an inequality may stand for its interval in either. Exact answers and GSM8K's mark `####` are ours: exact pairs are left out,
and of a GSM8K solution the text behind the mark is the right answer.
"""

import argparse
import json
import logging
from importlib.metadata import version
from pathlib import Path

from math_verify import ExprExtractionConfig, LatexExtractionConfig, StringExtractionConfig, parse, verify

PAIRS = Path(__file__).parents[2] / "crates/quant-eval/tests/data/answer_pairs.jsonl"
LEAST = 0.97


def graded(pair):
    """Whether math-verify takes the answer for right."""
    kind, gold = pair["gold_kind"], pair["gold"]
    answer = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    wanted = [ExprExtractionConfig()]
    if kind == "latex":
        wanted = [LatexExtractionConfig(boxed_match_priority=55)]
    elif kind == "gsm8k":
        gold = gold.rsplit("####", 1)[1].strip()
    elif kind.startswith("letter:"):
        count = int(kind.split(":")[1])
        answer = wanted = [StringExtractionConfig(strings=tuple(chr(ord("A") + i) for i in range(count)))]
    gold = parse(gold, wanted) or [gold]
    given = parse(pair["answer"], answer)
    return verify(gold, given, float_rounding=5, allow_set_relation_comp=True)


def main():
    """Prints differences and the agreement; fails below 97 %."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--pairs", type=Path, default=PAIRS)
    arguments = arguments.parse_args()
    logging.disable(logging.CRITICAL)
    lines = arguments.pairs.read_text(encoding="utf-8").splitlines()
    pairs = [pair for pair in map(json.loads, lines) if pair["gold_kind"] != "exact"]
    differences = [pair for pair in pairs if graded(pair) != pair["equal"]]
    for pair in differences:
        print(f"{'equal' if pair['equal'] else 'unequal'} here: {pair['gold']!r} {pair['answer']!r} ({pair['note']})")
    agreement = 1 - len(differences) / len(pairs)
    print(f"math-verify {version('math-verify')}: {len(pairs)} pairs, {agreement:.2%} agree")
    raise SystemExit(agreement < LEAST)


if __name__ == "__main__":
    main()
