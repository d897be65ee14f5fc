#!/usr/bin/env bash
# Real pictures: does the sampler find the lesion of BUSI among normal pictures? LLaVA's own training, `llava-ultra
# score-frames` and `answer`, beside chance, the first picture, swapped findings and bare saliency; ends with `busi: OK`.
#
#   bash scripts/busi_check.sh                the foundation models of scripts/ablation.sh; under an hour on two processors
#   bash scripts/busi_check.sh --models DIR   those of playground/models/make.py --out DIR; --help says more
#
# A row is a folder of playground/out/busi; started again, it goes on with what is missing.

set -euo pipefail
cd "$(dirname "$0")/.."
job=busi
. scripts/switched_on.sh

export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES= TOKENIZERS_PARALLELISM=false
export PYTHONPATH="$PWD/playground:$PWD/playground/quickstart:$PWD/playground/models:$PWD/playground/ablation"
exec python playground/busi/check.py "$@"
