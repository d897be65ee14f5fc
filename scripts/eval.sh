#!/usr/bin/env bash
# From trained folders to the paper's Table 2: import -> answer -> score -> report. Ends with `eval: OK`.
#
#   bash scripts/eval.sh       the quick start's two models on its held-out exams; makes them first where they are missing
#   MODELS="checkpoints/llava-ultra-13b checkpoints/llava-ft" SOURCE=slake DATA=data/slake SCORED_LANG=zh bash scripts/eval.sh
#
# What is evaluated
#   MODELS          model folders, by spaces: LLaVA-Ultra, or stock LLaVA where a question has one picture
#   BASE            the language model, where a folder of MODELS is LoRA or stage 1
#   PREDS           answers files that are there already (LLaVA's, LLaVA-Med's), by spaces
# On what
#   SOURCE          slake | openi | busi | exams     DATA      its folder, or the manifest of `exams`
#   IMAGES          where picture names start (default: DATA/imgs where that is there, else DATA or the manifest's folder)
#   SPLIT           test | validate | train          SCORED_LANG   zh | en; empty: all
#   TITLE           of the data set in tables        IMPORT_ARGS   more for `llava-ultra import`
# How
#   OUT             output folder; answers in it are kept and continued
#   NUM_GPUS        processes that answer, one a GPU (default: those that nvidia-smi lists, else 1)
#   ANSWER_ARGS     more for `llava-ultra answer`
#   SCORE_ARGS      more for `llava-ultra score`, for example --allow-missing where a model answers in another language

set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
stop() { echo "eval: FAILED: $*" >&2; exit 1; }

if [[ -z "${MODELS:-}${PREDS:-}" ]]; then
    cd "$here/.."
    . scripts/environment.sh
    quick=playground/out/quickstart
    if [[ ! -f $quick/llava-ultra-lora/config.json || ! -f $quick/exams/held_out.json ]]; then
        bash scripts/quickstart.sh
    fi
    export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 CUDA_VISIBLE_DEVICES=
    MODELS="$quick/llava-ultra-stage1 $quick/llava-ultra-lora" BASE=$quick/models/llama
    SOURCE=exams DATA=$quick/exams/held_out.json IMAGES=$quick/exams TITLE="quick start, held-out exams"
    OUT=${OUT:-playground/out/eval} NUM_GPUS=1 ANSWER_ARGS="--device cpu --max_new_tokens 64"
fi
: "${SOURCE:?eval.sh: set SOURCE to slake, openi, busi or exams}" "${DATA:?eval.sh: set DATA to the folder or manifest}"
OUT=${OUT:-eval} SPLIT=${SPLIT:-test}
gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
NUM_GPUS=${NUM_GPUS:-$((gpus > 0 ? gpus : 1))}

if [[ -z "${IMAGES:-}" ]]; then
    IMAGES=$DATA
    if [[ -f "$DATA" ]]; then IMAGES=$(dirname "$DATA"); fi
    if [[ -d "$DATA/imgs" ]]; then IMAGES=$DATA/imgs; fi  # SLAKE's
fi
llava-ultra import "$SOURCE" "$DATA" --out "$OUT/data" --image-folder "$IMAGES" ${IMPORT_ARGS:-}
data=$OUT/data
[[ -f "$data/${SPLIT}_gold.jsonl" ]] || stop "SPLIT=$SPLIT: $SOURCE has none; there are: $(cd "$data" && echo *_gold.jsonl)"

# One process a GPU, each with a part of the questions and an answers file of its own, as LLaVA's scripts do.
answer() {
    local model=$1 name parts=() pids=() pid part failed=0
    name=$(basename "$model")
    for ((part = 0; part < NUM_GPUS; part++)); do
        parts+=("$OUT/answers/$name/${NUM_GPUS}_$part.jsonl")
        local device=()
        if ((gpus > 0)); then device=(--device "cuda:$part"); fi
        llava-ultra answer --model-path "$model" ${BASE:+--model-base "$BASE"} \
            --question-file "$data/${SPLIT}_questions.jsonl" --answers-file "${parts[part]}" \
            --num-chunks "$NUM_GPUS" --chunk-idx "$part" --image-folder "$IMAGES" "${device[@]}" ${ANSWER_ARGS:-} &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
    ((failed == 0)) || stop "$name did not answer every question; started again, it goes on where it stopped"
    cat "${parts[@]}" >"$OUT/answers/.$name.jsonl"
    mv "$OUT/answers/.$name.jsonl" "$OUT/answers/$name.jsonl"
}

preds=()
for model in ${MODELS:-}; do
    echo "eval: $(basename "$model") answers"
    answer "$model"
    preds+=(--pred "$OUT/answers/$(basename "$model").jsonl")
done
for file in ${PREDS:-}; do preds+=(--pred "$file"); done

lang=()
if [[ -n "${SCORED_LANG:-}" ]]; then lang=(--lang "$SCORED_LANG"); fi
llava-ultra score --gold "$data/${SPLIT}_gold.jsonl" "${preds[@]}" "${lang[@]}" --json "$OUT/scores.json" ${SCORE_ARGS:-}
llava-ultra report --scores "$OUT/scores.json" --title "${TITLE:-$SOURCE $SPLIT ${SCORED_LANG:-}}" --out "$OUT/report" \
    --gold "$data/${SPLIT}_gold.jsonl" "${preds[@]}" "${lang[@]}" --image-folder "$IMAGES"
echo "eval: OK"
