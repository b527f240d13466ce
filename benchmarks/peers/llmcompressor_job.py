#!/usr/bin/env python3
"""Measures llm-compressor's GPTQ, AWQ or round to nearest of one checkpoint on one CPU core; prints one JSON line.

The job is the tool's own: the preset's arithmetic, ordering and defaults are not touched, the checkpoint is loaded in
its own dtype (bf16), and calibration rows go in one at a time as they are in the token tensor. Times are seconds inside
the process without imports; memory is the peak resident set of the whole process, imports included.

Run it pinned: `taskset -c 0 python llmcompressor_job.py MODEL TOKENS.safetensors:TENSOR OUT`.
"""

import argparse
import contextlib
import json
import os
import resource
import sys
import time

# Loggers keep the stdout they find when they are imported: give them stderr, and keep stdout for the result.
RESULT = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
# Before torch: one thread everywhere, no accelerator, no network.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "WARNING")

from importlib.metadata import version  # noqa: E402

import torch  # noqa: E402
import transformers  # noqa: E402
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme  # noqa: E402
from llmcompressor import oneshot  # noqa: E402
from llmcompressor.modifiers.gptq import GPTQModifier  # noqa: E402
from llmcompressor.modifiers.quantization import QuantizationModifier  # noqa: E402
from llmcompressor.modifiers.transform.awq import AWQModifier  # noqa: E402
from safetensors import safe_open  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="checkpoint folder")
    parser.add_argument("tokens", metavar="TOKENS.safetensors:TENSOR", help="calibration rows [sequences, length]")
    parser.add_argument("output", help="folder to write")
    parser.add_argument(
        "--method", choices=("gptq", "awq", "rtn"), default="gptq", help="default gptq; rtn does not use the rows"
    )
    parser.add_argument("--bits", type=int, default=4, help="bits of a weight (default 4)")
    parser.add_argument("--group-size", type=int, default=128, help="inputs per scale, 0 per channel (default 128)")
    args = parser.parse_args()
    if ":" not in args.tokens:
        parser.error(f"expected TOKENS.safetensors:TENSOR, got {args.tokens!r}")
    return args


def rows(spec):
    """The calibration rows as the batches llm-compressor takes, one row each."""
    path, name = spec.rsplit(":", 1)
    with safe_open(path, framework="pt") as file:
        tokens = file.get_tensor(name).long()
    if tokens.dim() != 2:
        sys.exit(f"{spec}: expected [sequences, length], got {list(tokens.shape)}")
    return tokens


def recipe(args):
    """The modifiers: float activations, lm_head left alone; symmetric weights, but for AWQ zero points (W4A16_ASYM)."""
    strategy = {"strategy": "group", "group_size": args.group_size} if args.group_size else {"strategy": "channel"}
    weights = QuantizationArgs(num_bits=args.bits, type="int", symmetric=args.method != "awq", **strategy)
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    kind = GPTQModifier if args.method == "gptq" else QuantizationModifier
    rounding = kind(config_groups=groups, ignore=["lm_head"])
    # The transform scales, the modifier after it rounds; mappings, grid and `duo_scaling` are the tool's defaults.
    return [AWQModifier(), rounding] if args.method == "awq" else rounding


def cpu_seconds():
    """User and system seconds of the process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime, usage.ru_stime


def processor():
    """Name of the processor, to go beside every figure."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return "unknown"


def main():
    args = parse_args()
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    if cores != 1:
        print(f"warning: {cores} cores allowed; pin to one (taskset -c 0) for a comparison", file=sys.stderr)
    tokens = rows(args.tokens)
    if args.method == "awq":
        # The tool pins what it caches, for which torch wants an accelerator.
        torch.Tensor.pin_memory = lambda self, *_, **__: self
    imports_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    user, system = cpu_seconds()
    start = time.perf_counter()
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype="auto", local_files_only=True)
    loaded = time.perf_counter()
    batches = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in tokens]
    data = {} if args.method == "rtn" else {
        "dataset": DataLoader(batches, batch_size=None),
        "num_calibration_samples": len(tokens),
        "max_seq_length": tokens.shape[1],
    }
    oneshot(model=model, recipe=recipe(args), **data)
    quantised = time.perf_counter()
    model.save_pretrained(args.output, save_compressed=True)
    saved = time.perf_counter()
    user, system = (after - before for after, before in zip(cpu_seconds(), (user, system)))

    print(
        json.dumps(
            {
                "tool": "llm-compressor",
                "versions": {p: version(p) for p in ("llmcompressor", "compressed-tensors", "transformers", "torch")},
                "method": args.method,
                "scheme": f"W{args.bits}A16" + (f"g{args.group_size}" if args.group_size else ""),
                "symmetric": args.method != "awq",
                "dtype": str(model.dtype).removeprefix("torch."),
                "layers": model.config.num_hidden_layers,
                "sequences": 0 if args.method == "rtn" else len(tokens),
                "length": 0 if args.method == "rtn" else tokens.shape[1],
                "processor": processor(),
                "cores": cores,
                "threads": torch.get_num_threads(),
                "load_s": round(loaded - start, 3),
                "quantise_s": round(quantised - loaded, 3),
                "save_s": round(saved - quantised, 3),
                "total_s": round(saved - start, 3),
                "user_s": round(user, 3),
                "system_s": round(system, 3),
                "imports_rss_bytes": imports_rss,
                "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        ),
        file=RESULT,
    )


if __name__ == "__main__":
    main()
