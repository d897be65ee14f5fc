#!/usr/bin/env bash
# What both stages share: flags, batch arithmetic and launch of LLaVA's own train_mem.py. Called by pretrain.sh,
# finetune_lora.sh and finetune.sh, which set the numbers of their stage; flags given to them reach LLaVA last and win.
#
# Data and models
#   BASE            language model to start from: LLaVA-Med v1.0 / v1.5, Vicuna, LLaMA or any Llama-architecture model
#   DATA, IMAGES    training file (LLaVA's JSON list) and the folder that its image paths start from
#   VERSION         chat template (stage 1 ultra_plain_zh; then ultra_v1_zh, for Mistral ultra_llama2_zh, ultra_chatml_zh)
#   OUT             output folder; keep "llava" in its name (and "lora" after LoRA): LLaVA's loader goes by the name
#   VISION_TOWER    sam_clip_fused, or fused:clip=...,sam=...,dinov2=...    CLIP_TOWER, SAM_TOWER    folder, hub name, .pth
#   SAM_IMAGE_SIZE  768, because 48x48 cells merge 2x2 into the 24x24 of CLIP at 336 pixels and nothing of either grid is
#                   averaged away. With CLIP at 224 (16x16) use 1024: 64x64 cells merge 4x4, SAM costs about twice as much
# Batch and machines
#   BATCH           samples of one optimizer step over all GPUs (16, the paper)    PER_DEVICE_BATCH    samples a GPU holds
#   NUM_GPUS        of this machine (default: those that nvidia-smi lists, else 1); or CUDA_VISIBLE_DEVICES=2,3
#   HOSTFILE        several machines: DeepSpeed's host file, lines "name slots=4"
#   LAUNCH, RANKS   another launcher and its number of processes (see slurm_finetune.sbatch)
#   ZERO            zero2 | zero3 | zero3_offload, or a DeepSpeed file          DEEPSPEED_ARGS    more for the launcher
#   BF16, FP16, TF32   True where the hardware has it; default bf16 and tf32 with a GPU, float32 without
# DRY_RUN=1 prints the command instead of running it.

set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
stop() { echo "$(basename "${RECIPE:-$0}"): $*" >&2; exit 1; }

for name in BASE DATA IMAGES OUT VERSION LR EPOCHS; do
    if [[ -z "${!name:-}" ]]; then stop "$name is not set; scripts/train.sh lists the variables"; fi
done
if [[ -z "${DRY_RUN:-}" ]]; then
    [[ -f "$DATA" ]] || stop "DATA=$DATA: no such file"
    [[ -d "$IMAGES" ]] || stop "IMAGES=$IMAGES: no such folder"
fi

gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
if ((gpus > 0)); then bf16=True; else bf16=False; fi
if [[ "${FP16:-False}" == True ]]; then bf16=False; fi
BF16=${BF16:-$bf16} FP16=${FP16:-False} TF32=${TF32:-$bf16}

if [[ -n "${LAUNCH:-}" ]]; then
    ranks=${RANKS:?train.sh: LAUNCH needs RANKS, the number of processes over all machines}
    launch=($LAUNCH)
elif [[ -n "${HOSTFILE:-}" ]]; then
    [[ -f "$HOSTFILE" ]] || stop "HOSTFILE=$HOSTFILE: no such file"
    ranks=$(sed 's/#.*//' "$HOSTFILE" | awk -F slots= 'NF > 1 {n += $2} END {print n + 0}')
    ((ranks > 0)) || stop "HOSTFILE=$HOSTFILE: no line such as: node1 slots=4"
    launch=(deepspeed --hostfile "$HOSTFILE" ${DEEPSPEED_ARGS:-})
elif [[ -n "${CUDA_VISIBLE_DEVICES:-}" ]]; then  # with --num_gpus, DeepSpeed would ignore it and take the first ones
    ranks=$(awk -F, '{print NF}' <<<"$CUDA_VISIBLE_DEVICES")
    launch=(deepspeed --include "localhost:$CUDA_VISIBLE_DEVICES" ${DEEPSPEED_ARGS:-})
else
    ranks=${NUM_GPUS:-$((gpus > 0 ? gpus : 1))}
    launch=(deepspeed --num_gpus "$ranks" ${DEEPSPEED_ARGS:-})
fi

BATCH=${BATCH:-16}  # the paper
PER_DEVICE_BATCH=${PER_DEVICE_BATCH:-$((BATCH / ranks > 0 ? BATCH / ranks : 1))}
if ((BATCH % (PER_DEVICE_BATCH * ranks))); then
    stop "BATCH=$BATCH is not a multiple of PER_DEVICE_BATCH=$PER_DEVICE_BATCH times $ranks processes"
fi

zero=${ZERO:-zero2}
if [[ "$zero" != *.json ]]; then zero=$here/$zero.json; fi
[[ -f "$zero" ]] || stop "ZERO=$ZERO: no such file; use zero2, zero3, zero3_offload or a DeepSpeed JSON file"

# Found without importing LLaVA, which would load torch first.
train_mem=$(python -c '
import importlib.util, os
spec = importlib.util.find_spec("llava")
print(os.path.join(spec.submodule_search_locations[0], "train", "train_mem.py") if spec else "")')
[[ -f "$train_mem" ]] || stop "LLaVA is not in this Python environment; . scripts/environment.sh, or activate yours"

if [[ -z "${DRY_RUN:-}" ]]; then
    verdict=$(python -m llava_ultra_ext.cli doctor | tail -n 1) || true
    [[ "$verdict" == "doctor: ready"* ]] || stop "${verdict:-llava_ultra_ext is not in this Python environment}"
fi

command=(
    "${launch[@]}" "$train_mem"
    --deepspeed "$zero"
    --model_name_or_path "$BASE"
    --version "$VERSION"
    --data_path "$DATA"
    --image_folder "$IMAGES"
    --image_aspect_ratio pad  # the whole field of view, as both encoders see it
    --vision_tower "${VISION_TOWER:-sam_clip_fused}"
    --mm_projector_type "${PROJECTOR:-linear}"  # the paper; mlp2x_gelu is LLaVA 1.5's
    --mm_vision_select_layer -2
    --mm_use_im_start_end False
    --mm_use_im_patch_token False
    --mm_fusion_alpha "${FUSION_ALPHA:-scalar}"  # the paper; channel gives every hidden channel its own, concat none
    --encoder_batch_size "${ENCODER_BATCH:-8}"
    --adr_strategy "$ADR_STRATEGY"
    --adr_weights "${ADR_WEIGHTS:-channel}"  # one shape for both stages; token_channel for ADR_STRATEGY=feature, in both
    --adr_top_k "${ADR_TOP_K:-1}"  # the paper
    --adr_temperature "${ADR_TEMPERATURE:-0.5}"
    --adr_loss_weight "${ADR_LOSS_WEIGHT:-1.0}"
    --adr_warmup "${ADR_WARMUP:-0.1}"
    --adr_select_by "${ADR_SELECT_BY:-student}"
    --adr_seed "${SEED:-42}"
    --on_bad_sample "${ON_BAD_SAMPLE:-error}"
    --output_dir "$OUT"
    --bf16 "$BF16"
    --fp16 "$FP16"
    --num_train_epochs "$EPOCHS"
    --per_device_train_batch_size "$PER_DEVICE_BATCH"
    --gradient_accumulation_steps $((BATCH / (PER_DEVICE_BATCH * ranks)))
    --optim adamw_torch  # Adam-family, the paper
    --learning_rate "$LR"
    --weight_decay "${WEIGHT_DECAY:-0}"
    --warmup_ratio "${WARMUP_RATIO:-0.03}"  # this and cosine: LLaVA; the paper does not say
    --lr_scheduler_type "${SCHEDULE:-cosine}"
    --model_max_length "${MAX_LENGTH:-2048}"
    --gradient_checkpointing "${GRADIENT_CHECKPOINTING:-True}"
    --evaluation_strategy no
    --save_strategy steps
    --save_steps "${SAVE_STEPS:-500}"
    --save_total_limit "${SAVE_TOTAL_LIMIT:-2}"
    --logging_steps "${LOGGING_STEPS:-1}"
    --seed "${SEED:-42}"
    --dataloader_num_workers "${LOADER_WORKERS:-4}"
    --lazy_preprocess True
    --report_to "${REPORT_TO:-none}"
)

# Flags that are passed only when set: the base model's or LLaVA's own default holds otherwise.
optional() { if [[ -n "$2" ]]; then command+=("$1" "$2"); fi; }
if [[ "${VISION_TOWER:-sam_clip_fused}" == sam_clip_fused ]]; then  # a fused:... list names its encoders itself
    optional --clip_tower "${CLIP_TOWER:-openai/clip-vit-large-patch14-336}"
    optional --sam_tower "${SAM_TOWER:-facebook/sam-vit-large}"
fi
if [[ "${VISION_TOWER:-sam_clip_fused}" == *sam* ]]; then
    optional --sam_image_size "${SAM_IMAGE_SIZE:-768}"
    optional --sam_token_merge "${SAM_TOKEN_MERGE:-unshuffle}"
    optional --sam_select_feature "${SAM_SELECT_FEATURE:-neck}"
    optional --sam_trainable "${SAM_TRAINABLE:-none}"
fi
optional --adr_layers "${ADR_LAYERS:-}"
optional --adr_question_rank "${ADR_QUESTION_RANK:-}"
optional --adr_teacher_text "${ADR_TEACHER_TEXT:-}"
optional --adr_coverage "${ADR_COVERAGE:-}"
optional --frame_scores "${FRAME_SCORES:-}"
optional --feature_cache "${FEATURE_CACHE:-}"
optional --max_frames "${MAX_FRAMES:-}"
optional --mm_projector_lr "${PROJECTOR_LR:-}"
if [[ "$TF32" == True ]]; then optional --tf32 True; fi  # transformers refuses the flag itself without an Ampere GPU

command+=("$@")
if [[ -n "${DRY_RUN:-}" ]]; then
    printf '%q ' "${command[@]}"
    echo
    exit
fi
mkdir -p "$OUT"
exec "${command[@]}"
