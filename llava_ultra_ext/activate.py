"""Activation: explicit, visible, reversible.

Two ways in, the same seams: ``llava-ultra enable`` writes one line into the environment's site-packages
(``llava_ultra_ext.pth``, run by Python at start), and ``patches/`` adds one line to a LLaVA checkout. Both call `arm`,
which only registers an import hook: nothing is imported before ``llava`` is. ``ULTRA_EXT=off`` skips it for one run.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import logging
import os
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

logger = logging.getLogger(__name__)

PTH_NAME = "llava_ultra_ext.pth"
PTH_LINE = (
    "import importlib.util as _u; _u.find_spec('llava_ultra_ext') and "
    "__import__('llava_ultra_ext.activate', fromlist=['arm']).arm()\n"
)
"""Guarded, because a line that fails would greet every Python start after an uninstall."""

PATCH_MARK = "llava_ultra_ext.activate"


class _BindAfterImport(importlib.abc.Loader):
    """LLaVA's own loader, followed by the seams of the module that it loaded."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        from llava_ultra_ext import llava_seams

        llava_seams.bind(module)


class _Hook(importlib.abc.MetaPathFinder):
    """Wraps the loader of each LLaVA module that the seams name; checks all seams before LLaVA itself is imported.

    Not later: ``llava/model/__init__.py`` swallows every error of its imports, `UnknownLlava` among them.
    """

    def __init__(self) -> None:
        self._searching = False
        self._fits: bool | None = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if self._searching or fullname.split(".")[0] != "llava":
            return None
        from llava_ultra_ext import llava_seams

        if fullname != "llava" and all(seam.module != fullname for seam in llava_seams.SEAMS):
            return None
        self._searching = True
        try:
            if not self.llava_fits() or fullname == "llava":
                return None
            spec = importlib.util.find_spec(fullname)
        finally:
            self._searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _BindAfterImport(spec.loader)
        return spec

    def llava_fits(self) -> bool:
        """Whether every seam fits; the first time it is asked, a misfit is logged, or raised (`_refuse`)."""
        if self._fits is None:
            from llava_ultra_ext import llava_seams

            folder = llava_seams.llava_folder()
            if folder is None:
                return False
            problems = llava_seams.check(folder)
            self._fits = not problems
            if problems:
                _refuse(problems)
        return self._fits


def _refuse(problems: list[str]) -> None:
    message = (
        "llava_ultra_ext does not know this LLaVA and changes nothing in it. Known: llava-torch 1.2.2.post1 from PyPI "
        "and the git head of the same version. What differs: " + "; ".join(problems) + ". "
        "Install one of them, or run `llava-ultra disable`."
    )
    if any("sam_clip_fused" in argument or argument.startswith("fused:") for argument in sys.argv):
        from llava_ultra_ext.llava_seams import UnknownLlava

        raise UnknownLlava(message)
    logger.warning(message)


def is_armed() -> bool:
    """Whether the import hook stands in this process."""
    return any(isinstance(finder, _Hook) for finder in sys.meta_path)


def arm() -> bool:
    """Register the import hook for ``llava``; idempotent; modules that are already imported are bound now.

    Returns:
        False when ``ULTRA_EXT=off`` asked to skip it.
    """
    if os.environ.get("ULTRA_EXT", "").lower() == "off":
        return False
    if is_armed():
        return True
    hook = _Hook()
    sys.meta_path.insert(0, hook)
    loaded = [name for name in sys.modules if name.split(".")[0] == "llava"]
    # A patched LLaVA arrives here while its own import has begun.
    if loaded and hook.llava_fits():
        from llava_ultra_ext import llava_seams

        for name in loaded:
            llava_seams.bind(sys.modules[name])
    return True


def disarm() -> None:
    """Remove the hook and put back every object of LLaVA that was replaced in this process."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Hook)]
    if "llava_ultra_ext.llava_seams" in sys.modules:
        from llava_ultra_ext import llava_seams

        llava_seams.undo()


def pth_path() -> Path:
    """Where `enable` writes: the active environment's site-packages."""
    return Path(sysconfig.get_paths()["purelib"]) / PTH_NAME


def enable() -> Path:
    """Arm the hook for every Python of this environment.

    Raises:
        UnknownLlava: LLaVA is absent or a seam does not fit; nothing was written.
    """
    from llava_ultra_ext import llava_seams

    folder = llava_seams.llava_folder()
    if folder is None:
        raise llava_seams.UnknownLlava(
            "No llava package in this environment. Install it (pip install --no-deps llava-torch==1.2.2.post1, or a "
            "checkout with pip install --no-deps -e .), then run `llava-ultra enable` again."
        )
    problems = llava_seams.check(folder)
    if problems:
        raise llava_seams.UnknownLlava("This LLaVA is not known; nothing was enabled. " + "; ".join(problems))
    path = pth_path()
    temporary = path.with_suffix(".tmp")
    temporary.write_text(PTH_LINE, encoding="utf-8")
    os.replace(temporary, path)
    return path


def disable() -> bool:
    """Remove the line that `enable` wrote; returns whether there was one."""
    path = pth_path()
    existed = path.exists()
    path.unlink(missing_ok=True)
    return existed


def is_patched(folder: Path) -> bool:
    """Whether this LLaVA's ``__init__.py`` carries the line of ``patches/``."""
    init = folder / "__init__.py"
    return init.is_file() and PATCH_MARK in init.read_text(encoding="utf-8")
