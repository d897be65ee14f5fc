#!/usr/bin/env bash
# Checks and tests, on a CPU and offline once the environment is there. Arguments go to pytest:
#
#   bash scripts/test.sh                       everything
#   bash scripts/test.sh tests/vision -k sam   a part of it
#   TEST_WORKERS=4 bash scripts/test.sh        processes that share the tests (default 2)

set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh

export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1  # a relative folder is never looked up on the hub
export DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false PYTHONNOUSERSITE=1

failed=()
check() { echo "test: $1" && "$@" || failed+=("$1"); }  # all three run, so that one run shows everything

check ruff check .
check mypy
check pytest -q -n "${TEST_WORKERS:-2}" "${@:-tests}"
if ((${#failed[@]})); then
    echo "test: FAILED: ${failed[*]} (above)" >&2
    exit 1
fi
