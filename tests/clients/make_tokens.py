#!/usr/bin/env python3
"""Writes a token tensor from a JSONL file of conversations: the rows both clients score.

Every line's `messages` are rendered with the model's chat template, tokenised, joined, and cut into rows
[sequences, length]; the rest is dropped. The tensor is called `tokens`, int32.
"""

import argparse
import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder with tokenizer.json and tokenizer_config.json")
    parser.add_argument("jsonl", help="file with `messages` in every line")
    parser.add_argument("output", help="safetensors file to write")
    parser.add_argument("--rows", type=int, default=16, help="number of rows (default 16)")
    parser.add_argument("--length", type=int, default=256, help="tokens per row (default 256)")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model, local_files_only=True)
    needed = args.rows * args.length
    ids = []
    with open(args.jsonl, encoding="utf-8") as lines:
        for line in lines:
            text = tokenizer.apply_chat_template(json.loads(line)["messages"], tokenize=False)
            ids += tokenizer.encode(text, add_special_tokens=False)
            if len(ids) >= needed:
                break
    if len(ids) < needed:
        sys.exit(f"{args.jsonl}: {len(ids)} tokens, {needed} needed for {args.rows} rows of {args.length}")
    rows = torch.tensor(ids[:needed], dtype=torch.int32).reshape(args.rows, args.length)
    save_file({"tokens": rows}, args.output)
    print(f"{args.output}:tokens {list(rows.shape)}")


if __name__ == "__main__":
    main()
