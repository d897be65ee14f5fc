"""What the benchmarks of models share: flags, the clock, medians, and the files that they write."""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

Found = TypeVar("Found")

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#999999"
"""Told apart by colour-blind readers too (Okabe and Ito)."""


def add_flags(parser: argparse.ArgumentParser, runs: str) -> None:
    """The flags that every benchmark has.

    Args:
        parser: of one benchmark.
        runs: how often it measures each side by default, in words.
    """
    add = parser.add_argument
    add("--json", type=Path, help="where to write the figures")
    add("--plot", type=Path, help="where to draw them (PNG)")
    add("--runs", type=int, help=f"runs of every side (default: {runs})")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)")
    add("--quick", action="store_true", help="small models, seconds: shows that it runs")


def machine(device: str) -> str:
    """The machine in a few words."""
    told = f"{os.cpu_count()} processors, {platform.system()} {platform.machine()}"
    return f"{told}, {torch.cuda.get_device_name(device)}" if device.startswith("cuda") else told


def now(device: str | torch.device) -> float:
    """Seconds of a clock, once all that was asked of the device is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(work: Callable[[], Found], device: str | torch.device = "cpu") -> tuple[float, Found]:
    """Seconds of a call, and what it gave."""
    start = now(device)
    found = work()
    return now(device) - start, found


def medians(runs: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Of each side; sides that were not measured are left out."""
    return {name: statistics.median(times) for name, times in runs.items() if times}


def median_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median of the runs' ratios: what slows a machine for a while slows both sides of a run."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def line_from(told: Mapping[str, float], start: str, ks: Sequence[int]) -> dict[str, float]:
    """The seconds of the k that were not measured, on the line through the least and the most k that were.

    Args:
        told: holds ``{start}{k}_s`` of two k at least.
        start: of the names.
        ks: all k.
    """
    known = sorted(k for k in ks if f"{start}{k}_s" in told)
    first, last = (told[f"{start}{k}_s"] for k in (known[0], known[-1]))
    each = (last - first) / (known[-1] - known[0])
    return {f"{start}{k}_s": first + each * (k - known[0]) for k in ks if k not in known}


def write(result: Mapping[str, Any], args: argparse.Namespace, draw: Callable[[Any, Path], None]) -> None:
    """The JSON file and the plot that were asked for."""
    if args.json:
        args.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if args.plot:
        draw(result, args.plot)


def fill(args: argparse.Namespace, usual: Mapping[str, Any], at: int, frames: Sequence[int]) -> None:
    """Defaults for the flags that were not given.

    Args:
        args: changed in place.
        usual: flag -> its default here.
        at: the k of the targets; `args.uncached` must hold it and 1.
        frames: all k.

    Raises:
        SystemExit: `--uncached` lacks one of them, or has another k.
    """
    vars(args).update({name: value for name, value in usual.items() if getattr(args, name) is None})
    if not {1, at} <= set(args.uncached) <= set(frames):
        raise SystemExit(f"--uncached {args.uncached}: must hold 1 and {at}, and may hold {tuple(frames)}.")


def tell(
    found: Mapping[str, Any], targets: Mapping[str, bool], args: argparse.Namespace, draw: Callable[[Any, Path], None]
) -> int:
    """Prints figures and verdicts and writes the files; the exit status, 1 when a target is missed.

    Args:
        found: the figures.
        targets: each with whether it is met; with --quick they are not judged.
        args: of `add_flags`.
        draw: the plot.
    """
    result = {**head(args), **found, "targets": dict(targets), "judged": not args.quick}
    for name, value in result.items():
        if isinstance(value, float):
            print(f"{name:28}{value:.4g}")
    for target, met in targets.items():
        print(f"target {target}: {'not judged: small models' if args.quick else 'met' if met else 'MISSED'}")
    write(result, args, draw)
    return 0 if args.quick or all(targets.values()) else 1


def head(args: argparse.Namespace) -> dict[str, Any]:
    """How a result file starts: the machine, torch, and what was asked for."""
    asked = {name: value for name, value in vars(args).items() if name not in ("json", "plot")}
    return {"machine": machine(args.device), "torch": torch.__version__, "asked": asked}


def new_figure(width: float, height: float) -> Any:
    """A figure that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def log_seconds(axes: Any) -> None:
    """A logarithmic axis of seconds with plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


class Parts:
    """Where the seconds of a piece of work go: at each moment one part has the clock.

    On a GPU every change of parts waits for the device, which costs what would have overlapped: shares are taken in a
    run of their own there.

    Args:
        device: that computes.
    """

    def __init__(self, device: str) -> None:
        self.device, self.active = device, True
        self.seconds: dict[str, float] = {}
        self._part, self._since = "", 0.0

    def switch(self, part: str) -> str:
        """Gives the clock to a part (none: empty); the part that had it."""
        if not self.active:
            return ""
        moment = now(self.device)
        if self._part:
            self.seconds[self._part] = self.seconds.get(self._part, 0.0) + moment - self._since
        before, self._part, self._since = self._part, part, moment
        return before

    def watch(self, owner: Any, method: str, part: str | Callable[..., str]) -> None:
        """Gives the clock to a part while a method of an object runs.

        Args:
            owner: the object; only it changes, not its class.
            method: its name.
            part: or what says it from the method's arguments.
        """
        work = getattr(owner, method)

        @functools.wraps(work)
        def watched(*args: Any, **kwargs: Any) -> Any:
            before = self.switch(part if isinstance(part, str) else part(*args))
            try:
                return work(*args, **kwargs)
            finally:
                self.switch(before)

        setattr(owner, method, watched)

    def in_backward(self, tensor: torch.Tensor, part: str) -> None:
        """Gives the clock to a part when the gradient of a tensor is known: what made the tensor goes backward next."""

        def switch(_: torch.Tensor) -> None:
            self.switch(part)

        if tensor.requires_grad:
            tensor.register_hook(switch)

    def take(self) -> dict[str, float]:
        """Part -> seconds since the last call."""
        found, self.seconds = self.seconds, {}
        return found
