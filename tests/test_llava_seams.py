"""The seams fit LLaVA as it is, and every way in which one could stop fitting is named before anything is bound."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from llava_ultra_ext import llava_seams
from llava_ultra_ext.llava_seams import SEAMS, Seam

REPOSITORY = Path(__file__).resolve().parents[1]
INSTALLED = llava_seams.llava_folder()
pytestmark = pytest.mark.skipif(INSTALLED is None, reason="no llava package in this environment")
WITH_PARAMETERS = [seam for seam in SEAMS if seam.parameters is not None]
titles = {"ids": lambda seam: seam.title}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the installed llava package that may be broken."""
    assert INSTALLED is not None
    shutil.copytree(INSTALLED, tmp_path / "llava", ignore=shutil.ignore_patterns("__pycache__", "examples"))
    return tmp_path / "llava"


def rewrite(folder: Path, pattern: str, new: str) -> int:
    changed = 0
    for path in folder.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        found, count = re.subn(pattern, new, text)
        if count:
            path.write_text(found, encoding="utf-8")
            changed += count
    return changed


def test_every_seam_fits_the_installed_llava() -> None:
    assert INSTALLED is not None
    assert llava_seams.check(INSTALLED) == []
    assert llava_seams.known_as(INSTALLED) in llava_seams.KNOWN_STATES.values()


@pytest.mark.skipif("LLAVA_CHECKOUT" not in os.environ, reason="LLAVA_CHECKOUT does not name a checkout of LLaVA's git")
def test_every_seam_fits_the_git_head() -> None:
    folder = Path(os.environ["LLAVA_CHECKOUT"]) / "llava"
    assert llava_seams.check(folder) == []
    assert llava_seams.known_as(folder) == "git head with the version string 1.2.2.post1"


@pytest.mark.parametrize("seam", WITH_PARAMETERS, **titles)
def test_a_changed_signature_is_reported_by_name(copy: Path, seam: Seam) -> None:
    name = seam.name.split(".")[-1]
    assert seam.parameters is not None
    first = re.escape(seam.parameters[0])  # a new one goes before it
    assert rewrite(copy, rf"(def {name}\(\s*)({first}\b)", r"\1surprise, \2")
    (problem,) = [p for p in llava_seams.check(copy) if p.startswith(f"{seam.title}: expected parameters")]
    assert "'surprise'" in problem


@pytest.mark.parametrize("seam", SEAMS, **titles)
def test_a_removed_name_is_reported_by_name(copy: Path, seam: Seam) -> None:
    name = seam.name.split(".")[-1]
    stops = rf"(?m)(?<=def ){name}\b|(?<=class ){name}\b|^{name}(?= =)|(?<=import ){name}\b|(?<=, ){name}(?=[,\n])"
    assert rewrite(copy, stops, f"was_{name}")
    assert [p for p in llava_seams.check(copy) if p.startswith(f"{seam.title}: no such name")]


@pytest.mark.parametrize("module", sorted({seam.module for seam in SEAMS}))
def test_a_removed_file_is_reported_with_every_name_in_it(copy: Path, module: str) -> None:
    path = copy.parent / (module.replace(".", "/") + ".py")
    path.unlink()
    problems = llava_seams.check(copy)
    for seam in SEAMS:
        if seam.module == module:
            assert f"{seam.title}: {path} does not exist" in problems


def test_every_seam_says_why_and_none_is_listed_twice() -> None:
    assert all(seam.why for seam in SEAMS)
    assert len({seam.title for seam in SEAMS}) == len(SEAMS)


def test_importing_the_package_changes_nothing_and_loads_neither_torch_nor_llava() -> None:
    code = """
import sys
before = list(sys.meta_path)
import llava_ultra_ext, llava_ultra_ext.llava_seams as s, llava_ultra_ext.activate, llava_ultra_ext.doctor
import llava_ultra_ext.cli, llava_ultra_ext.arguments, llava_ultra_ext.conversation
s.check(s.llava_folder())
assert sys.meta_path == before
print(sorted(m for m in sys.modules if m.split('.')[0] in ('torch', 'llava', 'transformers', 'numpy', 'PIL')))
"""
    environment = {**os.environ, "ULTRA_EXT": "off", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class TestBind:
    """With hosts that look like LLaVA's modules; the real ones are bound in `test_activate`."""

    @pytest.fixture(autouse=True)
    def own_originals(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(llava_seams, "_bound", {})

    @pytest.fixture
    def builder(self) -> types.ModuleType:
        host = types.ModuleType("llava.model.builder")
        host.load_pretrained_model = lambda *args, **kwargs: ("stock", args, kwargs)
        host.LlavaLlamaForCausalLM = type("LlavaLlamaForCausalLM", (), {"mark": "stock"})
        host.LlavaMistralForCausalLM = type("LlavaMistralForCausalLM", (), {})
        return host

    def test_bind_and_undo_are_a_round_trip(self, builder: types.ModuleType) -> None:
        stock = dict(vars(builder))
        bound = llava_seams.bind(builder)
        assert sorted(bound) == sorted(
            f"llava.model.builder:{name}"
            for name in ("LlavaLlamaForCausalLM", "LlavaMistralForCausalLM", "load_pretrained_model")
        )
        assert all(vars(builder)[title.split(":")[1]] is not stock[title.split(":")[1]] for title in bound)
        assert builder.LlavaLlamaForCausalLM.mark == "stock"
        llava_seams.undo()
        assert dict(vars(builder)) == stock
        llava_seams.undo()
        assert dict(vars(builder)) == stock

    def test_binding_a_second_time_wraps_nothing_twice(self, builder: types.ModuleType) -> None:
        llava_seams.bind(builder)
        once = dict(vars(builder))
        assert llava_seams.bind(builder) == []
        assert dict(vars(builder)) == once

    def test_a_program_that_runs_as_main_is_bound_under_its_own_name(self, builder: types.ModuleType) -> None:
        builder.__name__ = "__main__"
        assert llava_seams.bind(builder) == []
        assert len(llava_seams.bind(builder, "llava.model.builder")) == 3

    def test_another_vision_tower_gets_llavas_own_objects(self) -> None:
        host = types.ModuleType("llava.model.llava_arch")
        host.build_vision_tower = lambda config, **kwargs: ("tower", config, kwargs)
        host.build_vision_projector = lambda config, delay_load=False, **kwargs: ("projector", config, delay_load)
        llava_seams.bind(host)
        config = types.SimpleNamespace(mm_vision_tower="openai/clip-vit-large-patch14-336")
        assert host.build_vision_tower(config, delay_load=True) == ("tower", config, {"delay_load": True})
        assert host.build_vision_projector(config, True) == ("projector", config, True)

    def test_the_chinese_templates_join_llavas(self) -> None:
        conversation = pytest.importorskip("llava.conversation")
        host = types.ModuleType("llava.conversation")
        host.Conversation, host.SeparatorStyle = conversation.Conversation, conversation.SeparatorStyle
        host.conv_templates = {"v1": "stock"}
        llava_seams.bind(host)
        assert set(host.conv_templates) == {"v1", "ultra_v1_zh", "ultra_llama2_zh", "ultra_chatml_zh", "ultra_plain_zh"}
        assert host.conv_templates["v1"] == "stock"
