#!/usr/bin/env bash
# Stage 1: P1, P2, alpha and the sampler learn on frame -> findings or description; everything else is frozen.
# Result: $OUT/mm_projector.bin. Then `llava-ultra score-frames`, then finetune_lora.sh.
#
#   BASE=lmsys/vicuna-13b-v1.5 DATA=data/stage1.json IMAGES=data/images bash scripts/pretrain.sh
#
# train.sh lists every variable; further LLaVA flags may follow on the command line.

set -euo pipefail
export RECIPE=$0
export OUT=${OUT:-checkpoints/llava-ultra-stage1}
export VERSION=${VERSION:-ultra_plain_zh}
export LR=${LR:-1e-3}  # the paper; LLaVA 1.5 too
export EPOCHS=${EPOCHS:-1}  # LLaVA and LLaVA-Med; the paper does not say
export ZERO=${ZERO:-zero2}
# The sampler learns from the teacher, but the LLM gets a random frame throughout (a share of 1 is the whole stage): a
# score that was learnt through an untrained projector must not decide yet. The teacher reads every frame once a step;
# ADR_STRATEGY=random saves that, and leaves the sampler to stage 2.
export ADR_STRATEGY=${ADR_STRATEGY:-likelihood}
export ADR_WARMUP=${ADR_WARMUP:-1}

exec bash "$(dirname "$0")/train.sh" --tune_mm_mlp_adapter True "$@"
