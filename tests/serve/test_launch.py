"""`llava-ultra serve`: what it refuses before anything starts, what answers once it is ready, that it ends whole."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from interrupts import hear_ctrl_c
from run_llava import environment
from trained import Trained

from llava_ultra_ext.serve import launch
from llava_ultra_ext.serve.served_models import Model, served_models

PROGRAMS = (
    "llava.serve.controller",
    "llava.serve.model_worker",
    "llava_ultra_ext.serve.openai_api",
    "llava_ultra_ext.serve.web",
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks like a whole model of ours."""
    folder = tmp_path / "llava-ultra-whole"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"ultra_backbone": "LlamaForCausalLM"}))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


class TestRefused:
    """In this process; a program that started would be seen."""

    @pytest.fixture(autouse=True)
    def nothing_starts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("llava")
        monkeypatch.setattr(launch.Children, "start", lambda *_: pytest.fail("something was started"))
        monkeypatch.setattr(launch, "_hear_signals", lambda: None)

    def test_an_address_that_others_reach_without_keys(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("ULTRA_API_KEY", "ULTRA_PAGE_PASSWORD"):
            monkeypatch.delenv(name, raising=False)
        for host in ("0.0.0.0", "::", "192.0.2.1"):
            with pytest.raises(ValueError, match=rf"--host {host} .*--api-keys-file FILE"):
                launch.main([str(model), "--host", host])
        keys = tmp_path / "keys"
        keys.write_text("a-key-of-some-length\n")
        open_to_all = [str(model), "--host", "0.0.0.0", "--api-keys-file", str(keys)]
        with pytest.raises(ValueError, match="--password-file FILE"):
            launch.main(open_to_all)
        keys.write_text("\n")
        with pytest.raises(ValueError, match="holds no key"):
            launch.main([*open_to_all, "--no-page"])

    def test_models_that_could_not_be_served(self, model: Path, tmp_path: Path) -> None:
        other = tmp_path / "other" / model.name
        other.mkdir(parents=True)
        (other / "config.json").write_text("{}")
        lora, stock = tmp_path / "llava-lora", tmp_path / "vicuna"
        for folder, files in ((lora, ("adapter_config.json",)), (stock, ("model.safetensors",))):
            folder.mkdir()
            for name in ("config.json", *files):
                (folder / name).write_text("{}")
        refused = {
            (model, other): "two models would be called llava-ultra-whole",
            (tmp_path / "nowhere",): "MODEL .*nowhere: no such folder",
            (tmp_path,): "no config.json",
            (lora,): "--model-base BASE, or --model-base llava-lora=BASE",
            (stock,): "'llava' in their name",
            (model, "--model-base", f"llava-lora={model}"): "--model-base llava-lora=…: no model of that name",
            (model, "--conv-mode", "ultra_v1_zh=llava-lora"): "--conv-mode …=llava-lora: no model of that name",
            (model, "--conv-mode", "plain"): "no such template",
            (model, "--workers", 0): "give 1 or more",
        }
        for arguments, message in refused.items():
            with pytest.raises(ValueError, match=message):
                launch.main([*map(str, arguments)])

    def test_a_port_that_is_taken(self, model: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(ValueError, match=f"--port {port}, --host 127.0.0.1: Address already in use"):
                launch.main([str(model), "--port", str(port)])


@pytest.mark.skipif(sys.platform != "linux", reason="ports are held on Linux only")
def test_a_port_is_the_services_before_its_program_starts_and_between_two_starts() -> None:
    args = launch.parser().parse_args(["llava", "--device", "cpu", "--port", "0"])
    service = launch.Service(args, [Model("/llava", None)])
    [(_, worker)] = service.workers.values()
    for address in (service.api, service.page, service.controller, worker):
        place = ("127.0.0.1", int(address.rsplit(":", 1)[1]))
        for _ in range(2):
            socket.create_server(place).close()  # as the servers listen
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(place)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_signal_ends_it_and_a_second_one_does_not_stop_the_end(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup, where it stays ignored
        launch._hear_signals()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        launch._hear_signals()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            time.sleep(5)
        for each in before:
            os.kill(os.getpid(), each)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_a_folder_needs_a_base_only_without_weights_of_its_own(model: Path, tmp_path: Path) -> None:
    lora = tmp_path / "llava-lora"
    lora.mkdir()
    for name in ("config.json", "adapter_config.json"):
        (lora / name).write_text("{}")
    served = served_models([str(model), str(lora)], [str(model)])
    assert [(one.name, one.base) for one in served] == [(model.name, None), ("llava-lora", str(model))]
    [named] = served_models([str(lora)], [str(tmp_path), f"llava-lora={model}"])
    assert named.base == str(model)
    (tmp_path / "llava-link").symlink_to(model)
    assert [one.name for one in served_models([str(tmp_path / "llava-link")], [])] == ["llava-link"]


def serve(temporary: Path, *arguments: object) -> subprocess.Popen[str]:
    """The command, on free ports; its logs are in `temporary`, where one that is killed leaves them."""
    command = [sys.executable, "-m", "llava_ultra_ext.cli", "serve", *map(str, arguments), "--device", "cpu"]
    command += ["--port", "0", "--page-port", "0"]
    files = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    env = environment(TMPDIR=str(temporary))
    return subprocess.Popen(command, env=env, preexec_fn=hear_ctrl_c, **files)  # type: ignore[call-overload]


def programs(launcher: subprocess.Popen[str]) -> dict[str, psutil.Process]:
    """Module -> process, of what the launcher started."""
    started = psutil.Process(launcher.pid).children(recursive=True)
    found = {name: one for one in started for name in PROGRAMS if name in one.cmdline()}
    assert len(found) == len(started)
    return found


def until(done: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError, psutil.NoSuchProcess):
            if done():
                return True
        time.sleep(0.2)
    return False


def test_one_command_serves_starts_a_dead_worker_again_and_ends_on_ctrl_c(
    trained_lora: Trained, tmp_path: Path
) -> None:
    pytest.importorskip("gradio", reason="llava_ultra_ext[serve] is not installed")
    name, client = trained_lora.lora.name, httpx.Client(trust_env=False, timeout=20)
    with serve(tmp_path, trained_lora.lora, "--model-base", trained_lora.base) as launcher:
        assert launcher.stdout is not None and launcher.stderr is not None
        told = [launcher.stdout.readline().split() for _ in range(5)]
        assert told[0][:2] == ["ready:", "1"], launcher.stderr.read()
        page, api, controller, model = (line[-1] for line in told[1:])
        assert model == name
        assert [one["id"] for one in client.get(f"{api}/models").json()["data"]] == [name]
        assert client.get(page).status_code == 200
        assert client.post(f"{controller}/list_models").json() == {"models": [name]}

        before = programs(launcher)
        assert sorted(before) == sorted(PROGRAMS)
        heard = {
            entry.laddr.ip for one in before.values() for entry in one.net_connections() if entry.status == "LISTEN"
        }
        assert heard == {"127.0.0.1"}

        before["llava.serve.model_worker"].kill()
        asked = {"model": name, "messages": [{"role": "user", "content": "超声检查前需要空腹吗？"}], "max_tokens": 4}
        assert until(lambda: client.post(f"{api}/chat/completions", json=asked).status_code == 200)
        after = programs(launcher)
        assert after.pop("llava.serve.model_worker") != before.pop("llava.serve.model_worker") and after == before

        started = list(programs(launcher).values())
        [logs] = tmp_path.glob("llava-ultra-serve-*")
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(30) == 0
        assert not any(one.is_running() for one in started) and not logs.exists()
        assert re.search(r"worker-\S+-1 was ended by SIGKILL; it starts again in 1 s", launcher.stderr.read())


def test_a_launcher_that_is_killed_leaves_no_process(model: Path, tmp_path: Path) -> None:
    with serve(tmp_path, model) as launcher:
        assert until(lambda: len(programs(launcher)) > 0)
        started = list(programs(launcher).values())
        launcher.kill()
    gone, alive = psutil.wait_procs(started, timeout=20)
    assert gone and not alive


def test_a_worker_that_cannot_start_is_named_with_its_error(model: Path, tmp_path: Path) -> None:
    with serve(tmp_path, model) as launcher:
        said, errors = launcher.communicate(timeout=240)
    assert launcher.returncode == 1 and said == ""
    assert re.search(r"^llava-ultra serve: worker-llava-ultra-whole-1 ended with exit status 1: \w+: ", errors, re.M)
    assert "Traceback" not in errors
