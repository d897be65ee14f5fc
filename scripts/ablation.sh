#!/usr/bin/env bash
# The paper's ablation (Table 3) on phantom exams with known truth: SAM, the samplers, and simpler choices beside them.
# Phantoms, small foundation models, LLaVA's own training, answers and scores; ends with the table and `ablation: OK`.
#
#   bash scripts/ablation.sh --quick          a small one, 20 to 25 minutes on two processors
#   bash scripts/ablation.sh --seeds 3        the one of playground/results; some hours
#   bash scripts/ablation.sh --rows defaults  settings beside the defaults; --help says more
#
# A row is a folder of playground/out/ablation; started again, it goes on with what is missing.

set -euo pipefail
cd "$(dirname "$0")/.."
job=ablation
. scripts/switched_on.sh

export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES= TOKENIZERS_PARALLELISM=false
export OMP_NUM_THREADS=1  # rows run side by side
export PYTHONPATH="$PWD/playground:$PWD/playground/quickstart:$PWD/playground/models"
exec python playground/ablation/ablate.py "$@"
