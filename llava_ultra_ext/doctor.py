"""``llava-ultra doctor``: which LLaVA is there, how the seams are armed, and whether each of them fits."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from llava_ultra_ext import activate, llava_seams

LIBRARIES = ("torch", "transformers", "accelerate", "peft", "deepspeed", "flash-attn", "sentencepiece")


@dataclass(frozen=True)
class Report:
    """What `examine` found.

    Args:
        state: ``enabled``, ``patched``, ``enabled and patched``, ``disabled`` or ``off (ULTRA_EXT=off)``.
        llava: folder of the LLaVA that Python imports, ``None`` when there is none.
        known_as: which tested LLaVA state it is; empty for an untested one.
        problems: one sentence for each seam that does not fit.
    """

    state: str
    llava: Path | None
    known_as: str
    problems: list[str] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        """Whether ``--vision_tower sam_clip_fused`` will be understood."""
        return self.llava is not None and not self.problems and self.state in ACTIVE


ACTIVE = ("enabled", "patched", "enabled and patched")
OFF = "off (ULTRA_EXT=off)"


def examine() -> Report:
    """Look at the environment without importing LLaVA and without changing anything."""
    folder = llava_seams.llava_folder()
    ways = []
    if activate.pth_path().is_file():
        ways.append("enabled")
    if folder is not None and activate.is_patched(folder):
        ways.append("patched")
    state = " and ".join(ways) or "disabled"
    if os.environ.get("ULTRA_EXT", "").lower() == "off":
        state = OFF
    if folder is None:
        return Report(state, None, "", ["llava is not installed in this environment"])
    return Report(state, folder, llava_seams.known_as(folder), llava_seams.check(folder))


def describe(report: Report) -> str:
    """The report as text, one fact a line, the verdict last."""
    lines = [f"llava_ultra_ext: {report.state}", f"LLaVA: {report.llava or 'not found'}"]
    if report.llava is not None:
        lines.append(f"LLaVA state: {report.known_as or 'unknown to this package (not tested with it)'}")
    problems = {problem.split(": ", 1)[0]: problem for problem in report.problems}
    for seam in llava_seams.SEAMS if report.llava is not None else ():
        lines.append(f"  [{'DIFFERS' if seam.title in problems else 'fits'}] {seam.title}: {seam.why}")
    lines += [f"problem: {problem}" for problem in report.problems]
    lines.append("libraries: " + ", ".join(f"{name} {_version(name)}" for name in LIBRARIES))
    lines.append("doctor: " + _verdict(report))
    return "\n".join(lines)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def _verdict(report: Report) -> str:
    if report.llava is None:
        return "no LLaVA here; install llava-torch==1.2.2.post1 (pip install --no-deps) or a checkout of it"
    if report.problems:
        return "this LLaVA is unknown: nothing of it is changed; install 1.2.2.post1 (PyPI or git)"
    if report.state == OFF:
        return "LLaVA is stock while ULTRA_EXT=off is set; unset it (and run `llava-ultra enable` if that was not done)"
    if not report.ready:
        return "LLaVA is stock; run `llava-ultra enable` to switch LLaVA-Ultra on"
    if importlib.util.find_spec("torch") is None:
        return "torch is absent: install LLaVA's requirements first"
    return "ready: --vision_tower sam_clip_fused works in this environment"
