#!/usr/bin/env python3
"""PyTorch's product of bytes, `torch._int_mm`, with i32 results: GOP/s of shapes MxKxN, to set beside
`ptq bench --shape MxKxN --threads T`. Needs torch alone."""

import argparse
import statistics
import time

import torch


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("shapes", nargs="+", metavar="MxKxN", help="rows, summed columns, outputs")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--rounds", type=int, default=15)
    chosen = arguments.parse_args()
    torch.set_num_threads(chosen.threads)
    for shape in chosen.shapes:
        rows, depth, columns = map(int, shape.split("x"))
        left = torch.randint(-127, 128, (rows, depth), dtype=torch.int8)
        weight = torch.randint(-127, 128, (columns, depth), dtype=torch.int8)
        # As a linear stores it, and as its transpose lies side by side: whichever is faster counts.
        rights = {"rows": weight.t(), "columns": weight.t().contiguous()}
        expected = (left.double() @ weight.double().t()).to(torch.int32)
        for name, right in rights.items():
            assert torch.equal(torch._int_mm(left, right), expected), "not the product"
            seconds = []
            for _ in range(chosen.rounds):
                began = time.perf_counter()
                torch._int_mm(left, right)
                seconds.append(time.perf_counter() - began)
            rate = 2 * rows * depth * columns / 1e9
            median, best = statistics.median(seconds), min(seconds)
            print(f"{shape} weight by {name}: median {rate / median:.0f} GOP/s, best {rate / best:.0f}, {chosen.threads} thread(s)")


if __name__ == "__main__":
    main()
