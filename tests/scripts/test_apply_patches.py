"""patches/ on copies of the installed LLaVA: there and back, twice each, with and without git metadata."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATCHES = sorted((ROOT / "patches").glob("*.patch"))


def apply(*arguments):
    command = ["bash", str(ROOT / "scripts/apply_patches.sh"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.py")}


def git_init(folder):
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["git", "init", "-q", str(folder)], check=True)


@pytest.fixture(params=["plain folder", "git checkout", "inside another repository"])
def checkout(request, tmp_path):
    """A folder that holds LLaVA's llava/ (its Python files), unpatched."""
    folder = tmp_path / "outer" / "LLaVA"
    if request.param == "git checkout":
        git_init(folder)
    if request.param == "inside another repository":
        git_init(tmp_path / "outer")
    installed = Path(importlib.util.find_spec("llava").submodule_search_locations[0])
    shutil.copytree(installed, folder / "llava", ignore=shutil.ignore_patterns("__pycache__"))
    apply(folder, "--reverse")  # the installed one may carry the patch
    return folder


def test_patches_only_add_and_hold_no_line_of_llava():
    assert [path.name for path in PATCHES] == ["llava_init.patch"]
    for path in PATCHES:
        body = [line for line in path.read_text().splitlines() if not line.startswith(("---", "+++", "@@"))]
        assert body and all(line.startswith("+") for line in body)


def test_there_and_back(checkout):
    before = contents(checkout)
    assert apply(checkout).stdout == "apply_patches: llava_init.patch applied\n"
    patched = contents(checkout)
    changed = [path for path in before if patched[path] != before[path]]
    assert changed == [Path("llava/__init__.py")]
    assert patched[changed[0]].endswith(before[changed[0]])

    again = apply(checkout)
    assert (again.returncode, again.stdout) == (0, "apply_patches: llava_init.patch already applied\n")
    assert contents(checkout) == patched

    assert apply("--reverse", checkout).stdout == "apply_patches: llava_init.patch taken out\n"
    assert contents(checkout) == before
    again = apply(checkout, "--reverse")
    assert (again.returncode, again.stdout) == (0, "apply_patches: llava_init.patch already absent\n")
    assert contents(checkout) == before


def test_doctor_sees_the_patch(checkout):
    from llava_ultra_ext.activate import is_patched

    assert not is_patched(checkout / "llava")
    apply(checkout)
    assert is_patched(checkout / "llava")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: apply_patches.sh <LLaVA checkout>"),
        (["."], "is not a LLaVA checkout"),
        ([".", "--revert"], "unknown option --revert"),
    ],
)
def test_refuses_what_it_cannot_patch(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava/__init__.py").write_text("")
    done = apply(*arguments)
    assert done.returncode == 1 and message in done.stderr
    assert (tmp_path / "llava/__init__.py").read_text() == ""


@pytest.mark.parametrize(
    ("before", "ultra_ext", "armed"),
    [
        ("", "on", True),
        ("", "off", False),
        ("sys.modules['llava_ultra_ext'] = None", "on", False),  # uninstalled: LLaVA works as it did
    ],
)
def test_patched_llava_arms_the_hook_before_its_own_imports(tmp_path, before, ultra_ext, armed):
    package = tmp_path / "llava"
    (package / "model").mkdir(parents=True)
    (package / "model/llava_arch.py").write_text("")
    (package / "__init__.py").write_text(
        "import sys\nARMED = any(type(f).__name__ == '_Hook' for f in sys.meta_path)\n"
    )
    assert apply(tmp_path).returncode == 0
    # Whatever `llava-ultra enable` armed when this Python started is taken away first.
    program = f"""
import sys
sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != '_Hook']
{before}
import llava
print(llava.ARMED)"""
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "ULTRA_EXT": ultra_ext}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"{armed}\n"), done.stderr
