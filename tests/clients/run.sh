#!/usr/bin/env bash
# Quantises assets/tiny-reasoner, and a random Phi-3 for its fused linears, to compressed-tensors folders, scores them with
# `ptq eval` and with transformers, and compares perplexity (0.5 %) and logits. Exits 0 with one line when no Python has the
# packages.
#
#   tests/clients/run.sh [--install]
#
# PTQ_PYTHON names the Python to use; --install makes a virtual environment under target/ where none is found.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly HERE=tests/clients
readonly VENV=target/clients-venv
readonly WORK=target/clients
readonly MODEL=assets/tiny-reasoner
readonly PHI3=crates/quant-model/tests/data/phi3
readonly GOLDENS=../shared/goldens/formats
# Two: what continuous integration has. The result does not depend on it.
readonly THREADS=2

install=false
for argument in "$@"; do
    case "$argument" in
        --install) install=true ;;
        -h | --help) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) echo "clients: unknown argument: $argument (usage: $HERE/run.sh [--install])" >&2; exit 2 ;;
    esac
done

has_packages() { "$1" -c 'import torch, transformers, compressed_tensors, safetensors, jinja2' 2>/dev/null; }

python=""
if [ -n "${PTQ_PYTHON:-}" ]; then
    # Asked for by name: a Python that cannot do it is an error, not a reason to skip.
    has_packages "$PTQ_PYTHON" || { echo "clients: PTQ_PYTHON=$PTQ_PYTHON lacks packages of $HERE/requirements.txt" >&2; exit 1; }
    python="$PTQ_PYTHON"
elif has_packages python3; then
    python=python3
elif [ -x "$VENV/bin/python" ] && has_packages "$VENV/bin/python"; then
    python="$VENV/bin/python"
elif $install; then
    python3 -m venv "$VENV"
    "$VENV/bin/python" -m pip install --quiet -r "$HERE/requirements.txt"
    python="$VENV/bin/python"
else
    echo "clients: skipped: no Python with torch, transformers and compressed-tensors (set PTQ_PYTHON, or run $HERE/run.sh --install)"
    exit 0
fi
"$python" -c '
from importlib.metadata import version
print("clients:", ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "compressed-tensors")))'

mkdir -p "$WORK"
ptq() { cargo run --locked --release --quiet -p ptq --bin ptq -- "$@"; }
check() { "$python" "$HERE/check_transformers.py" --threads "$THREADS" "$@"; }
perplexity() { "$python" -c 'import json, sys; print(repr(json.load(open(sys.argv[1]))["perplexity"]))' "$1"; }

failed=0

# The checker itself: a folder of llm-compressor's must give the logits stored beside it.
if [ -d "$GOLDENS" ]; then
    printf '\n== the checker, on a folder of llm-compressor\n'
    golden="$GOLDENS/w4a16-g32-asym-gptq"
    check "$golden" --tokens "$golden/reference.safetensors:input_ids" \
        --logits "$golden/reference.safetensors" --logits-tolerance 1e-4 || failed=1
else
    printf '\n== the checker, on a folder of llm-compressor: skipped: %s not present\n' "$GOLDENS"
fi

"$python" "$HERE/make_tokens.py" "$MODEL" "$MODEL/tasks/test.jsonl" "$WORK/tokens.safetensors"
readonly TOKENS="$WORK/tokens.safetensors:tokens"
# 48 tokens: beyond the original context of the model, so that the long factors of its rotation apply.
readonly PHI3_TOKENS="$PHI3/reference.safetensors:2.input_ids"

# compare NAME FOLDER TOKENS [CHECK OPTIONS]
compare() {
    local name="$1" folder="$2" tokens="$3"
    shift 3
    ptq eval --model "$folder" --tokens "$tokens" --save-logits "$WORK/$name.logits.safetensors" \
        --threads "$THREADS" --json > "$WORK/$name.json"
    check "$folder" --tokens "$tokens" --expected-ppl "$(perplexity "$WORK/$name.json")" \
        --logits "$WORK/$name.logits.safetensors" "$@" || failed=1
}

# Without quantisation first: a difference here is a difference of the models, not of the formats.
printf '\n== float\n'
compare float "$MODEL" "$TOKENS" --logits-tolerance 1e-4
printf '\n== phi3 float\n'
compare phi3 "$PHI3" "$PHI3_TOKENS" --logits-tolerance 1e-4

recipe() { printf 'version: 1\nmodifiers:\n  - %s\nexport: { format: compressed-tensors }\n' "$2" > "$WORK/$1.yaml"; }
recipe awq-w4a16g32 'awq: { scheme: W4A16g32 }'
recipe gptaq-w4a16g32 'gptaq: { scheme: W4A16g32, symmetric: false }'
recipe phi3-w8a16 'rtn: { scheme: W8A16 }'
recipe phi3-w8a8 'rtn: { scheme: W8A8 }'

# Weight-only schemes are deterministic functions of the folder, so the logits must agree as those of a float model do.
# Rounded activations are not: the order of a sum decides ties, which moves single codes. Measured, that is a mean KL of
# 7e-6 nats, while leaving the activations in float on one side is 9e-5: the limit lies between the two.
for name in w4a16g32 awq-w4a16g32 gptaq-w4a16g32 w8a8; do
    printf '\n== %s\n' "$name"
    recipe="$name"
    [ ! -f "$WORK/$name.yaml" ] || recipe="$WORK/$name.yaml"
    ptq quantize --model "$MODEL" --recipe "$recipe" --calibration "$MODEL/tasks/calibration.jsonl" \
        --num-samples 32 --max-seq-len 256 --threads "$THREADS" --output "$WORK/$name" --force --json \
        > "$WORK/$name.quantize.json"
    case "$name" in
        w8a8) compare "$name" "$WORK/$name" "$TOKENS" --kl-tolerance 3e-5 ;;
        *) compare "$name" "$WORK/$name" "$TOKENS" --logits-tolerance 1e-4 ;;
    esac
done

# Fused linears (q, k, v; gate, up) of Phi-3. The model is small and random, so that one code that a tie moves counts for more
# than above: measured, a mean KL of 3e-5 nats and 0.33 % of the perplexity; activations left in float would be 1.5e-3 nats.
for name in phi3-w8a16 phi3-w8a8; do
    printf '\n== %s\n' "$name"
    ptq quantize --model "$PHI3" --recipe "$WORK/$name.yaml" --threads "$THREADS" --output "$WORK/$name" --force --json \
        > "$WORK/$name.quantize.json"
    case "$name" in
        phi3-w8a16) compare "$name" "$WORK/$name" "$PHI3_TOKENS" --logits-tolerance 1e-4 ;;
        phi3-w8a8) compare "$name" "$WORK/$name" "$PHI3_TOKENS" --kl-tolerance 2e-4 --tolerance 0.02 ;;
    esac
done

if [ "$failed" -ne 0 ]; then
    printf '\nclients: FAILED\n' >&2
    exit 1
fi
printf '\nclients: transformers and ptq agree\n'
