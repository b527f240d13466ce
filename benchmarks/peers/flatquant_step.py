#!/usr/bin/env python3
"""Seconds of one training step of FlatQuant in PyTorch, in a block of Qwen2-1.5B's shape.

    flatquant_step.py [--threads N] [--rounds N] [--tokens SEQUENCES LENGTH]

Written from the method's definition, as PyTorch users would: autograd, F.scaled_dot_product_attention, torch.optim.AdamW, inverses by
torch.linalg.inv in float64. W4A4KV4, asymmetric activations and cache, every learned part on. The gradient of every effective weight is
formed on the way to the transforms. Prints one line per round and the least. Beside it:
`cargo bench -p quant-methods --bench flatquant_step`.
"""

import argparse
import time

import torch
import torch.nn.functional as F

HIDDEN, INTER, HEADS, KV_HEADS, DIM = 1536, 8960, 12, 2, 128
PAIRS = {"ln": (32, 48), "up_gate": (32, 48), "down": (80, 112)}
LINEARS = {
    "q": (HEADS * DIM, HIDDEN), "k": (KV_HEADS * DIM, HIDDEN), "v": (KV_HEADS * DIM, HIDDEN), "o": (HIDDEN, HEADS * DIM),
    "gate": (INTER, HIDDEN), "up": (INTER, HIDDEN), "down": (HIDDEN, INTER),
}
SITES = {"q": "ln", "k": "ln", "v": "ln", "o": "o", "gate": "up_gate", "up": "up_gate", "down": "down"}


class Round(torch.autograd.Function):
    """Rounds forward, passes gradients."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


def quantised(x, clips, bits=4):
    """Asymmetric, a range per row that includes zero, both ends clipped by learned factors."""
    high = x.amax(-1, keepdim=True).clamp(min=0) * torch.sigmoid(clips[0])
    low = x.amin(-1, keepdim=True).clamp(max=0) * torch.sigmoid(clips[1])
    scale = (high - low).clamp(min=1e-8) / (2**bits - 1)
    zero = torch.round(-low / scale).detach()
    level = torch.clamp(Round.apply(x / scale) + zero, 0, 2**bits - 1)
    return (level - zero) * scale


def clipped(w, clips):
    """Rows clipped by learned factors of their ends."""
    high, low = w.amax(1, keepdim=True), w.amin(1, keepdim=True)
    return torch.maximum(torch.minimum(w, high * torch.sigmoid(clips[0])), low * torch.sigmoid(clips[1]))


def rounded(w, bits=4):
    """Symmetric, a scale per row."""
    scale = w.abs().amax(1, keepdim=True).clamp(min=1e-5) / (2 ** (bits - 1) - 1)
    return torch.clamp(Round.apply(w / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale


def kronecker(x, left, right):
    shape = x.shape
    return torch.matmul(torch.matmul(left.T, x.reshape(-1, left.shape[0], right.shape[0])), right).reshape(shape)


def inverse_transpose(matrix):
    return torch.linalg.inv(matrix.double()).T.to(matrix.dtype)


def rope(x, cos, sin):
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def norm(x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def block(p, w, bias, x, cos, sin):
    it = {name: [inverse_transpose(m) for m in p["pair"][name]] for name in PAIRS}
    it["o"] = [inverse_transpose(p["o"]), inverse_transpose(p["v"])]
    effective = {}
    for name, own in w.items():
        site = SITES[name]
        scaled = own / p["diag"][site] if site in p["diag"] else own
        merged = clipped(kronecker(scaled, *it[site]), p["lwc"][name])
        if name == "v":
            merged = torch.matmul(merged.T.reshape(HIDDEN, KV_HEADS, DIM), p["v"]).reshape(HIDDEN, -1).T
        effective[name] = rounded(merged)
    v_bias = torch.matmul(bias["v"].reshape(KV_HEADS, DIM), p["v"]).reshape(-1)

    def site(name, x):
        return quantised(kronecker(x * p["diag"][name], *p["pair"][name]), p["lac"][name])

    batch, length, _ = x.shape
    a = site("ln", norm(x))
    heads = lambda y, n: y.reshape(batch, length, n, DIM).transpose(1, 2)
    q = rope(heads(F.linear(a, effective["q"], bias["q"]), HEADS), cos, sin)
    k = rope(heads(F.linear(a, effective["k"], bias["k"]), KV_HEADS), cos, sin)
    v = heads(F.linear(a, effective["v"], v_bias), KV_HEADS)
    q = torch.matmul(q, inverse_transpose(p["k"]))
    k, v = quantised(torch.matmul(k, p["k"]), p["lac"]["key"]), quantised(v, p["lac"]["value"])
    repeat = lambda y: y.repeat_interleave(HEADS // KV_HEADS, 1)
    y = F.scaled_dot_product_attention(q, repeat(k), repeat(v), is_causal=True)
    y = y.transpose(1, 2)
    y = torch.matmul(p["o"].T, y).reshape(batch, length, -1)
    h = x + F.linear(quantised(y, p["lac"]["o"]), effective["o"])
    m = site("up_gate", norm(h))
    product = F.silu(F.linear(m, effective["gate"])) * F.linear(m, effective["up"])
    return h + F.linear(site("down", product), effective["down"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, nargs=2, default=(4, 512))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    orthogonal = lambda n: torch.nn.Parameter(torch.linalg.qr(torch.randn(n, n))[0].contiguous())
    ones = lambda n: torch.nn.Parameter(torch.ones(n))
    clip = lambda *shape: [torch.nn.Parameter(torch.full(shape, 4.0)) for _ in range(2)]
    widths = {"ln": HIDDEN, "up_gate": HIDDEN, "down": INTER}
    p = {
        "pair": {name: [orthogonal(n) for n in sides] for name, sides in PAIRS.items()},
        "o": orthogonal(HEADS), "v": orthogonal(DIM), "k": orthogonal(DIM),
        "diag": {name: ones(n) for name, n in widths.items()},
        "lwc": {name: clip(rows, 1) for name, (rows, _) in LINEARS.items()},
        "lac": {name: clip(1) for name in ["ln", "o", "up_gate", "down", "key", "value"]},
    }
    flat = lambda tree: [x for y in tree for x in y]
    matrices = flat(p["pair"].values()) + [p["o"], p["v"], p["k"]]
    clips = flat(p["lwc"].values()) + flat(p["lac"].values())
    groups = [{"params": matrices + list(p["diag"].values()), "lr": 5e-3}, {"params": clips, "lr": 5e-2}]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.01)
    w = {name: (torch.rand(rows, columns) * 2 - 1) / columns**0.5 for name, (rows, columns) in LINEARS.items()}
    bias = {name: torch.full((LINEARS[name][0],), 0.1) for name in "qkv"}
    batch, length = arguments.tokens
    x = torch.rand(batch, length, HIDDEN) * 2 - 1
    target = torch.rand(batch, length, HIDDEN) * 2 - 1
    angle = torch.outer(torch.arange(length).float(), 10000.0 ** (-torch.arange(0, DIM, 2).float() / DIM))
    cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()

    best = float("inf")
    for turn in range(arguments.rounds + 1):
        began = time.process_time() if arguments.threads == 1 else time.perf_counter()
        loss = F.mse_loss(block(p, w, bias, x, cos, sin), target)
        (loss / loss.detach()).backward()
        optimiser.step()
        optimiser.zero_grad()
        seconds = (time.process_time() if arguments.threads == 1 else time.perf_counter()) - began
        # The first only warms up.
        best = min(best, seconds) if turn else best
        print(f"round {turn}: {seconds:.3f} s, loss {loss.item():.5f}", flush=True)
    print(f"torch {torch.__version__}, {arguments.threads} threads: {best:.3f} s a step")


if __name__ == "__main__":
    main()
