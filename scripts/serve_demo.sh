#!/usr/bin/env bash
# The quick start's two models served as one: `llava-ultra serve` with two workers each, asked through the API with
# OpenAI's client and through the page in a browser, with errors, with a worker and the controller killed meanwhile, and
# the serving benchmarks in their quick form. Ends with `serve demo: OK`; everything is in playground/out/serving.
#
#   bash scripts/serve_demo.sh              the first start installs .venv and, as root, Chromium; runs the quick start
#   bash scripts/serve_demo.sh --out DIR    another folder; it is emptied first

set -euo pipefail
cd "$(dirname "$0")/.."
job="serve demo"
. scripts/switched_on.sh

quick=playground/out/quickstart
if [[ ! -f $quick/llava-ultra-lora/config.json || ! -f $quick/exams/questions.jsonl ]]; then bash scripts/quickstart.sh; fi
bash scripts/chromium.sh install || fail "no browser; its message is above"

export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 CUDA_VISIBLE_DEVICES= TOKENIZERS_PARALLELISM=false TRANSFORMERS_VERBOSITY=error
export PYTHONPATH="$PWD/playground:$PWD/playground/quickstart:$PWD/playground/serving:$PWD/scripts/bench"
export NO_PROXY=127.0.0.1 no_proxy=127.0.0.1
exec python playground/serving/demo.py --models "$quick" "$@"
