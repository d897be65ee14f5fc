"""Activation in real processes: a throw-away environment, LLaVA as installed, patched, and changed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from llava_ultra_ext import activate, llava_seams

REPOSITORY = Path(__file__).resolve().parents[1]
INSTALLED = llava_seams.llava_folder()
pytestmark = pytest.mark.skipif(INSTALLED is None, reason="no llava package in this environment")


@dataclass(frozen=True)
class Environment:
    """A Python environment of its own, in which the libraries of this one can be imported (but no .pth runs)."""

    folder: Path

    @property
    def line(self) -> Path:
        return next(self.folder.glob("**/site-packages")) / activate.PTH_NAME

    def run(self, *arguments: str, llava: Path | None = None, package: bool = True, **variables: str):
        assert INSTALLED is not None
        paths = [str(llava)] if llava else []
        paths += [str(REPOSITORY)] if package else []
        paths += [str(INSTALLED.parent), sysconfig.get_paths()["purelib"]]
        inherited = {name: value for name, value in os.environ.items() if name not in ("ULTRA_EXT", "VIRTUAL_ENV")}
        environment = {**inherited, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **variables}
        python = self.folder / "bin" / "python"
        command = [str(python), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=self.folder)

    def ask(self, code: str, *argv: str, **options: object):
        """What a program prints as JSON in its last line."""
        done = self.run("-c", code, *argv, **options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def command(self, *arguments: str, **options: object):
        return self.run("-m", "llava_ultra_ext.cli", *arguments, **options)


def patch_lines() -> str:
    """What `patches/` adds to LLaVA's `__init__.py`."""
    patch = (REPOSITORY / "patches" / "llava_init.patch").read_text(encoding="utf-8")
    return "\n".join(re.findall(r"(?m)^\+(?!\+)(.*)$", patch)) + "\n"


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    if os.name == "nt":
        pytest.skip("the layout of a POSIX environment is assumed")
    venv.create(tmp_path / "environment", with_pip=False, symlinks=True)
    return Environment(tmp_path / "environment")


@pytest.fixture
def copy(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder that holds a copy of LLaVA with some text replaced."""

    def make(module: str = "", old: str = "", new: str = "", patched: bool = False) -> Path:
        assert INSTALLED is not None
        root = tmp_path / "checkout"
        shutil.copytree(INSTALLED, root / "llava", ignore=shutil.ignore_patterns("__pycache__", "examples"))
        if module:
            path = root / module
            text = path.read_text(encoding="utf-8")
            assert old in text
            path.write_text(text.replace(old, new), encoding="utf-8")
        if patched:
            init = root / "llava" / "__init__.py"
            init.write_text(patch_lines() + init.read_text(encoding="utf-8"), encoding="utf-8")
        return root

    return make


STATE = """
import json, sys
from llava_ultra_ext import activate
loaded = sorted(name for name in sys.modules if name in ("torch", "transformers", "llava"))
print(json.dumps([activate.is_armed(), loaded]))
"""
BOUND = """
import json, logging, sys
logging.basicConfig()
import llava.model.builder as builder, llava.model.llava_arch as arch
module = lambda thing: getattr(thing, "__module__", None) or type(thing).__module__
print(json.dumps([type(builder.LlavaLlamaForCausalLM).__name__ != "ModelDispatch",
                  module(builder.load_pretrained_model), module(arch.build_vision_tower)]))
"""
STOCK = [True, "llava.model.builder", "llava.model.multimodal_encoder.builder"]
OURS = [False, "llava_ultra_ext.llava_seams", "llava_ultra_ext.llava_seams"]


def test_enable_and_disable_write_and_remove_one_line(environment: Environment) -> None:
    assert environment.ask(STATE) == [False, []]
    done = environment.command("enable")
    assert done.returncode == 0 and str(environment.line) in done.stdout
    assert environment.line.read_text(encoding="utf-8") == activate.PTH_LINE
    assert activate.PTH_LINE.count("\n") == 1
    assert environment.ask(STATE) == [True, []], "armed at start, and nothing is imported before llava is"
    assert environment.ask(STATE, ULTRA_EXT="off") == [False, []]
    assert environment.command("enable").returncode == 0, "a second time is the same"
    assert environment.line.read_text(encoding="utf-8") == activate.PTH_LINE
    assert not list(environment.line.parent.glob("*.tmp"))
    assert "doctor: ready" in environment.command("doctor").stdout
    assert "LLaVA is stock again" in environment.command("disable").stdout
    assert not environment.line.exists()
    assert environment.ask(STATE) == [False, []]
    assert "nothing to remove" in environment.command("disable").stdout
    assert "`llava-ultra enable`" in environment.command("doctor").stdout


def test_the_line_is_silent_after_an_uninstall(environment: Environment) -> None:
    environment.line.write_text(activate.PTH_LINE, encoding="utf-8")
    done = environment.run("-c", "print('fine')", package=False)
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_enabled_binds_the_installed_llava(environment: Environment) -> None:
    environment.line.write_text(activate.PTH_LINE, encoding="utf-8")
    assert environment.ask(BOUND) == OURS


def test_a_patched_checkout_binds_without_the_line(environment: Environment, copy: Callable[..., Path]) -> None:
    root = copy(patched=True)
    assert activate.is_patched(root / "llava")
    assert environment.ask(BOUND, llava=root) == OURS
    assert "llava_ultra_ext: patched" in environment.command("doctor", llava=root).stdout
    done = environment.command("disable", llava=root)
    assert "still carries the patch" in done.stdout


def test_a_patched_checkout_works_without_this_package(environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava" / "__init__.py").write_text(patch_lines() + "print('fine')\n", encoding="utf-8")
    done = environment.run("-c", "import llava", llava=tmp_path, package=False)
    assert (done.stdout, done.stderr) == ("fine\n", "")


RENAMED = ("train/train.py", "def train(attn_implementation=None", "def train(kernel=None")


@pytest.mark.parametrize("way", ["enabled", "patched"])
def test_an_unknown_llava_stays_stock_with_a_warning(
    environment: Environment, copy: Callable[..., Path], way: str
) -> None:
    root = copy("llava/" + RENAMED[0], *RENAMED[1:], patched=way == "patched")
    if way == "enabled":
        environment.line.write_text(activate.PTH_LINE, encoding="utf-8")
    done = environment.run("-c", BOUND, llava=root)
    assert json.loads(done.stdout.splitlines()[-1]) == STOCK
    assert "changes nothing in it" in done.stderr
    assert "llava.train.train:train: expected parameters ('attn_implementation',), found ('kernel',)" in done.stderr


@pytest.mark.parametrize("way", ["enabled", "patched"])
@pytest.mark.parametrize("tower", ["sam_clip_fused", "fused:clip=a,sam=b"])
def test_an_unknown_llava_refuses_a_run_of_ours(
    environment: Environment, copy: Callable[..., Path], way: str, tower: str
) -> None:
    root = copy("llava/" + RENAMED[0], *RENAMED[1:], patched=way == "patched")
    if way == "enabled":
        environment.line.write_text(activate.PTH_LINE, encoding="utf-8")
    done = environment.run("-c", "import llava.train.train", "--vision_tower", tower, llava=root)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode != 0 and "UnknownLlava" in last and "llava.train.train:train" in last, done.stderr


def test_enable_refuses_what_it_does_not_know_and_writes_nothing(
    environment: Environment, copy: Callable[..., Path]
) -> None:
    root = copy("llava/" + RENAMED[0], *RENAMED[1:])
    done = environment.command("enable", llava=root)
    assert done.returncode == 1 and "nothing was enabled. llava.train.train:train" in done.stderr
    assert not environment.line.exists()
    assert environment.command("doctor", llava=root).returncode == 1


def test_enable_without_llava_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(llava_seams, "llava_folder", lambda: None)
    monkeypatch.setattr(activate, "pth_path", lambda: tmp_path / activate.PTH_NAME)
    with pytest.raises(llava_seams.UnknownLlava, match="No llava package in this environment"):
        activate.enable()
    assert not list(tmp_path.iterdir())


def test_arm_and_disarm_after_llava_was_imported(environment: Environment) -> None:
    """Real modules, in one process: everything is bound late, once, and given back exactly."""
    code = """
import importlib, json, os
import llava.model.builder, llava.train.train
from llava_ultra_ext import activate, llava_seams
hosts = {name: importlib.import_module(name) for name in
         ("llava.conversation", "llava.model.llava_arch", "llava.model.builder", "llava.train.train")}
seams = [seam for seam in llava_seams.SEAMS if seam.module in hosts and seam.replace]
look = lambda: [getattr(hosts[seam.module], seam.name) for seam in seams]
stock = look()
same = lambda left, right: [one is other for one, other in zip(left, right)]
os.environ["ULTRA_EXT"] = "off"
facts = {"off": [activate.arm(), activate.is_armed(), all(same(stock, look()))]}
del os.environ["ULTRA_EXT"]
facts["armed"] = [activate.arm(), activate.is_armed(), any(same(stock, look()))]
ours = look()
activate.arm()
llava_seams.bind(hosts["llava.model.builder"])
facts["again"] = all(same(ours, look()))
importlib.reload(hosts["llava.model.builder"])
facts["reloaded"] = hosts["llava.model.builder"].load_pretrained_model.__module__
activate.disarm()
facts["disarmed"] = [activate.is_armed(), [seam.title for seam, back in zip(seams, same(stock, look())) if not back]]
activate.arm()
facts["rearmed"] = any(same(stock, look()))
facts["seams"] = len(seams)
print(json.dumps(facts))
"""
    facts = environment.ask(code)
    reloaded = {"LlavaLlamaForCausalLM", "load_pretrained_model"}
    assert facts.pop("seams") == 7
    given_back = facts["disarmed"].pop()
    assert facts == {
        "off": [False, False, True],
        "armed": [True, True, False],
        "again": True,
        "reloaded": "llava_ultra_ext.llava_seams",
        "disarmed": [False],
        "rearmed": False,
    }
    # The reload made new functions of LLaVA; everything else is the very object of before.
    assert {title.split(":")[1] for title in given_back} <= reloaded


STOCK_RUN = """
import json, sys, torch
from llava_ultra_ext import activate
torch.set_num_threads(1)
from llava.train.train import train
torch.manual_seed(0)  # LLaVA seeds after it has drawn the projector's weights
train()
from llava.mm_utils import tokenizer_image_token
from llava.model.builder import load_pretrained_model
out = sys.argv[sys.argv.index("--output_dir") + 1]
tokenizer, model, _, _ = load_pretrained_model(out, None, "llava-stock", device="cpu")
ids = tokenizer_image_token("<image>\\n请描述", tokenizer, -200, return_tensors="pt")[None]
pixels = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32).to(model.dtype)
tokens = model.generate(ids, images=pixels, do_sample=False, max_new_tokens=12, eos_token_id=-1, pad_token_id=0)
state = json.load(open(out + "/trainer_state.json"))
losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
weights = {name: value.double().sum().item() for name, value in model.state_dict().items()}
print(json.dumps([activate.is_armed(), losses, tokens.tolist(), weights, type(model).__name__]))
"""


def test_a_stock_clip_tower_gives_the_same_losses_and_tokens_on_and_off(
    environment: Environment, tiny_clip: Path, tiny_llama: Path, exam_folder: Path, tmp_path: Path
) -> None:
    records = json.loads((exam_folder / "train.json").read_text(encoding="utf-8"))
    for record in records:  # LLaVA's own loader takes one picture a sample
        if isinstance(record.get("image"), list):
            record["image"] = record["image"][0]
            turn = record["conversations"][0]
            turn["value"] = "<image>\n" + turn["value"].replace("<image>\n", "")
    (tmp_path / "stock.json").write_text(json.dumps(records), encoding="utf-8")
    flags = {
        "model_name_or_path": tiny_llama, "data_path": tmp_path / "stock.json", "image_folder": exam_folder,
        "vision_tower": tiny_clip, "version": "v1", "mm_vision_select_layer": -2, "mm_use_im_patch_token": False,
        "max_steps": 3, "logging_steps": 1, "save_strategy": "no", "per_device_train_batch_size": 2,
        "learning_rate": 1e-3, "model_max_length": 256, "report_to": "none", "use_cpu": True, "lazy_preprocess": True,
    }  # fmt: skip
    environment.line.write_text(activate.PTH_LINE, encoding="utf-8")
    found = {}
    for state in ("on", "off"):
        out = tmp_path / f"llava-{state}"
        argv = [str(text) for name, value in {**flags, "output_dir": out}.items() for text in (f"--{name}", value)]
        variables = {"HF_HUB_OFFLINE": "1", **({"ULTRA_EXT": "off"} if state == "off" else {})}
        found[state] = environment.ask(STOCK_RUN, *argv, **variables)
    assert found["on"].pop(0) is True and found["off"].pop(0) is False
    assert found["on"] == found["off"]
    losses, tokens, weights, kind = found["on"]
    assert len(losses) == 3 and len(set(losses)) == 3 and len(tokens[0]) > 10 and kind == "LlavaLlamaForCausalLM"
    assert any("mm_projector" in name for name in weights)
