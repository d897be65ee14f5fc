#!/usr/bin/env bash
# From a fresh clone to LLaVA-Ultra trained, asked and served by unedited LLaVA, on a CPU, with real ultrasound frames and
# tiny models. Ends with `quickstart: OK` and a page, playground/out/quickstart/report.html; logs lie beside it.
#
#   bash scripts/quickstart.sh              the first start installs .venv, see environment.sh
#   bash scripts/quickstart.sh --out DIR    another folder; it is emptied first

set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
fail() { echo "quickstart: FAILED: $*" >&2; exit 1; }

llava-ultra enable || fail "llava-ultra enable; its message is above"
verdict=$(llava-ultra doctor | tail -n 1) || true
echo "$verdict"
[[ "$verdict" == "doctor: ready"* ]] || fail "LLaVA-Ultra is not active; \`llava-ultra doctor\` says more"

export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES= TOKENIZERS_PARALLELISM=false
export OMP_NUM_THREADS=1  # two ranks; matrices this small are slower on more threads anyway
export NO_PROXY=127.0.0.1 no_proxy=127.0.0.1 PYTHONNOUSERSITE=1 PYTHONUNBUFFERED=1
exec python playground/quickstart/run.py "$@"
