#!/usr/bin/env python3
"""Writes the reference logits of a model family: a tiny random model, run by transformers.

    python make_logits.py mistral                 # into crates/quant-model/tests/data/mistral
    python make_logits.py mistral --out /tmp/new  # into /tmp/new/mistral
    python make_logits.py --list

The model is built by the class of transformers that the family's `architectures` names, in float32, with eager attention, on
one thread. A family is an entry of SETS. README.md beside this file says what is written.
"""

import argparse
import os
import sys
from pathlib import Path

# Everything is made here; nothing may be fetched.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

DATA = Path(__file__).resolve().parents[2] / "crates/quant-model/tests/data"
LARGEST = 300_000

# What all sets share; an entry's `config` is laid over it. Widths differ from one another, so that none can stand for another.
COMMON = {
    "vocab_size": 80,
    "hidden_size": 40,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

# One entry per set: the class, what its config is given, how long the prompts are, and the seed of weights and prompts.
SETS = {
    # A head wider than hidden / heads. Prompts shorter and longer than the window of 8.
    "mistral": {
        "architecture": "MistralForCausalLM",
        "config": {"head_dim": 16, "max_position_embeddings": 256, "sliding_window": 8},
        "prompts": [6, 40],
        "seed": 20,
    },
    # Fused q, k, v and gate, up. Heads of 16 of which 12 channels are rotated; short factors for prompts up to 24 tokens, long
    # ones for the rest. The window of 32 reaches further than the short prompts, so that they differ by their frequencies alone.
    "phi3": {
        "architecture": "Phi3ForCausalLM",
        "config": {
            "hidden_size": 48,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "max_position_embeddings": 192,
            "original_max_position_embeddings": 24,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "sliding_window": 32,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.1, 1.25, 1.5, 1.75, 2.0],
                "long_factor": [1.0, 1.5, 2.5, 4.0, 6.0, 8.0],
            },
        },
        "prompts": [24, 25, 48],
        "seed": 21,
    },
}


def fill(model, generator):
    """Weights of sensible size: what a layer computes must not vanish beside the residual, nor softmax be flat."""

    def normal(shape, centre, scale):
        return centre + scale * torch.randn(shape, generator=generator, dtype=torch.float32)

    with torch.no_grad():
        # By name, so that the order in which a class makes its modules does not matter.
        for name, parameter in sorted(model.named_parameters()):
            if parameter.dim() == 1:
                norm = "norm" in name
                parameter.copy_(normal(parameter.shape, 1.0 if norm else 0.0, 0.3 if norm else 0.2))
            elif "embed_tokens" in name:
                parameter.copy_(normal(parameter.shape, 0.0, 1.0))
            else:
                parameter.copy_(normal(parameter.shape, 0.0, 1.5 * parameter.shape[1] ** -0.5))


def build(entry):
    kind = getattr(transformers, entry["architecture"])
    config = kind.config_class(**{**COMMON, **entry["config"]}, attn_implementation="eager")
    config.architectures = [entry["architecture"]]
    config.dtype = "float32"
    generator = torch.Generator().manual_seed(entry["seed"])
    model = kind(config).eval()
    fill(model, generator)
    return model, generator


def reference(model, lengths, generator):
    """Per prompt its ids, the residual stream before every block, the normed one after the last, and the logits."""
    tensors = {}
    for number, length in enumerate(lengths):
        ids = torch.randint(0, model.config.vocab_size, (1, length), generator=generator)
        with torch.no_grad():
            out = model(ids, output_hidden_states=True, use_cache=False)
            hidden = out.hidden_states
            # The layout rests on these two; another version may see them otherwise.
            assert len(hidden) == model.config.num_hidden_layers + 1
            assert torch.equal(hidden[0], model.get_input_embeddings()(ids))
            assert torch.equal(model.lm_head(hidden[-1]), out.logits)
        tensors[f"{number}.input_ids"] = ids
        tensors[f"{number}.logits"] = out.logits[0].contiguous()
        for layer, state in enumerate(hidden):
            tensors[f"{number}.hidden.{layer}"] = state[0].contiguous()
    return tensors


def write(name, out):
    entry = SETS[name]
    model, generator = build(entry)
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    weights = {k: v.contiguous() for k, v in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    made = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}"
    save_file(
        reference(model, entry["prompts"], generator), folder / "reference.safetensors", metadata={"made_by": made}
    )
    for file in folder.iterdir():
        file.chmod(0o644)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: {entry['architecture']}, prompts {entry['prompts']}, {size >> 10} KiB, {made}")
    if size > LARGEST:
        sys.exit(f"{name} has {size} bytes; at most {LARGEST} belong into the repository")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", metavar="SET", help="one or more of --list; none is all")
    parser.add_argument("--out", type=Path, default=DATA, help="folder of the sets (default: those of the tests)")
    parser.add_argument("--list", action="store_true", help="list the sets and end")
    args = parser.parse_args()
    if args.list:
        for name, entry in SETS.items():
            print(f"{name:10} {entry['architecture']}, prompts {entry['prompts']}")
        return
    unknown = [name for name in args.sets if name not in SETS]
    if unknown:
        parser.error(f"no set {', '.join(unknown)}; there are: {', '.join(SETS)}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name in args.sets or SETS:
        write(name, args.out)


if __name__ == "__main__":
    main()
