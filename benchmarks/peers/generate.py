"""Greedy text of transformers on the CPU in f32: tokens/s at a batch size, and the texts for a comparison.

    python benchmarks/peers/generate.py --model DIR --prompts FILE.jsonl --batch 16 --max-new-tokens 64 [--threads 2]
        [--against OURS.json] [--ignore-end]

FILE.jsonl has lines with `messages` or `prompt`; OURS.json is what `ptq generate --json` printed for the same arguments. Prompts of a
batch are padded on the left, as transformers wants it. One batch warms up and is not timed. The last line is JSON.
"""

import argparse
import json
import time

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--against")
    parser.add_argument("--ignore-end", action="store_true", help="always make as many tokens as allowed")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, torch_dtype=torch.float32).eval()
    lines = [json.loads(line) for line in open(arguments.prompts)]
    config = json.load(open(f"{arguments.model}/config.json"))
    if "tokens" in lines[0]:
        prompts, tokenizer = [line["tokens"] for line in lines], None
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.model)
        render = lambda line: tokenizer.apply_chat_template(line["messages"], add_generation_prompt=True)
        encode = lambda line: tokenizer.encode(line["prompt"], add_special_tokens=False)
        prompts = [render(line) if "messages" in line else encode(line) for line in lines]
    end = config.get("eos_token_id")
    options = dict(do_sample=False, temperature=None, top_p=None, max_new_tokens=arguments.max_new_tokens, pad_token_id=0)
    if arguments.ignore_end:
        options["eos_token_id"] = None
        options["min_new_tokens"] = arguments.max_new_tokens
    found, seconds, count = [], 0.0, 0
    batches = [prompts[i : i + arguments.batch] for i in range(0, len(prompts), arguments.batch)]
    for number, batch in enumerate(batches[:1] + batches):
        longest = max(map(len, batch))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in batch])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in batch])
        with torch.no_grad():
            began = time.perf_counter()
            out = model.generate(ids, attention_mask=mask, **options)[:, longest:]
            took = time.perf_counter() - began
        if number == 0:
            continue
        seconds += took
        for row in out.tolist():
            if not arguments.ignore_end and end in row:
                row = row[: row.index(end) + 1]
            found.append(row)
            count += len(row)
    result = {"tokens": count, "seconds": seconds, "tokens_per_second": count / seconds}
    if arguments.against:
        ours = json.load(open(arguments.against))
        result["equal"] = sum(a == b["tokens"] for a, b in zip(found, ours))
        result["of"] = len(ours)
    print(json.dumps(result))


main()
