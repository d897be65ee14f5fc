"""How much disk and memory a rehearsal takes, said before anything is made."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shapes import Shapes, sam_parameters
from watched import gpu_memory

GB = 1e9
LIBRARIES = 1.3 * GB
"""Resident memory of a Python with torch, transformers, DeepSpeed and LLaVA."""

SHARD = 1.0 * GB
"""Of the LLM's files at most; reading holds one of them beside the model."""

TRAINED_BYTES = 20
"""A trained number: itself, DeepSpeed's flat copy and its gradient, Adam's two moments, all float32."""


@dataclass(frozen=True)
class Needs:
    """Bytes."""

    disk: float
    memory: float
    gpu_memory: float = 0.0


def needs(shapes: Shapes, device: str, cached_frames: int, encoder_batch: int, lora_rank: int) -> Needs:
    """An estimate, rather too high; of a training, which takes the most.

    On a GPU weights are bfloat16 and main memory holds the LLM while it is read.
    """
    gpu = device != "cpu"
    wide = 2 if gpu else 4
    llm, lora = shapes.llama.parameters, shapes.llama.lora_parameters(lora_rank)
    encoders = shapes.clip.parameters + sam_parameters(shapes.sam)
    weights = wide * (llm + encoders)
    trained = TRAINED_BYTES * (lora + shapes.projector_parameters)
    busy = weights + trained + activations(shapes, encoder_batch, wide)
    disk = 2 * llm + 4 * (encoders + sam_parameters(shapes.sam)) + 4 * cached_frames * shapes.frame_numbers
    disk += 2 * 4 * (lora + shapes.projector_parameters) + 0.1 * GB  # two LoRA runs, logs
    host = LIBRARIES + min(SHARD, 2.0 * llm) + (wide * llm + 4 * encoders if gpu else busy)
    return Needs(disk, host, busy + 1.0 * GB if gpu else 0.0)


def activations(shapes: Shapes, encoder_batch: int, wide: int) -> float:
    """The largest of what the encoders, the teacher (as many frames at once) and a step hold; one follows the other.

    On a CPU SAM's whole-grid attention has its bias written out for every head, and the fused call works on a copy.
    """
    sam, llama, text = shapes.sam, shapes.llama, 512
    cells = shapes.sam_grid**2
    in_sam = encoder_batch * cells * (3 * sam.mlp_size + (3 * sam.heads * cells if wide == 4 else 0))
    tokens = shapes.clip.tokens + text
    in_teacher = encoder_batch * tokens * (3 * llama.mlp_size + 6 * llama.hidden_size + 2 * llama.heads * tokens)
    in_teacher += encoder_batch * text * llama.words * 2
    in_step = tokens * (3 * llama.words + llama.hidden_size * llama.layers + 12 * llama.mlp_size)
    return float(wide * max(in_sam, in_teacher, in_step))


def available(folder: Path, device: str) -> Needs:
    """What is free: on the disk of a folder that need not exist yet, in main memory, on the GPU."""
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0
    gpu = 0.0 if device == "cpu" else gpu_memory("free") * 2**20
    return Needs(float(shutil.disk_usage(parent).free + there), free_memory(), gpu)


def free_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup/memory.max")) -> float:
    """Bytes that a new program can have: what the system calls available, at most what a container may hold."""
    if meminfo.exists():
        fields: Mapping[str, str] = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free = 1024.0 * int(fields["MemAvailable"].split()[0])
    else:
        free = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = cgroup.read_text().strip() if cgroup.exists() else "max"
    return free if limit == "max" else min(free, float(limit))


def check(needed: Needs, free: Needs, folder: Path) -> None:
    """Refuses to start what cannot end.

    Raises:
        ValueError: which of the three is too small, with both numbers.
    """
    lacking = []
    for name, where in (
        ("disk", f"on the disk of {folder}"),
        ("memory", "of main memory"),
        ("gpu_memory", "on the GPU"),
    ):
        wanted, there = getattr(needed, name), getattr(free, name)
        if wanted > there:
            lacking.append(f"about {wanted / GB:.1f} GB are needed {where}, {there / GB:.1f} GB are free")
    if lacking:
        raise ValueError(
            f"{'; '.join(lacking)}. Nothing was made. Free some, give another --out, a smaller --llm, or --quick."
        )
