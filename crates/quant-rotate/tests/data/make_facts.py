#!/usr/bin/env python3
"""Writes facts.json: small cases of what quant-rotate computes, from the definitions and in plain Python floats.

    crates/quant-rotate/tests/data/make_facts.py > crates/quant-rotate/tests/data/facts.json

Matrices are multiplied out, inverses come from elimination, gradients of learned matrices from central differences, those of
quantisers from the rules of docs of `StraightThrough`, element by element. Python 3 without packages.
"""

import json
import math
import random

random.seed(10)


def matrix(rows, columns, scale=1.0):
    return [[round(random.uniform(-scale, scale), 4) for _ in range(columns)] for _ in range(rows)]


def times(a, b):
    return [[sum(x * y for x, y in zip(row, column)) for column in zip(*b)] for row in a]


def transpose(a):
    return [list(column) for column in zip(*a)]


def identity(n):
    return [[float(i == j) for j in range(n)] for i in range(n)]


def solve(a, b):
    """X with A X = B."""
    n = len(a)
    rows = [list(left) + list(right) for left, right in zip(a, b)]
    for k in range(n):
        p = max(range(k, n), key=lambda i: abs(rows[i][k]))
        rows[k], rows[p] = rows[p], rows[k]
        rows[k] = [v / rows[k][k] for v in rows[k]]
        for i in range(n):
            if i != k:
                factor = rows[i][k]
                rows[i] = [v - factor * w for v, w in zip(rows[i], rows[k])]
    return [row[n:] for row in rows]


def inner(a, b):
    return sum(x * y for r, s in zip(a, b) for x, y in zip(r, s))


def kron(a, b):
    return [[x * y for x in r for y in s] for r in a for s in b]


def hadamard(q):
    """Paley's first construction for a prime q = 3 mod 4, as a core [q + 1, q + 1]."""
    squares = {x * x % q for x in range(1, q)}
    chi = lambda v: 0 if v % q == 0 else 1 if v % q in squares else -1
    core = [[1] + [1] * q] + [[-1] + [chi(i - j) + (i == j) for j in range(q)] for i in range(q)]
    return core


def hadamard_case(q, exponent):
    core, size = hadamard(q), 1 << exponent
    sylvester = [[(-1) ** bin(i & j).count("1") for j in range(size)] for i in range(size)]
    h = transpose(kron(core, sylvester))
    n = len(h)
    x = matrix(2, n)
    scale = 1 / math.sqrt(n)
    return {"x": x, "y": [[v * scale for v in row] for row in times(x, h)]}


def kronecker_case(l, r, rows):
    left, right, x, g = matrix(l, l), matrix(r, r), matrix(rows, l * r), matrix(rows, l * r)
    p = kron(left, right)
    blocks = lambda row: [row[i * r : (i + 1) * r] for i in range(l)]
    dl, dr = [[0.0] * l for _ in range(l)], [[0.0] * r for _ in range(r)]
    add = lambda a, b: [[x + y for x, y in zip(s, t)] for s, t in zip(a, b)]
    for one, grad in zip(x, g):
        one, grad = blocks(one), blocks(grad)
        dl = add(dl, times(times(one, right), transpose(grad)))
        dr = add(dr, times(transpose(one), times(left, grad)))
    return {"left": left, "right": right, "x": x, "g": g, "y": times(x, p), "dx": times(g, transpose(p)), "dl": dl, "dr": dr}


def cayley(z):
    n = len(z)
    a = [[z[i][j] if i > j else -z[j][i] if i < j else 0.0 for j in range(n)] for i in range(n)]
    minus = [[float(i == j) - a[i][j] / 2 for j in range(n)] for i in range(n)]
    plus = [[float(i == j) + a[i][j] / 2 for j in range(n)] for i in range(n)]
    return solve(minus, plus)


def pair(case):
    if "matrix" in case:
        p = case["matrix"]
        return p, transpose(solve(p, identity(len(p))))
    u, v, t = cayley(case["u"]), cayley(case["v"]), case["t"][0]
    scaled = lambda t: times([[x * f for x, f in zip(row, t)] for row in u], transpose(v))
    return scaled(t), scaled([1 / f for f in t])


def learned_case(parameters):
    n = len(next(iter(parameters.values()))[0])
    gp, gm = matrix(n, n), matrix(n, n)
    loss = lambda: inner(gp, pair(parameters)[0]) + inner(gm, pair(parameters)[1])
    gradients, step = {}, 1e-5
    for name, values in parameters.items():
        out = []
        for row in values:
            for j in range(len(row)):
                kept = row[j]
                row[j] = kept + step
                high = loss()
                row[j] = kept - step
                low = loss()
                row[j] = kept
                out.append((high - low) / (2 * step))
        gradients[name] = out
    p, m = pair(parameters)
    return {"parameters": parameters, "matrix": p, "inverse_transpose": m, "gp": gp, "gm": gm, "gradients": gradients}


def sigmoid(c):
    return 1 / (1 + math.exp(-c))


def quantiser_case(bits, symmetric, logits):
    x, g = matrix(2, 9, 3.0), matrix(2, 9)
    x[1] = [abs(v) + 0.1 for v in x[1]]
    top, mid = 2**bits - 1, 2 ** (bits - 1)
    smax, smin = sigmoid(logits[0]), sigmoid(logits[1])
    y, dx, dmax, dmin = [], [], 0.0, 0.0
    for row, grad in zip(x, g):
        high, low = max(max(row), 0.0), min(min(row), 0.0)
        if symmetric:
            size = max(high * smax, -low * smin)
            scale, zero = size / (mid - 1), mid
            by_high = float(high * smax > -low * smin) / (mid - 1)
            by_low = by_high - 1 / (mid - 1)
        else:
            scale = (high * smax - low * smin) / top
            zero = round(-low * smin / scale)
            by_high, by_low = 1 / top, -1 / top
        ds, out, back = 0.0, [], []
        for v, d in zip(row, grad):
            level = round(v / scale) + zero
            inside = 0 <= level <= top
            level = min(max(level, 0), top)
            out.append(scale * (level - zero))
            back.append(d if inside else 0.0)
            ds += d * (level - zero - (v / scale if inside else 0.0))
        if high > 0:
            back[row.index(high)] += ds * by_high * smax
            dmax += ds * by_high * high * smax * (1 - smax)
        if low < 0:
            back[row.index(low)] += ds * by_low * smin
            dmin += ds * by_low * low * smin * (1 - smin)
        y.append(out)
        dx.append(back)
    return {"bits": bits, "symmetric": symmetric, "logits": logits, "x": x, "g": g, "y": y, "dx": dx, "dlogits": [dmax, dmin]}


def clip_case():
    w, g = matrix(2, 8, 2.0), matrix(2, 8)
    logits = [[0.4, 1.2], [-0.3, 0.9]]
    y, dw, dmax, dmin = [], [], [], []
    for row, grad, cmax, cmin in zip(w, g, *logits):
        high, low = max(row) * sigmoid(cmax), min(row) * sigmoid(cmin)
        y.append([min(max(v, low), high) for v in row])
        back = [d if low <= v <= high else 0.0 for v, d in zip(row, grad)]
        above = sum(d for v, d in zip(row, grad) if v > high)
        below = sum(d for v, d in zip(row, grad) if v < low)
        back[row.index(max(row))] += above * sigmoid(cmax)
        back[row.index(min(row))] += below * sigmoid(cmin)
        dw.append(back)
        dmax.append(above * max(row) * sigmoid(cmax) * (1 - sigmoid(cmax)))
        dmin.append(below * min(row) * sigmoid(cmin) * (1 - sigmoid(cmin)))
    return {"w": w, "g": g, "logits": logits, "y": y, "dw": dw, "dlogits": [dmax, dmin]}


def training_case(steps=20, rate=5e-3):
    """AdamW along a warm-up and a cosine, both recursive."""
    p, gradients = matrix(1, 3)[0], matrix(steps, 3)
    start, m, v, lr, rates = list(p), [0.0] * 3, [0.0] * 3, rate * 0.01, []
    floor = rate * 1e-3
    for k, g in enumerate(gradients, 1):
        rates.append(lr)
        for i in range(3):
            p[i] *= 1 - lr * 0.01
            m[i] = 0.9 * m[i] + 0.1 * g[i]
            v[i] = 0.999 * v[i] + 0.001 * g[i] ** 2
            p[i] -= lr * m[i] / (1 - 0.9**k) / (math.sqrt(v[i] / (1 - 0.999**k)) + 1e-8)
        if k <= 16:
            lr *= 1 + 0.99 / (0.16 + 0.99 * (k - 1))
        lr = (1 + math.cos(math.pi * k / steps)) / (1 + math.cos(math.pi * (k - 1) / steps)) * (lr - floor) + floor
    return {"rate": rate, "floor": floor, "start": start, "gradients": gradients, "rates": rates, "end": p}


def well_conditioned(n):
    return [[v + 2.0 * (i == j) for j, v in enumerate(row)] for i, row in enumerate(matrix(n, n))]


facts = {
    "hadamard": [hadamard_case(11, 0), hadamard_case(11, 3), hadamard_case(19, 1)],
    "kronecker": [kronecker_case(3, 4, 2), kronecker_case(1, 5, 3)],
    "learned": [
        learned_case({"matrix": well_conditioned(4)}),
        learned_case({"u": matrix(4, 4), "v": matrix(4, 4), "t": [[1.0, -0.8, 1.3, 0.6]]}),
    ],
    "quantiser": [quantiser_case(b, s, [0.8, 1.7]) for b in (2, 4, 8) for s in (True, False)],
    "clip": clip_case(),
    "training": training_case(),
}
print(json.dumps(facts))
