"""``llava-ultra serve MODEL …``: controller, workers, API and page on this machine, started and stopped as one.

LLaVA's controller and model_worker run unedited. Whoever reaches them needs no key, so they always listen on loopback;
the API and the page face the users.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import httpx

from llava_ultra_ext import llava_seams
from llava_ultra_ext.serve import web
from llava_ultra_ext.serve.children import Children, Program
from llava_ultra_ext.serve.keys import ApiKeys, check_host
from llava_ultra_ext.serve.prompts import TemplateChoice
from llava_ultra_ext.serve.remote_pictures import AllowedAddresses
from llava_ultra_ext.serve.served_models import Model, served_models

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
PORTS = {"--port": 8000, "--page-port": 7860}
"""Where API and page listen when nothing is said and nobody else listens there; controller and workers take any."""
ASK_SECONDS = 5.0
"""For an answer to "are you ready"; a worker that loads or computes on all processors may be slow to say it."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="llava-ultra serve", description="Controller, workers, API and page on this machine; Ctrl-C stops all."
    )
    add = made.add_argument
    add("models", nargs="+", metavar="MODEL", help="folder that training or merging wrote, or a hub name")
    add("--model-base", action="append", default=[], metavar="BASE", help=(
        "language model of the LoRA and stage 1 folders among them; NAME=BASE for one of them; may be repeated"
    ))  # fmt: skip
    add("--workers", type=int, default=1, metavar="N", help="of each model (default: %(default)s)")
    add("--device", choices=("cpu", "cuda"), help="(default: cuda where there is one)")
    add("--conv-mode", action="append", default=[], metavar="TEMPLATE", help=(
        "prompt template of all models, or TEMPLATE=NAME for one of them; may be repeated"
    ))  # fmt: skip
    add("--host", default=LOOPBACK, help="where API and page listen; not loopback: keys needed (default: %(default)s)")
    for flag, what in (("--port", "of the API"), ("--page-port", "of the page")):
        add(flag, type=int, help=f"{what}; 0: any (default: {PORTS[flag]} where it is free, else any)")
    add("--controller-port", type=int, default=0, help="of LLaVA's controller, on loopback (default: any)")
    add(
        "--api-keys-file",
        type=Path,
        metavar="FILE",
        help="one key a line, without which only /health is answered",
    )
    add("--password-file", type=Path, metavar="FILE", help="its first line; the page then asks for it")
    add(
        "--allow-url", action="append", default=[], metavar="PREFIX", help="the API fetches pictures below this address"
    )
    add("--examples", type=Path, metavar="FOLDER", help="exams to try on the page: each file or folder in it is one")
    add("--no-page", action="store_true", help="API only")
    add("--logs", type=Path, metavar="DIR", help="where logs are kept (default: a folder that is removed at the end)")
    return made


def check(args: argparse.Namespace) -> list[Model]:
    """The models; everything that can be seen to be wrong before a program starts is said here.

    Raises:
        ValueError: what.
    """
    folder = llava_seams.llava_folder()
    if folder is None or llava_seams.check(folder):
        raise ValueError("LLaVA is not installed, or not one that is known; `llava-ultra doctor` says more.")
    if os.environ.get("ULTRA_EXT", "").lower() == "off":
        raise ValueError("ULTRA_EXT=off is set, and LLaVA alone answers for no exam. Unset it.")
    if args.workers < 1:
        raise ValueError(f"--workers {args.workers}: give 1 or more.")
    TemplateChoice.parse(args.conv_mode)
    AllowedAddresses(args.allow_url)
    models = served_models(args.models, args.model_base)
    unknown = {mode.partition("=")[2] for mode in args.conv_mode} - {"", *(model.name for model in models)}
    if unknown:
        names = ", ".join(model.name for model in models)
        raise ValueError(f"--conv-mode …={min(unknown)}: no model of that name. There are: {names}.")
    check_host(args.host, ApiKeys.read(args.api_keys_file))
    if not args.no_page:
        web.check(args)
    return models


def usable_device(wanted: str | None) -> str:
    """`wanted`, or cuda where torch can use it; torch is asked in a process of its own, it would stay in this one.

    Raises:
        ValueError: a GPU is asked for where there is none.
    """
    if wanted == "cpu":
        return wanted
    asked = [sys.executable, "-c", "import torch; raise SystemExit(not torch.cuda.is_available())"]
    found = subprocess.run(asked, capture_output=True, check=False).returncode == 0
    if wanted == "cuda" and not found:
        raise ValueError("--device cuda: no CUDA device is usable here. Use --device cpu, or leave the flag out.")
    return "cuda" if found else "cpu"


def held_port(wanted: int | None = 0, host: str = LOOPBACK, flag: str = "--controller-port") -> socket.socket:
    """A socket that is bound to a port that nobody listens on, and does not listen itself.

    While it is open, Linux gives that port to no outgoing connection, and lets a server listen on it; a port that was
    only looked at is now and then taken before its server starts, or between two starts. Other systems would refuse
    the server: close it before.

    Args:
        wanted: that port; 0: any; None: the flag's usual one, or any where that is taken.
        host: where to listen.
        flag: of the command line.

    Raises:
        ValueError: the port that was asked for is taken, or the address is not this machine's.
    """
    reason = ""
    for port in (PORTS[flag], 0) if wanted is None else (wanted,):
        held = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
        try:
            held.bind((host, port))
            return held
        except (OSError, OverflowError) as error:
            held.close()
            reason = str(getattr(error, "strerror", None) or error)
    raise ValueError(f"{flag} {wanted}, --host {host}: {reason}. Give another one; {flag} 0 takes any that is free.")


class Service:
    """What the command line asked for, as programs.

    Args:
        args: of `parser`, with a device.
        models: to serve.
    """

    def __init__(self, args: argparse.Namespace, models: Sequence[Model]) -> None:
        self._args, self._models, self._held = args, models, list[socket.socket]()
        self.controller = self._address(LOOPBACK, args.controller_port, "--controller-port")
        numbered = [(model, number) for model in models for number in range(1, args.workers + 1)]
        self.workers = {f"worker-{model.name}-{n}": (model, self._address(LOOPBACK)) for model, n in numbered}
        self.api = self._address(args.host, args.port, "--port")
        self.page = "" if args.no_page else self._address(args.host, args.page_port, "--page-port")
        self._client = httpx.Client(trust_env=False, timeout=ASK_SECONDS)  # a proxy would not reach loopback

    def _address(self, host: str, wanted: int | None = 0, flag: str = "--controller-port") -> str:
        held = held_port(wanted, host, flag)
        port = held.getsockname()[1]
        if sys.platform == "linux":
            self._held.append(held)
        else:
            held.close()
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def first(self) -> Program:
        """LLaVA's controller; started again, it is told of the workers, whose own heart beat takes up to 15 s."""
        flags = ["--host", LOOPBACK, "--port", _port(self.controller)]
        ready = self._answers("POST", f"{self.controller}/list_models")
        return Program("controller", "llava.serve.controller", flags, ready, self._env(), self._register)

    def _register(self) -> None:
        for _, address in self.workers.values():
            with contextlib.suppress(httpx.HTTPError):
                about = {"worker_name": address, "check_heart_beat": True}
                self._client.post(f"{self.controller}/register_worker", json=about)

    def others(self) -> Iterator[Program]:
        """Workers, API and page; they need a controller."""
        args = self._args
        for name, (model, address) in self.workers.items():
            flags = ["--host", LOOPBACK, "--port", _port(address), "--worker-address", address]
            flags += ["--controller-address", self.controller, "--device", args.device]
            flags += ["--model-path", model.path, "--model-name", model.name]
            flags += ["--model-base", model.base] if model.base else []
            ready = self._answers("POST", f"{address}/worker_get_status")
            yield Program(name, "llava.serve.model_worker", flags, ready, self._env())
        common = ["--controller-address", self.controller, "--host", args.host, *_each("--conv-mode", args.conv_mode)]
        given = [*_place("--api-keys-file", args.api_keys_file), *_each("--allow-url", args.allow_url)]
        flags = [*common, "--port", _port(self.api), *given]
        yield Program("api", "llava_ultra_ext.serve.openai_api", flags, self._answers("GET", f"{self.api}/health"))
        if self.page:
            given = [*_place("--password-file", args.password_file), *_place("--examples", args.examples)]
            flags = [*common, "--port", _port(self.page), *given]
            yield Program("page", "llava_ultra_ext.serve.web", flags, self._answers("GET", self.page))

    def _env(self) -> dict[str, str]:
        """For LLaVA's programs, which go through a proxy to loopback too, and whose torch takes every processor."""
        local = ",".join(filter(None, [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), LOOPBACK]))
        threads = max(1, (os.cpu_count() or 1) // len(self.workers))
        shared = {} if self._args.device != "cpu" else {"OMP_NUM_THREADS": str(threads), **_given("OMP_NUM_THREADS")}
        return {"no_proxy": local, "NO_PROXY": local, **shared}

    def _answers(self, method: str, address: str) -> Callable[[], bool]:
        def ready() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                return self._client.request(method, address).status_code < 500
            return False

        return ready

    def told(self) -> str:
        """What is served where."""
        count = len(self.workers)
        lines = [f"ready: {count} worker{'s' if count > 1 else ''} on {self._args.device}; Ctrl-C stops everything"]
        lines += [f"  page        {self.page}"] if self.page else []
        lines += [f"  API         {self.api}/v1", f"  controller  {self.controller}"]
        return "\n".join([*lines, *(f"  model       {model.name}" for model in self._models)])


def _each(flag: str, values: Sequence[str]) -> list[str]:
    return [word for value in values for word in (flag, value)]


def _place(flag: str, path: Path | None) -> list[str]:
    """A flag with a path, wherever the program runs."""
    return [] if path is None else [flag, str(path.expanduser().absolute())]


def _given(name: str) -> dict[str, str]:
    return {name: os.environ[name]} if name in os.environ else {}


def _port(address: str) -> str:
    return address.rsplit(":", 1)[1]


def _hear_signals() -> None:
    """Ctrl-C, SIGTERM and SIGHUP end the service; a second one must not stop it from stopping its programs."""
    heard = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as `nohup` asks
        heard.append(signal.SIGHUP)

    def end(number: int, frame: FrameType | None) -> None:
        for other in heard:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in heard:
        signal.signal(number, end)


@contextlib.contextmanager
def _logs(folder: Path | None) -> Iterator[Path]:
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="llava-ultra-serve-") as made:
            yield Path(made)
        return
    folder.mkdir(parents=True, exist_ok=True)
    yield folder.resolve()


def main(argv: list[str] | None = None) -> int:
    """Serve until Ctrl-C, SIGTERM or SIGHUP.

    Raises:
        ValueError: something on the command line; nothing was started.
        StartFailed: a program could not start; all are stopped.
        KeyboardInterrupt: interrupted before all were ready; all are stopped.
    """
    args = parser().parse_args(argv)
    models = check(args)
    args.device = usable_device(args.device)
    _hear_signals()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # says every question whether a program is ready
    with _logs(args.logs) as logs, Children(logs) as children:
        service = Service(args, models)
        logger.info("starting; loading the models takes a while")
        children.start([service.first()])
        children.start(list(service.others()))
        sys.stdout.write(service.told() + "\n")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            children.watch()
        logger.info("stopping")
    return 0
