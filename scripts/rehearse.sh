#!/usr/bin/env bash
# Dress rehearsal: random weights at the real shapes and in the real formats through unedited LLaVA. Stage 1, teacher's
# scores, LoRA, an answer to an 8-frame exam, without and with the feature cache: time and peak memory of each part, and
# what the paper's set-up would take beside its 60 hours. Ends with the tables and `rehearsal: OK`.
#
#   bash scripts/rehearse.sh                  LLaMA of 1.1B; on a CPU an hour or two with two processors, 14 GB
#   bash scripts/rehearse.sh --llm 13b        on a GPU; 7b too
#   bash scripts/rehearse.sh --quick          small shapes, a few minutes; --help says more
#
# What is made stays in playground/out/rehearsal; started again, it goes on with what is missing.

set -euo pipefail
cd "$(dirname "$0")/.."
job=rehearsal
. scripts/switched_on.sh

export PYTHONPATH="$PWD:$PWD/playground:$PWD/playground/quickstart:$PWD/playground/ablation:$PWD/playground/rehearsal"
exec python playground/rehearsal/rehearse.py "$@"
