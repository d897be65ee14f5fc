"""scripts/environment.sh with an interpreter that only pretends: which Python, when it installs, when it reuses.

And the lock itself, against the environment that the tests run in.
"""

import importlib.metadata
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))

PRETENDER = """#!/bin/bash
case "$*" in
    *python_version*) echo {version} ;;
    "-c import ensurepip, venv") exit {no_venv} ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && touch "$3/bin/activate" ;;
    "-m pip install "*) echo "$*" >>"$PIP_CALLS"
        case "$*" in *"${{PIP_FAILS:-nothing}}"*) echo "pip: no route to anywhere"; exit 1 ;; esac ;;
esac
"""


@pytest.fixture
def project(tmp_path):
    """A project with the real script, a lock of one package, and a bin/ of interpreters that pretend."""
    folder = tmp_path / "project"
    for name in ("scripts", "requirements", "bin"):
        (folder / name).mkdir(parents=True)
    shutil.copy(ROOT / "scripts/environment.sh", folder / "scripts")
    (folder / "requirements/cpu.lock").write_text("# none==0\nsetuptools==1\nwheel==1\npackaging==1\n")
    (folder / "setup.py").write_text("")
    (folder / "pyproject.toml").write_text("")
    for tool in ("python3", "python3.10", "python3.11", "python3.12"):
        shim(folder, tool)
    return folder


def shim(project, name):
    """A version manager's stand-in for a version that is not active: it is there and does not run."""
    interpreter(project, name, text="#!/bin/bash\necho not active >&2\nexit 127\n")


def interpreter(project, name, version="3.11.7", no_venv=0, text=None):
    path = project / "bin" / name
    path.write_text(text or PRETENDER.format(version=version, no_venv=no_venv))
    path.chmod(0o755)


def environment(project, script="bash scripts/environment.sh", **variables):
    """Run it; returns the finished process and what pip was asked for."""
    calls = project / "pip-calls"
    calls.write_text("")
    path = f"{project / 'bin'}:/usr/bin:/bin"
    variables = {"PATH": path, "HOME": str(project), "PIP_CALLS": str(calls), **variables}
    done = subprocess.run(
        ["bash", "-c", script], cwd=project, env=variables, capture_output=True, text=True, timeout=60
    )
    asked = [line.removeprefix("-m pip install --no-build-isolation ") for line in calls.read_text().splitlines()]
    return done, asked


FULL = [
    "packaging==1 setuptools==1 wheel==1",
    "-r requirements/cpu.lock",
    "--no-deps llava-torch==1.2.2.post1",
    "--no-deps --editable .",
]


def test_installs_once_then_reuses(project):
    interpreter(project, "python3.11")
    done, asked = environment(project)
    assert done.returncode == 0, done.stderr
    assert asked == FULL
    assert "installing 3 packages" in done.stdout and "Python 3.11.7" in done.stdout

    for _ in range(2):
        done, asked = environment(project)
        assert (done.returncode, asked) == (0, [])
        assert done.stdout == f"environment: reusing {project}/.venv\n"


def test_sourcing_activates(project):
    interpreter(project, "python3.11")
    environment(project)
    (project / ".venv/bin/activate").write_text(f"VIRTUAL_ENV={project}/.venv\nACTIVE=yes\n")
    script = "set -eu; cd /; . $HOME/scripts/environment.sh; echo $ACTIVE $TORCH_EXTENSIONS_DIR"
    done, _ = environment(project, script)
    assert done.stdout.splitlines()[-1] == f"yes {project}/.venv/torch_extensions"


def test_sourcing_stops_a_careful_script_but_not_the_shell(project):
    done, _ = environment(project, "set -e; . scripts/environment.sh; echo went on")
    assert done.returncode == 1 and "went on" not in done.stdout
    done, _ = environment(project, ". scripts/environment.sh; echo still here")
    assert done.stdout == "still here\n"


@pytest.mark.parametrize("change", ["lock", "moved", "python"])
def test_installs_anew_when_something_changed(project, change):
    interpreter(project, "python3.11")
    environment(project)
    variables = {}
    if change == "lock":
        with open(project / "requirements/cpu.lock", "a") as lock:
            lock.write("more==1\n")
    if change == "moved":
        project = project.rename(project.with_name("elsewhere"))
    if change == "python":
        interpreter(project, "python3.12", version="3.12.1")
        variables["PYTHON"] = "python3.12"
    done, asked = environment(project, **variables)
    assert (done.returncode, asked) == (0, FULL)


def test_changed_setup_installs_only_the_project(project):
    interpreter(project, "python3.11")
    environment(project)
    (project / "setup.py").write_text("# another entry point\n")
    assert environment(project)[1] == ["--no-deps --editable ."]
    assert environment(project)[1] == []


@pytest.mark.parametrize("fails", ["-r requirements", "llava-torch", "--editable"])
def test_interrupted_install_is_done_again(project, fails):
    interpreter(project, "python3.11")
    done, _ = environment(project, PIP_FAILS=fails)
    assert done.returncode == 1
    assert "pip: no route to anywhere" in done.stderr and "pip could not install" in done.stderr.splitlines()[-1]
    assert (project / ".venv/.lock-hash").exists() == (fails == "--editable")
    done, asked = environment(project)
    assert (done.returncode, asked) == (0, FULL[-1:] if fails == "--editable" else FULL)


@pytest.mark.parametrize("version", ["3.9.18", "3.13.0", "2.7.18"])
def test_other_pythons_stop_with_one_line(project, version):
    interpreter(project, "other", version=version)
    done, asked = environment(project, PYTHON="other")
    assert (done.returncode, asked, done.stdout) == (1, [], "")
    assert done.stderr == (
        f"environment: needs Python 3.10, 3.11 or 3.12, found other: {version}; set PYTHON=/path/to/python3.11\n"
    )
    assert not (project / ".venv").exists()


def test_interpreters_that_do_not_run_or_have_no_venv_are_passed_over(project):
    interpreter(project, "python3.12", version="3.12.1", no_venv=1)
    interpreter(project, "python3", version="3.13.0")
    done, _ = environment(project)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "python3.11: does not run" in done.stderr and "python3: 3.13.0" in done.stderr
    assert "python3.12: 3.12.1 without venv (Debian: install python3-venv)" in done.stderr

    interpreter(project, "python3.10", version="3.10.13")
    done, _ = environment(project)
    assert done.returncode == 0 and "Python 3.10.13" in done.stdout


def test_does_not_delete_an_environment_of_somebody_else(project):
    interpreter(project, "python3.11")
    (project / ".venv").mkdir()
    (project / ".venv/mine").write_text("")
    done, asked = environment(project)
    assert (done.returncode, asked) == (1, [])
    assert "was not made by this script" in done.stderr
    assert (project / ".venv/mine").exists()


def pins(lock):
    lines = (line.strip() for line in lock.read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_locks_pin_everything_to_one_version():
    assert [lock.name for lock in LOCKS] == ["cpu.lock", "cuda.lock"]
    for lock in LOCKS:
        found = pins(lock)
        assert len(found) > 80
        assert [str(pin) for pin in found if not re.fullmatch(r"==[\w.]+", str(pin.specifier)) or pin.url] == []
        names = [pin.name.lower().replace("_", "-") for pin in found]
        assert len(set(names)) == len(names)
        versions = {pin.name: str(pin.specifier) for pin in found}
        assert versions["transformers"] == "==4.37.2" and versions["tokenizers"] == "==0.15.1"


def test_this_environment_is_the_lock():
    if not (Path(sys.prefix) / ".lock-hash").exists() or "cuda" in os.environ.get("ULTRA_LOCK", ""):
        pytest.skip("this Python environment was not made by scripts/environment.sh from cpu.lock")
    wanted = [pin for pin in pins(ROOT / "requirements/cpu.lock") if pin.marker is None or pin.marker.evaluate()]
    found = {pin.name: importlib.metadata.version(pin.name).split("+")[0] for pin in wanted}
    assert found == {pin.name: str(pin.specifier).removeprefix("==") for pin in wanted}
    assert importlib.metadata.version("llava-torch") == "1.2.2.post1"


def test_base_install_moves_nothing_of_llavas_environment(monkeypatch):
    setuptools = pytest.importorskip("setuptools")
    given = {}
    monkeypatch.setattr(setuptools, "setup", lambda **keywords: given.update(keywords))
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    base = {Requirement(line).name for line in given["install_requires"]}
    assert not base & {"torch", "transformers", "tokenizers", "accelerate", "peft", "deepspeed", "llava-torch", "llava"}
    assert all(not Requirement(line).specifier for line in given["install_requires"])
    assert set(given["extras_require"]) >= {"llava", "llava-git", "train", "sam", "flash", "eval", "dev"}
    assert given["extras_require"]["llava"] == ["llava-torch==1.2.2.post1"]
    assert "llava_ultra_ext" in given["packages"] and not any(name.startswith("tests") for name in given["packages"])


def test_pre_commit_needs_no_network():
    yaml = pytest.importorskip("yaml")
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    hooks = [hook for repository in repositories for hook in repository["hooks"]]
    assert {repository["repo"] for repository in repositories} == {"local"}
    assert {hook["language"] for hook in hooks} == {"system"}
    assert {hook["id"] for hook in hooks} == {"ruff", "mypy", "check-added-large-files", "detect-private-key"}
