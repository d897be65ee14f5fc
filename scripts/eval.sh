#!/usr/bin/env bash
# From trained folders to the paper's Table 2: import -> answer -> score -> report. Ends with `eval: OK`.
#
#   bash scripts/eval.sh       the quick start's two models on its held-out exams; makes them first where they are missing
#   MODELS="checkpoints/llava-ultra-13b checkpoints/llava-ft" SOURCE=slake DATA=data/slake SCORED_LANG=zh bash scripts/eval.sh
#
# What is evaluated
#   MODELS          model folders, by spaces: LLaVA-Ultra, or stock LLaVA where a question has one picture
#   BASE            the language model of those folders of MODELS that are LoRA or stage 1; whole ones do without
#   PREDS           answers files that are there already (LLaVA's, LLaVA-Med's), by spaces
# On what
#   SOURCE          slake | openi | busi | exams     DATA      its folder, or the manifest of `exams`
#   EVAL_IMAGES     where picture names start (default: DATA/imgs where that is there, else DATA or the manifest's folder)
#   SPLIT           test | validate | train          SCORED_LANG   zh | en: ask and score these only; empty: all
#   TITLE           of the data set in tables        IMPORT_ARGS   more for `llava-ultra import`
# How
#   OUT             output folder; answers stand in OUT/answers/NAME-KEY and are kept and continued. KEY names what they
#                   depend on: model, BASE, ANSWER_ARGS, questions, pictures. Another KEY is answered anew
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
    SOURCE=exams DATA=$quick/exams/held_out.json EVAL_IMAGES=$quick/exams TITLE="quick start, held-out exams"
    OUT=${OUT:-playground/out/eval} NUM_GPUS=1 ANSWER_ARGS="--device cpu --max_new_tokens 64"
fi
: "${SOURCE:?eval.sh: set SOURCE to slake, openi, busi or exams}" "${DATA:?eval.sh: set DATA to the folder or manifest}"
OUT=${OUT:-eval} SPLIT=${SPLIT:-test}
# Processes in the background do not hear Ctrl-C, and would go on answering.
pids=()
stop_answering() {
    ((${#pids[@]} == 0)) || { kill "${pids[@]}" 2>/dev/null || true; wait "${pids[@]}" 2>/dev/null || true; }
    pids=()
}
interrupted() {
    trap '' INT TERM HUP
    stop_answering
    echo "eval: interrupted; answers so far are kept, started again it goes on from there" >&2
    exit "$1"
}
trap stop_answering EXIT
trap 'interrupted 129' HUP
trap 'interrupted 130' INT
trap 'interrupted 143' TERM

gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
NUM_GPUS=${NUM_GPUS:-$((gpus > 0 ? gpus : 1))}
[[ $NUM_GPUS =~ ^[1-9][0-9]{0,3}$ ]] || stop "NUM_GPUS=$NUM_GPUS: must be a whole number, 1 or more."

# Each model's name; the parent's in front where two folders have the same, as checkpoint-100 of two runs.
declare -A name_of=() folder_of=() uses=()
for model in ${MODELS:-}; do
    folder=$(realpath -m "$model")
    [[ -z "${folder_of[$folder]:-}" ]] || stop "MODELS: $model and ${folder_of[$folder]} are one folder. Name it once."
    folder_of[$folder]=$model
    name_of[$model]=$(basename "$(realpath -ms "$model")")
    uses[${name_of[$model]}]=$((${uses[${name_of[$model]}]:-0} + 1))
done
declare -A given_name=() model_of=()
for model in ${MODELS:-}; do
    if ((${uses[${name_of[$model]}]} > 1)); then
        name_of[$model]=$(basename "$(dirname "$(realpath -ms "$model")")")-${name_of[$model]}
        given_name[$model]=${name_of[$model]}
    fi
    other=${model_of[${name_of[$model]}]:-}
    [[ -z "$other" ]] || stop "MODELS: $model and $other would both be called ${name_of[$model]}. Rename one of them."
    model_of[${name_of[$model]}]=$model
done

if [[ -z "${EVAL_IMAGES:-}" ]]; then
    EVAL_IMAGES=$DATA
    if [[ -f "$DATA" ]]; then EVAL_IMAGES=$(dirname "$DATA"); fi
    if [[ -d "$DATA/imgs" ]]; then EVAL_IMAGES=$DATA/imgs; fi  # SLAKE's
fi
lang=()
if [[ -n "${SCORED_LANG:-}" ]]; then lang=(--lang "$SCORED_LANG"); fi
llava-ultra import "$SOURCE" "$DATA" --out "$OUT/data" --image-folder "$EVAL_IMAGES" "${lang[@]}" ${IMPORT_ARGS:-}
data=$OUT/data
[[ -f "$data/${SPLIT}_gold.jsonl" ]] || stop "SPLIT=$SPLIT: $SOURCE has none; there are: $(cd "$data" && echo *_gold.jsonl)"

# LLaVA opens whatever it is given a base for as base + parts, a merged model too: so a base is given only where a folder
# has no whole weights of its own.
needs_base() {
    [[ -f $1/adapter_config.json ]] || { [[ -f $1/mm_projector.bin ]] && ! compgen -G "$1/model*.safetensors" >/dev/null \
        && ! compgen -G "$1/pytorch_model*.bin" >/dev/null; }
}

state_of() {  # a folder's path and its files, so that a model that was trained again is another one
    if [[ ! -d "$1" ]]; then echo "$1"; return; fi
    realpath "$1"
    find -L "$1" -maxdepth 1 -type f -regex '.*\.\(json\|bin\|safetensors\|model\)' -printf '%f %s %T@\n' | LC_ALL=C sort
}

key_of() {  # of a model and its base ('' without): 8 hexadecimal digits
    {
        state_of "$1"
        if [[ -n "$2" ]]; then state_of "$2"; fi
        echo "${ANSWER_ARGS:-}"
        realpath -m "$EVAL_IMAGES"
        sha256sum <"$data/${SPLIT}_questions.jsonl"
    } | sha256sum | cut -c 1-8
}

# One process a GPU, each with a part of the questions and an answers file of its own, as LLaVA's scripts do.
answer() {
    local model=$1 name=${name_of[$1]} base='' folder parts=() pid part failed=0
    if needs_base "$model"; then base=${BASE:-}; fi
    folder=$OUT/answers/$name-$(key_of "$model" "$base")
    for ((part = 0; part < NUM_GPUS; part++)); do
        parts+=("$folder/${NUM_GPUS}_$part.jsonl")
        local device=()
        if ((gpus > 0)); then device=(--device "cuda:$part"); fi
        llava-ultra answer --model-path "$model" ${base:+--model-base "$base"} \
            --question-file "$data/${SPLIT}_questions.jsonl" --answers-file "${parts[part]}" \
            --num-chunks "$NUM_GPUS" --chunk-idx "$part" --image-folder "$EVAL_IMAGES" "${device[@]}" ${ANSWER_ARGS:-} &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
    pids=()
    ((failed == 0)) || stop "$name did not answer every question; started again, it goes on where it stopped"
    cat "${parts[@]}" >"$folder/.$name.jsonl"
    mv "$folder/.$name.jsonl" "$folder/$name.jsonl"
    preds+=(--pred "$folder/$name.jsonl" --name "${given_name[$model]:-}")
}

preds=()
for model in ${MODELS:-}; do
    echo "eval: ${name_of[$model]} answers"
    answer "$model"
done
for file in ${PREDS:-}; do preds+=(--pred "$file" --name ''); done

llava-ultra score --gold "$data/${SPLIT}_gold.jsonl" "${preds[@]}" "${lang[@]}" --json "$OUT/scores.json" ${SCORE_ARGS:-}
llava-ultra report --scores "$OUT/scores.json" --title "${TITLE:-$SOURCE $SPLIT ${SCORED_LANG:-}}" --out "$OUT/report" \
    --gold "$data/${SPLIT}_gold.jsonl" "${preds[@]}" "${lang[@]}" --image-folder "$EVAL_IMAGES"
echo "eval: OK"
