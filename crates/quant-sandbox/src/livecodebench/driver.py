"""Runs an answer to a problem of LiveCodeBench on one test. Expected outputs are not here: nothing an answer can do knows them.

The lines before this text set CODE, the answer, and FUNCTION, the name of what is to be called, or None.
"""
import json
import numbers
import os
import sys
import types

# Answers are written for a place where these are at hand, with all their names.
AT_HAND = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json builtins typing"
).split()


def prepare(name):
    """A module with all that is at hand."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    for line in ["from %s import *", "import %s"]:
        for other in AT_HAND:
            # `typing` is for its names only.
            if line != "import %s" or other not in ("builtins", "typing"):
                exec(line % other, module.__dict__)
    sys.setrecursionlimit(50000)
    return module


class Unequal(Exception):
    """The value equals nothing that JSON can write."""


def plain(value):
    """The value in types of JSON. Others that Python takes for equal to them are those of numbers."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        value = float(value)
        if value - value == 0:
            return value
    elif isinstance(value, list):
        return [plain(item) for item in value]
    elif isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: plain(item) for key, item in value.items()}
    raise Unequal(type(value).__name__)


def print_output():
    module = prepare("__main__")
    try:
        exec(compile(CODE, "answer.py", "exec"), module.__dict__)
    except SystemExit:
        # An answer that leaves early has answered.
        pass
    sys.stdout.flush()


def print_result():
    arguments = [json.loads(line) for line in sys.stdin.read().split("\n") if line.strip()]
    # What the answer itself prints is no result.
    out = os.dup(1)
    os.dup2(2, 1)
    module = prepare("answer")
    exec(compile(CODE, "answer.py", "exec"), module.__dict__)
    owner = module.Solution() if "class Solution" in CODE else module
    result = getattr(owner, FUNCTION)(*arguments)
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)
    try:
        text = json.dumps(plain(list(result) if isinstance(result, tuple) else result))
    except Unequal as error:
        text = "a value of type %s" % error
    with os.fdopen(out, "w") as file:
        file.write(text)


if FUNCTION is None:
    print_output()
else:
    print_result()
