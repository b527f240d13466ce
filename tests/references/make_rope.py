#!/usr/bin/env python3
"""Writes crates/quant-model/tests/data/rope.json: inverse frequencies of transformers, and their cosines and sines.

    python make_rope.py [--check]

The frequencies are what the functions of transformers return for the configs below, in float32 on torch; only powers are taken in
float64 and rounded once, because torch's differ in the last digit from processor to processor. `--check` writes nothing and compares.
"""

import argparse
import json
import math
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: E402

FILE = Path(__file__).resolve().parents[2] / "crates/quant-model/tests/data/rope.json"
POSITIONS = [8191, 32767, 131071]


def default(head_dim, theta):
    return f"default {head_dim} {theta:g}", {"head_dim": head_dim, "rope_theta": theta}, 1


def scaled(name, head_dim, theta, scaling, length=1, **config):
    scaling = {**scaling, "rope_theta": theta}
    return name, {"head_dim": head_dim, "rope_theta": theta, "rope_scaling": scaling, **config}, length


def llama3(factor):
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def longrope(dims, **more):
    """Factors that grow with the wavelength, in four digits as the published ones have."""
    grow = [i / (dims - 1) for i in range(dims)]
    return {
        "rope_type": "longrope",
        "short_factor": [round(1.0 + 1.7 * x, 4) for x in grow],
        "long_factor": [round(1.0 + 60.0 * x * x, 4) for x in grow],
        **more,
    }


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
MSCALE = {
    "rope_type": "yarn",
    "factor": 40.0,
    "mscale": 1.0,
    "mscale_all_dim": 0.707,
    "original_max_position_embeddings": 4096,
    "truncate": False,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
PHI = {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096}

# Name, config, length of the sequence. Those with `partial_rotary_factor` rotate the first channels of a head only.
CASES = [
    default(64, 1e4),
    default(128, 1e4),
    default(128, 1e6),
    default(128, 5e5),
    default(128, 1.6e7),
    default(96, 4e6),
    scaled("linear", 128, 1e4, {"rope_type": "linear", "factor": 3.0}),
    scaled("llama 3.1", 128, 5e5, llama3(8.0), max_position_embeddings=131072),
    scaled("llama 3.2", 64, 5e5, llama3(32.0), max_position_embeddings=131072),
    scaled("yarn", 128, 1e6, YARN, max_position_embeddings=32768),
    scaled("yarn mscale", 64, 1e4, MSCALE, max_position_embeddings=163840),
    scaled("dynamic", 128, 1e4, DYNAMIC, 9000, max_position_embeddings=4096),
    scaled("dynamic short", 128, 1e4, DYNAMIC, max_position_embeddings=4096),
    scaled("longrope short", 96, 1e4, longrope(48), 4096, **PHI),
    scaled("longrope long", 96, 1e4, longrope(48), 4097, **PHI),
    scaled("longrope factor", 64, 1e4, longrope(32, factor=16.0), 5000, **PHI),
    scaled("longrope attention factor", 64, 1e4, longrope(32, attention_factor=1.25), 5000, **PHI),
    scaled("longrope partial", 128, 1e4, longrope(48), 4097, partial_rotary_factor=0.75, **PHI),
    ("default partial", {"head_dim": 128, "rope_theta": 1e4, "partial_rotary_factor": 0.75}, 1),
    ("default partial 0.4", {"head_dim": 80, "rope_theta": 1e4, "partial_rotary_factor": 0.4}, 1),
]


class PowersRoundedOnce(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.__rpow__, torch.Tensor.__pow__, torch.pow, torch.Tensor.pow):
            base, exponent = args if func is not torch.Tensor.__rpow__ else args[::-1]
            # Torch takes the number beside a tensor in the type of the tensor.
            wide = [torch.as_tensor(x, dtype=torch.float32).double() for x in (base, exponent)]
            return torch.pow(*wide).float()
        return func(*args, **(kwargs or {}))


def frequencies(config, length):
    """Inverse frequencies and the factor on cosines and sines."""
    config = json.loads(json.dumps(config))
    head_dim = config["head_dim"]
    # The one class here that rotates part of a head; it has no key for the width.
    phi = "partial_rotary_factor" in config
    kind = transformers.Phi3Config if phi else transformers.LlamaConfig
    sizes = {"hidden_size": 4 * head_dim, "num_attention_heads": 4, "num_key_value_heads": 4}
    if phi:
        del config["head_dim"]
    made = kind(**sizes, **config)
    name = made.rope_parameters["rope_type"]
    with PowersRoundedOnce():
        if name == "default":
            of = transformers.models.phi3.modeling_phi3.Phi3RotaryEmbedding
            return of.compute_default_rope_parameters(made)
        return ROPE_INIT_FUNCTIONS[name](made, None, seq_len=torch.tensor(length))


def bits(values):
    return [int(b) for b in numpy.asarray(values, dtype=numpy.float32).view(numpy.uint32)]


def case(name, config, length):
    inverse, factor = frequencies(config, length)
    inverse = inverse.numpy()
    assert inverse.dtype == numpy.float32 and not math.isnan(factor)
    at = []
    for position in POSITIONS:
        angle = (numpy.float32(position) * inverse).astype(numpy.float64)
        turn = [f(angle).astype(numpy.float32) * numpy.float32(factor) for f in (numpy.cos, numpy.sin)]
        at.append({"position": position, "cos": bits(turn[0]), "sin": bits(turn[1])})
    return {"name": name, "config": config, "length": length, "factor": factor, "bits": bits(inverse), "at": at}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    args = parser.parse_args()
    cases = [case(*c) for c in CASES]
    if args.check:
        there = {c["name"]: c for c in json.loads(FILE.read_text())}
        differ = [c["name"] for c in cases if there.get(c["name"]) != c]
        sys.exit(f"other in the file: {', '.join(differ)}" if differ else 0)
    FILE.write_text(json.dumps(cases))
    print(f"{FILE}: {len(cases)} cases, {FILE.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main()
