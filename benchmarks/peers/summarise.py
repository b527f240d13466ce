#!/usr/bin/env python3
"""Turns the results of pair.sh into a table, or (`--ours`) one report of `ptq quantize --json` into a line like theirs."""

import argparse
import json
import statistics


def our_line(path, compute, cpu):
    """The figures of one run of ours under the names llmcompressor_job.py uses."""
    with open(path, encoding="utf-8") as file:
        report = json.load(file)
    user, system = map(float, cpu.replace(",", ".").split())
    return {
        "tool": f"ptq {compute}",
        "total_s": round(report["seconds"], 3),
        "user_s": user,
        "system_s": system,
        "parts_s": {name: round(s, 3) for name, s in report["run"]["seconds"].items()},
        "write_s": {name: round(s, 3) for name, s in report["write"].items()},
        "peak_rss_bytes": report["peak_memory"],
        "predicted_bytes": report["predicted_memory"],
    }


def cpu_seconds(run):
    """User and system seconds: what a busy machine distorts least."""
    return run["user_s"] + run["system_s"]


def spread(values):
    """Median, least and most."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} - {max(values):.2f})"


def table(path):
    """Medians and spread of both tools, and the ratio within each pair."""
    with open(path, encoding="utf-8") as file:
        runs = [json.loads(line) for line in file]
    tools = list(dict.fromkeys(run["tool"] for run in runs))
    peer = next(run for run in runs if run["tool"] == "llm-compressor")
    versions = ", ".join(f"{name} {v}" for name, v in peer["versions"].items())
    yield f"{peer['processor']}, one core; {peer['method']} {peer['scheme']}, {peer['layers']} blocks,"
    yield f"{peer['sequences']} x {peer['length']} tokens; {versions}"
    yield ""
    yield "| tool | runs | seconds (median, least - most) | CPU seconds | peak memory, GB |"
    yield "|---|---|---|---|---|"
    for tool in tools:
        seconds = [run["total_s"] for run in runs if run["tool"] == tool]
        cpu = [cpu_seconds(run) for run in runs if run["tool"] == tool]
        peak = max(run["peak_rss_bytes"] for run in runs if run["tool"] == tool) / 1e9
        yield f"| {tool} | {len(seconds)} | {spread(seconds)} | {spread(cpu)} | {peak:.2f} |"
    pairs = [sorted(pair, key=lambda run: run["tool"] == "llm-compressor") for pair in zip(runs[::2], runs[1::2])]
    ratios = [theirs["total_s"] / ours["total_s"] for ours, theirs in pairs]
    cpu_ratios = [cpu_seconds(theirs) / cpu_seconds(ours) for ours, theirs in pairs]
    memory = [ours["peak_rss_bytes"] / theirs["peak_rss_bytes"] for ours, theirs in pairs]
    yield ""
    yield (
        f"faster by {statistics.median(ratios):.2f}x (pairs: {', '.join(f'{r:.2f}' for r in ratios)}), in CPU seconds by "
        f"{statistics.median(cpu_ratios):.2f}x ({', '.join(f'{r:.2f}' for r in cpu_ratios)}), "
        f"with {statistics.median(memory):.0%} of the memory"
    )
    imports = peer["imports_rss_bytes"] / 1e9
    yield f"({imports:.2f} GB of llm-compressor's memory are Python and its packages, before the model is read)"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="?", help="file written by pair.sh")
    parser.add_argument("--ours", metavar="REPORT.json", help="report to convert")
    parser.add_argument("--compute", default="f32", help="compute setting of that report")
    parser.add_argument("--cpu", default="nan nan", metavar="'USER SYSTEM'", help="CPU seconds of that run")
    args = parser.parse_args()
    if args.ours:
        print(json.dumps(our_line(args.ours, args.compute, args.cpu)))
    elif args.results:
        print("\n".join(table(args.results)))
    else:
        parser.error("give a results file or --ours")


if __name__ == "__main__":
    main()
