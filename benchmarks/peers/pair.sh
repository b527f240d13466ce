#!/usr/bin/env bash
# Times ptq and llm-compressor on the same GPTQ or AWQ job, in alternating runs pinned to one core. See README.md beside this file.
#
#   benchmarks/peers/pair.sh [--python PYTHON] [--method gptq|awq] [--compute f32|bf16] [--pairs N] [--core C]
#                            [--model DIR --tokens FILE:TENSOR] [--group-size G] [--search-tokens N|all]
#
# Without --model it makes the checkpoint of README.md with `ptq synth` (2 blocks in the shape of Qwen2-1.5B).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly HERE=benchmarks/peers
readonly WORK=target/peers

python=python3 method=gptq compute=f32 pairs=3 core=0 group=128 search=512 model="" tokens=""
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        --python | --method | --compute | --pairs | --core | --model | --tokens | --group-size | --search-tokens)
            [ $# -ge 2 ] || { echo "$1 needs a value" >&2; exit 2; } ;;&
        --python) python="$2" ;;
        --method) method="$2" ;;
        --compute) compute="$2" ;;
        --pairs) pairs="$2" ;;
        --core) core="$2" ;;
        --model) model="$2" ;;
        --tokens) tokens="$2" ;;
        --group-size) group="$2" ;;
        --search-tokens) search="$2" ;;
        *) echo "unknown argument: $1" >&2; exit 2 ;;
    esac
    shift 2
done
case "$method" in gptq | awq) ;; *) echo "--method: expected gptq or awq, got $method" >&2; exit 2 ;; esac
case "$compute" in f32 | bf16) ;; *) echo "--compute: expected f32 or bf16, got $compute" >&2; exit 2 ;; esac
[ -z "$model" ] || [ -n "$tokens" ] || { echo "--model needs --tokens" >&2; exit 2; }

cargo build --locked --release --quiet -p ptq
readonly PTQ=target/release/ptq
mkdir -p "$WORK"
if [ -z "$model" ]; then
    model="$WORK/qwen2-1.5b-2"
    tokens="$model/tokens.safetensors:calibration"
    [ -f "$model/config.json" ] || "$PTQ" synth --output "$model" --shape qwen2-1.5b --layers 2 --vocab 8192 --seed 0
fi
sed -e "s/W4A16g128/W4A16g$group/" -e "s/search_tokens: 512/search_tokens: $search/" -e "s/^compute: .*/compute: $compute/" \
    "$HERE/$method.yaml" > "$WORK/recipe.yaml"

results="$WORK/$(basename "$model")-$method-$compute.jsonl"
: > "$results"
# Both read the checkpoint from the page cache, also the first time.
cat "$model"/*.safetensors > /dev/null

ours() {
    local TIMEFORMAT='%U %S' cpu
    # `time` writes where the group's stderr goes; the log is the program's own.
    cpu="$({ time taskset -c "$core" "$PTQ" quantize --model "$model" --recipe "$WORK/recipe.yaml" --calibration "$tokens" \
        --output "$WORK/ours" --threads 1 --force --json > "$WORK/ours.json" 2> "$WORK/ours.log"; } 2>&1)"
    "$python" "$HERE/summarise.py" --ours "$WORK/ours.json" --compute "$compute" --cpu "$cpu" >> "$results"
}
peer() {
    rm -rf "$WORK/peer"
    taskset -c "$core" "$python" "$HERE/llmcompressor_job.py" "$model" "$tokens" "$WORK/peer" --method "$method" \
        --group-size "$group" >> "$results" 2> "$WORK/peer.log"
}

# A B, B A, A B, ...: a machine that drifts treats both alike.
for ((i = 0; i < pairs; i++)); do
    if ((i % 2 == 0)); then ours; peer; else peer; ours; fi
    echo "pair $((i + 1)) of $pairs done" >&2
done
"$python" "$HERE/summarise.py" "$results"
