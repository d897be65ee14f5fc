#!/usr/bin/env bash
# From a fresh clone to LLaVA-Ultra trained, asked and served by unedited LLaVA, on a CPU, with real ultrasound frames and
# tiny models. Ends with `quickstart: OK` and a page, playground/out/quickstart/report.html; logs lie beside it.
#
#   bash scripts/quickstart.sh              the first start installs .venv, see environment.sh
#   bash scripts/quickstart.sh --out DIR    another folder; it is emptied first

set -euo pipefail
cd "$(dirname "$0")/.."
job=quickstart
. scripts/switched_on.sh

export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES= TOKENIZERS_PARALLELISM=false
export OMP_NUM_THREADS=1  # two ranks; matrices this small are slower on more threads anyway
export NO_PROXY=127.0.0.1 no_proxy=127.0.0.1
exec python playground/quickstart/run.py "$@"
