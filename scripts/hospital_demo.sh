#!/usr/bin/env bash
# A hospital on one machine: made-up patients with real ultrasound files in Orthanc, Chinese reports in PostgreSQL.
# They are taken in by DICOMweb and by DIMSE, made safe, turned into instructions, taught to a small LLaVA-Ultra by
# unedited LLaVA, and asked about. Ends with `hospital demo: OK`; everything is in playground/out/hospital.
#
#   bash scripts/hospital_demo.sh              the first start installs .venv and, as root, PostgreSQL and Orthanc
#   bash scripts/hospital_demo.sh --out DIR    another folder; it is emptied first

set -euo pipefail
cd "$(dirname "$0")/.."
job="hospital demo"
. scripts/switched_on.sh

export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES= TOKENIZERS_PARALLELISM=false
export OMP_NUM_THREADS=1  # matrices this small are slower on more
export PYTHONPATH="$PWD/playground:$PWD/playground/quickstart"
export NO_PROXY=127.0.0.1 no_proxy=127.0.0.1
exec python playground/hospital/demo.py "$@"
