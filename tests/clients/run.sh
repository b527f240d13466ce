#!/usr/bin/env bash
# Quantises assets/tiny-reasoner to compressed-tensors folders, scores them with `ptq eval` and with transformers, and
# compares perplexity (0.5 %) and logits. Exits 0 with one line when no Python has the packages.
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
readonly GOLDENS=../shared/goldens/formats
# Two: what continuous integration has. The result does not depend on it.
readonly THREADS=2

install=false
for argument in "$@"; do
    case "$argument" in
        --install) install=true ;;
        -h | --help) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
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

# compare NAME FOLDER [CHECK OPTIONS]
compare() {
    local name="$1" folder="$2"
    shift 2
    ptq eval --model "$folder" --tokens "$TOKENS" --save-logits "$WORK/$name.logits.safetensors" \
        --threads "$THREADS" --json > "$WORK/$name.json"
    check "$folder" --tokens "$TOKENS" --expected-ppl "$(perplexity "$WORK/$name.json")" \
        --logits "$WORK/$name.logits.safetensors" "$@" || failed=1
}

# Without quantisation first: a difference here is a difference of the models, not of the formats.
printf '\n== float\n'
compare float "$MODEL" --logits-tolerance 1e-4

# Weight-only schemes are deterministic functions of the folder, so the logits must agree as those of a float model do.
# Rounded activations are not: the order of a sum decides ties, which moves single codes. Measured, that is a mean KL of
# 7e-6 nats, while leaving the activations in float on one side is 9e-5: the limit lies between the two.
for recipe in w4a16g32 w8a8; do
    printf '\n== %s\n' "$recipe"
    ptq quantize --model "$MODEL" --recipe "$recipe" --calibration "$MODEL/tasks/calibration.jsonl" \
        --num-samples 32 --max-seq-len 256 --threads "$THREADS" --output "$WORK/$recipe" --force --json \
        > "$WORK/$recipe.quantize.json"
    case "$recipe" in
        w4a16g32) compare "$recipe" "$WORK/$recipe" --logits-tolerance 1e-4 ;;
        w8a8) compare "$recipe" "$WORK/$recipe" --kl-tolerance 3e-5 ;;
    esac
done

if [ "$failed" -ne 0 ]; then
    printf '\nclients: FAILED\n' >&2
    exit 1
fi
printf '\nclients: transformers and ptq agree\n'
