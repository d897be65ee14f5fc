"""The quick start after the installation: exams, models, two training stages, LLaVA's servers, questions, a page.

    bash scripts/quickstart.sh      (it makes the environment and switches LLaVA-Ultra on, then calls this)

Everything goes to one folder, which is emptied first; every step's output is in its `logs/`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import make_models
from processes import ROOT, StepFailed, python, step, stop_on_signals
from report import write_report
from serving import ask, free_ports, serve
from summary import exam_entry, most_frequent_answers, problems, stage_entry, table

HERE = Path(__file__).resolve().parent
OUT = ROOT / "playground" / "out" / "quickstart"
MARK = ".quickstart"  # says that a folder is ours to empty
STAGE1, STAGE2 = "stage 1, projector", "stage 2, LoRA"

# What scripts/train.sh reads. Numbers for models a ten-thousandth of the real size; the scripts hold the paper's.
TINY = {
    **dict.fromkeys(("HOSTFILE", "LAUNCH", "PER_DEVICE_BATCH", "VISION_TOWER", "MAX_FRAMES", "PROJECTOR_LR"), ""),
    "NUM_GPUS": "2",  # ranks; DS_ACCELERATOR=cpu makes them processes of the CPU
    "ZERO": "zero3",
    "BF16": "False",
    "FP16": "False",
    "TF32": "False",
    "SAM_IMAGE_SIZE": "192",
    "BATCH": "8",
    "LR": "3e-3",
    "MAX_LENGTH": "512",
    "GRADIENT_CHECKPOINTING": "False",
    "LOADER_WORKERS": "0",
    "SAVE_STEPS": "100000",
    "LOGGING_STEPS": "1",
    "ENCODER_BATCH": "32",
}
