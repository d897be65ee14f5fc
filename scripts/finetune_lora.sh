#!/usr/bin/env bash
# Stage 2, the paper's: LoRA on the language model, with projector and sampler, on exams and instructions.
#
#   llava-ultra score-frames ...      # once after stage 1, writes the teacher's scores; without it the teacher runs online
#   BASE=lmsys/vicuna-13b-v1.5 DATA=data/stage2.json IMAGES=data/images FRAME_SCORES=data/scores.jsonl \
#       bash scripts/finetune_lora.sh
#
# STAGE1 is the output folder of pretrain.sh; train.sh lists every other variable.

set -euo pipefail
export RECIPE=${RECIPE:-$0}
export OUT=${OUT:-checkpoints/llava-ultra-lora}
export LR=${LR:-1e-3}  # the paper; LLaVA's own LoRA recipe has 2e-4 with PROJECTOR_LR=2e-5: try that if the loss jumps
lora=(--lora_enable True --lora_r "${LORA_R:-128}" --lora_alpha "${LORA_ALPHA:-256}")  # LLaVA; the paper does not say
lora+=(--lora_dropout "${LORA_DROPOUT:-0.05}")

exec bash "$(dirname "$0")/finetune.sh" "${lora[@]}" "$@"
