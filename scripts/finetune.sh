#!/usr/bin/env bash
# Stage 2 with all weights of the language model (finetune_lora.sh calls this with LoRA's flags).
#
#   BASE=lmsys/vicuna-13b-v1.5 DATA=data/stage2.json IMAGES=data/images bash scripts/finetune.sh
#
#   STAGE1   output folder of pretrain.sh, whose mm_projector.bin is loaded; empty when BASE already is a LLaVA-Ultra
#            (ADR_WEIGHTS, PROJECTOR and FUSION_ALPHA must be those of stage 1)
#   ZERO=zero3_offload keeps optimizer and weights in main memory; torch's AdamW runs there, so nothing is compiled
# train.sh lists every other variable.

set -euo pipefail
export RECIPE=${RECIPE:-$0}
export OUT=${OUT:-checkpoints/llava-ultra-full}
export VERSION=${VERSION:-ultra_v1_zh}
export LR=${LR:-2e-5}  # LLaVA; the paper's 1e-3 is for LoRA and projector and would destroy a fully trained model
export EPOCHS=${EPOCHS:-3}  # LLaVA-Med's instruction stage; the paper does not say
export ZERO=${ZERO:-zero3}
export ADR_STRATEGY=${ADR_STRATEGY:-likelihood}  # attention is the paper's Func.b, feature its Func.a

stage1=()
if [[ -n "${STAGE1=checkpoints/llava-ultra-stage1}" ]]; then
    stage1=(--pretrain_mm_mlp_adapter "$STAGE1/mm_projector.bin")
    if [[ -z "${DRY_RUN:-}" && ! -f "$STAGE1/mm_projector.bin" ]]; then
        echo "$(basename "$RECIPE"): STAGE1=$STAGE1 has no mm_projector.bin; run pretrain.sh first, or set STAGE1=" >&2
        exit 1
    fi
fi

exec bash "$(dirname "$0")/train.sh" --group_by_modality_length True ${stage1[@]+"${stage1[@]}"} "$@"
