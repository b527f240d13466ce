#!/usr/bin/env python3
"""Loads a compressed-tensors folder with transformers and compares its perplexity and logits with ours.

The folder is loaded the way a user would: `AutoModelForCausalLM.from_pretrained`, nothing overridden but the
arithmetic (float32, eager attention, CPU). transformers leaves the weights compressed and compressed-tensors
decompresses them on the first forward pass; activation schemes stay attached to the linears.

Each row of the token tensor is scored alone: its first token is given, all others are predicted, and the negative
log-likelihoods of all rows are pooled. The log-softmax is taken in float64 of the float32 logits.

Exit status: 0 the two agree, 1 they do not (or the folder does not load completely), 2 wrong usage.
"""

import argparse
import math
import os
import sys

# Nothing here may go to the network, and progress bars would drown the result.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("COMPRESSED_TENSORS_LOG_LEVEL", "WARNING")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors import safe_open  # noqa: E402


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="folder to load")
    parser.add_argument(
        "--tokens", required=True, metavar="FILE.safetensors:TENSOR", help="token ids [sequences, length]"
    )
    parser.add_argument("--expected-ppl", type=float, metavar="X", help="perplexity to compare with")
    parser.add_argument(
        "--tolerance", type=float, default=0.005, help="largest relative difference of the perplexity (default 0.005)"
    )
    parser.add_argument(
        "--logits", metavar="FILE.safetensors", help="file with a tensor `logits` [sequences, length, vocabulary]"
    )
    parser.add_argument(
        "--logits-tolerance",
        type=float,
        metavar="R",
        help="largest relative Frobenius error of the logits (default: reported only)",
    )
    parser.add_argument(
        "--kl-tolerance",
        type=float,
        metavar="K",
        help="largest mean KL divergence to the saved logits, nats (default: reported only)",
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    args = parser.parse_args()
    if args.expected_ppl is None and args.logits is None:
        parser.error("nothing to compare with: give --expected-ppl, --logits or both")
    if args.logits is None and (args.logits_tolerance, args.kl_tolerance) != (None, None):
        parser.error("--logits-tolerance and --kl-tolerance need --logits")
    if ":" not in args.tokens:
        parser.error(f"--tokens: expected FILE.safetensors:TENSOR, got {args.tokens!r}")
    return args


def read_tokens(spec):
    """Token ids [sequences, length] as int64."""
    path, name = spec.rsplit(":", 1)
    with safe_open(path, framework="pt") as file:
        tokens = file.get_tensor(name)
    if tokens.dim() != 2 or tokens.shape[1] < 2:
        sys.exit(f"{spec}: expected [sequences, length >= 2], got {list(tokens.shape)}")
    return tokens.long()


def load(folder):
    """The model, checked: every tensor of the folder used, none missing, every listed linear really quantised."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        local_files_only=True,
        output_loading_info=True,
    )
    # A tensor under a wrong name would leave a randomly initialised weight and only a log line.
    problems = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    problems = {kind: names for kind, names in problems.items() if names}
    for kind, names in problems.items():
        print(f"{kind}: {', '.join(names[:6])}{' ...' if len(names) > 6 else ''} ({len(names)})")
    if problems:
        sys.exit(1)

    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    schemes = [s for s in (getattr(m, "quantization_scheme", None) for m in linears) if s is not None]
    if getattr(model.config, "quantization_config", None) is not None and not schemes:
        print(f"{folder}: config.json has a quantization_config but no linear got a scheme")
        sys.exit(1)
    kinds = sorted({describe(s) for s in schemes}) or ["float"]
    print(f"{len(schemes)} of {len(linears)} linears quantised: {'; '.join(kinds)}")
    return model.eval()


def describe(scheme):
    """A scheme in words: weights and activations."""

    def one(args):
        if args is None:
            return "float"
        kind = getattr(args.type, "value", args.type)
        strategy = getattr(args.strategy, "value", args.strategy)
        group = f" {args.group_size}" if args.group_size else ""
        symmetry = "symmetric" if args.symmetric else "asymmetric"
        return f"{kind}{args.num_bits} per {strategy}{group} {symmetry}{' dynamic' if args.dynamic else ''}"

    return f"weights {one(scheme.weights)}, activations {one(scheme.input_activations)}"


def score(model, tokens, logits_path):
    """Perplexity, predicted tokens, and against saved logits: relative Frobenius error, mean KL, top-1 agreement.

    One row at a time, so that the memory is that of one row's logits.
    """
    nll, predicted = 0.0, 0
    diff2, ref2, kl, same, positions = 0.0, 0.0, 0.0, 0, 0
    saved = safe_open(logits_path, framework="pt").get_slice("logits") if logits_path else None
    if saved is not None:
        expected = [*tokens.shape, model.config.vocab_size]
        if list(saved.get_shape()) != expected:
            sys.exit(f"{logits_path}: `logits` is {list(saved.get_shape())}, expected {expected}")
    for i, row in enumerate(tokens):
        with torch.inference_mode():
            logits = model(input_ids=row[None], use_cache=False).logits[0].double()
        logp = torch.log_softmax(logits, dim=-1)
        nll -= logp[:-1].gather(1, row[1:, None]).sum().item()
        predicted += len(row) - 1
        if saved is None:
            continue
        other = saved[i].double()
        diff2 += (logits - other).square().sum().item()
        ref2 += logits.square().sum().item()
        other_logp = torch.log_softmax(other, dim=-1)
        kl += (logp.exp() * (logp - other_logp)).sum().item()
        same += (logits.argmax(-1) == other.argmax(-1)).sum().item()
        positions += len(row)
    agreement = (math.sqrt(diff2 / ref2), kl / positions, same / positions) if saved is not None else None
    return math.exp(nll / predicted), predicted, agreement


def main():
    args = parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    tokens = read_tokens(args.tokens)
    model = load(args.folder)
    perplexity, predicted, agreement = score(model, tokens, args.logits)

    ok = math.isfinite(perplexity)
    print(f"perplexity {perplexity:.6f} over {predicted} tokens of {len(tokens)} rows")
    if args.expected_ppl is not None:
        difference = perplexity / args.expected_ppl - 1.0
        # Written so that a NaN on either side fails.
        within = abs(difference) <= args.tolerance
        ok &= within
        print(
            f"expected   {args.expected_ppl:.6f}, relative difference {difference:+.6%} "
            f"({'within' if within else 'MORE THAN'} {args.tolerance:.3%})"
        )
    if agreement is not None:
        error, kl, same = agreement
        verdicts = []
        for value, limit in ((error, args.logits_tolerance), (kl, args.kl_tolerance)):
            within = limit is None or value <= limit
            ok &= within
            verdicts.append("" if limit is None else f" ({'within' if within else 'MORE THAN'} {limit:g})")
        print(
            f"logits: relative error {error:.3e}{verdicts[0]}, mean KL {kl:.3e} nats{verdicts[1]}, "
            f"same top token {same:.4%}"
        )
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
