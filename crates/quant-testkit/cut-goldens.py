#!/usr/bin/env python3
"""Cuts the compact goldens in crates/*/tests/data out of the full reference files.

    crates/quant-testkit/cut-goldens.py ../shared/goldens

Nothing is computed here except the losses of GPTQ, which are sums over the rows that stay: every other number was written by a published implementation (see
the README beside each file). Python 3 without packages.
"""

import json
import struct
import sys
from pathlib import Path

SIZE = {"F64": 8, "F32": 4, "F16": 2, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
CODE = {"F64": "d", "F32": "f", "F16": "e", "I32": "i", "I16": "h", "I8": "b", "U8": "B"}
CRATES = Path(__file__).resolve().parent.parent


class Golden:
    """A safetensors file: name -> (dtype, shape, bytes), and its meta."""

    def __init__(self, path):
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        self.meta = json.loads(header.pop("__metadata__")["meta"])
        body = data[8 + length :]
        self.tensors = {
            name: (t["dtype"], t["shape"], body[slice(*t["data_offsets"])]) for name, t in header.items()
        }

    def values(self, name):
        dtype, shape, data = self.tensors[name]
        return struct.unpack(f"<{len(data) // SIZE[dtype]}{CODE[dtype]}", data)

    def rows(self, name, rows):
        """The tensor with only these rows."""
        dtype, shape, data = self.tensors[name]
        stride = len(data) // shape[0]
        return dtype, [len(rows), *shape[1:]], b"".join(data[r * stride : (r + 1) * stride] for r in rows)


def write(path, tensors, meta):
    header, body = {"__metadata__": {"meta": json.dumps(meta)}}, b""
    for name, (dtype, shape, data) in sorted(tensors.items(), key=lambda t: (-SIZE[t[1][0]], t[0])):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    print(f"{path.relative_to(CRATES)}: {len(tensors)} tensors, {path.stat().st_size >> 10} KiB")


def quantizer(golden):
    """Three regular rows and all edge rows of W, eight tokens of X with its extremes; widths 5 to 7 only with ist."""
    count, width = golden.tensors["W"][1]
    rows = {"W": [0, 1, 2, *range(golden.meta["rows_regular"], count)]}
    x = golden.values("X")
    extremes = {x.index(max(x)) // width, x.index(min(x)) // width}
    rows["X"] = sorted(extremes | set(range(8)))
    tensors, cases = {}, {}
    for name, case in golden.meta["cases"].items():
        if case["impl"] == "flatquant_act" or (case["impl"] == "qhs" and 5 <= case["bits"] <= 7):
            continue
        cases[name] = case
        taken = rows[case["input"]]
        for part in ["scale", "zero", "codes", "dq"]:
            full = f"{name}.{part}"
            if full not in golden.tensors or (part == "dq" and case["impl"] != "smoothquant"):
                continue
            length = golden.tensors[full][1][0]
            per = length // golden.tensors[case["input"]][1][0]
            # Groups are rows of their own; a scale of the whole tensor is one number.
            taken_here = [r * per + i for r in taken for i in range(per)] if per else range(length)
            tensors[full] = golden.rows(full, list(taken_here))
    for name in rows:
        tensors[name] = golden.rows(name, rows[name])
    return tensors, {"cases": cases}


def gptq(golden):
    """The first 20 rows of six cases. Rows are independent, so only the sums over rows change."""
    keep = range(20)
    tensors = {"X": golden.tensors["X"], "W": golden.rows("W", keep)}
    width = golden.tensors["W"][1][1]
    weight, h = golden.values("W"), golden.values("H")
    tensors["Hdiag"] = ("F32", [width], struct.pack(f"<{width}f", *h[:: width + 1]))
    cases = {}
    for case in [
        "ist.b3.sym",
        "ist.b4.asym.g64",
        "ist.b4.asym.bs48",
        "ist.b4.asym.g32.act",
        "ist.b3.asym.g64.static",
        "qhs.b3.asym.mse.g64.act.static",
    ]:
        for name in golden.tensors:
            if name.startswith(f"{case}.") and "." not in name[len(case) + 1 :]:
                part = name[len(case) + 1 :]
                per_column = part in ["g_idx", "perm"]
                tensors[name] = golden.tensors[name] if per_column else golden.rows(name, keep)
        scale, zero, codes, g_idx = (golden.values(f"{case}.{p}") for p in ["scale", "zero", "codes", "g_idx"])
        groups = golden.tensors[f"{case}.scale"][1][1]
        proxy = 0.0
        for r in keep:
            at = [r * groups + g for g in g_idx]
            row = slice(r * width, (r + 1) * width)
            d = [w - scale[a] * (c - zero[a]) for w, c, a in zip(weight[row], codes[row], at)]
            proxy += sum(d[j] * sum(a * b for a, b in zip(d, h[j * width : (j + 1) * width])) for j in range(width))
        kept = {k: v for k, v in golden.meta["cases"][case].items() if not k.startswith("noise")}
        cases[case] = kept | {"loss": sum(golden.values(f"{case}.losses_row")[:20]), "proxy_trDHDt": proxy}
    return tensors, {"title": "GPTQ, subset: first 20 rows", "cases": cases}


def one_case(case, shared):
    """One whole case: the searches look at all rows of a weight, so none can be left out."""

    def cut(golden):
        names = shared + [name for name in golden.tensors if name.startswith(f"{case}.")]
        tensors = {name: golden.tensors[name] for name in names}
        kept = {k: v for k, v in golden.meta["cases"][case].items() if not k.startswith("noise")}
        return tensors, {"cases": {case: kept}}

    return cut


def smoothquant(golden):
    """The attention edge of the Qwen2 layer."""
    names = ["qwen2.X", "qwen2.w.input_layernorm.weight"]
    for role in "qkv":
        names += [f"qwen2.act_scales.self_attn.{role}_proj", f"qwen2.w.self_attn.{role}_proj.weight"]
    cases = {name: case for name, case in golden.meta["cases"].items() if name.startswith("qwen2")}
    for case in cases:
        for module in ["input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]:
            name = f"{case}.{module}.weight"
            if name in golden.tensors:
                names.append(name)
    return {name: golden.tensors[name] for name in names}, {**golden.meta, "cases": cases}


def flatquant(golden):
    """Two gradients of one block: matrices inverted, and in the SVD form. They see two of the eight samples."""
    cases = ["grad.qwen2.w4a4kv4.inv", "grad.qwen2.w4a4kv4.svd"]
    whole = ("qwen2.w.", *(f"{case}." for case in cases))
    tensors = {name: tensor for name, tensor in golden.tensors.items() if name.startswith(whole)}
    for name in ["qwen2.X", "qwen2.fp_out"]:
        tensors[name] = golden.rows(name, [0, 1])
    return tensors, {"cases": {case: golden.meta["cases"][case] for case in cases}}


def hadamard(golden):
    """Rows of small sizes, and one matrix with random signs."""
    kept = ["d16", "d64", "d12", "d96", "d20", "d28", "d160", "random.d96"]
    tables = ["hadK12", "hadK20", "hadK28", "hadK40"]
    names = [name for name in golden.tensors if name.rsplit(".", 1)[0] in kept] + tables
    cases = {case: golden.meta["cases"][case] for case in kept}
    return {name: golden.tensors[name] for name in names}, {"cases": cases}


def main():
    goldens = Path(sys.argv[1])
    for crate, name, cut in [
        ("quant-core", "quantizer", quantizer),
        ("quant-methods", "smoothquant", smoothquant),
        ("quant-methods", "flatquant", flatquant),
        ("quant-rotate", "hadamard", hadamard),
        ("quant-hessian", "gptq", gptq),
        ("quant-hessian", "billm", one_case("hessian.bs80", ["W", "H"])),
        ("quant-hessian", "slimllm", one_case("w3.g64", ["W", "X"])),
    ]:
        tensors, meta = cut(Golden(goldens / f"{name}.safetensors"))
        write(CRATES / crate / "tests/data" / f"{name}_subset.safetensors", tensors, meta)


if __name__ == "__main__":
    main()
