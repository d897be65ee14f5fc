"""LLaVA's ``train_mem.py`` with the plugin armed, as a script that DeepSpeed's launcher can start."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from run_llava import train_mem

from llava_ultra_ext.activate import arm

if __name__ == "__main__":
    arm()
    runpy.run_path(train_mem(), run_name="__main__")
