"""The exam page: ``python -m llava_ultra_ext.serve.web --controller-address http://127.0.0.1:21001``.

Pictures of an exam, a chat about it in Chinese, the frame that the model chose and why. It listens on this machine
alone unless told otherwise, asks for a password then, loads nothing from other hosts and writes nothing to disk.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import logging
import os
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from starlette.types import ASGIApp

from llava_ultra_ext.serve.keys import LEAST_CHARACTERS, hosts_of, is_loopback
from llava_ultra_ext.serve.limits import Limits
from llava_ultra_ext.serve.prompts import TemplateChoice

logger = logging.getLogger(__name__)

PASSWORD_VARIABLE = "ULTRA_PAGE_PASSWORD"
"""An environment variable rather than a flag: every user of a machine can read another one's command line."""

SWEEP_SECONDS = 60.0
"""Between two looks at the age of exams."""

_NEEDED = ("gradio", "fastapi", "uvicorn", "httpx", "pydicom", "scipy")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m llava_ultra_ext.serve.web",
        description="The exam page of LLaVA-Ultra, in front of a controller.",
    )
    add = made.add_argument
    add("--controller-address", default="http://127.0.0.1:21001", help="LLaVA's controller (default: %(default)s)")
    add("--host", default="127.0.0.1", help="where to listen; another address needs a password (default: %(default)s)")
    add("--port", type=int, default=7860, help="(default: %(default)s)")
    add("--conv-mode", action="append", default=[], metavar="TEMPLATE[=MODEL]", help="prompt template; may be repeated")
    add("--password-file", type=Path, metavar="FILE", help=f"its first line; or set {PASSWORD_VARIABLE}")
    add("--examples", type=Path, metavar="FOLDER", help="exams to try: each file or folder in it is one")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until stopped.

    Returns:
        0 after Ctrl-C, 2 where a flag or the installation is wrong; one line says what.
    """
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    args = parser().parse_args(argv)
    try:
        password = check(args)
    except ValueError as error:
        sys.stderr.write(f"page: {error}\n")
        return 2
    # Gradio imports it at every event, only to choose how plots are drawn; it would write a cache of fonts.
    sys.modules.setdefault("matplotlib", None)  # type: ignore[arg-type]
    import uvicorn

    app = create_app(args.controller_address, TemplateChoice.parse(args.conv_mode), password, args.host, args.examples)
    logger.info("the exam page is at http://%s:%d", f"[{args.host}]" if ":" in args.host else args.host, args.port)
    # Access logs would hold the keys of exams.
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning", access_log=False, ws="none",
                timeout_graceful_shutdown=3)  # fmt: skip  # browsers keep a connection for news open
    return 0


def check(args: argparse.Namespace) -> str | None:
    """Everything that can be seen to be wrong before the page starts.

    Returns:
        The password; None: nobody is asked.

    Raises:
        ValueError: what is wrong and what to do.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} not installed. Run: pip install 'llava_ultra_ext[serve]'")
    Limits.from_environment()
    TemplateChoice.parse(args.conv_mode)
    if args.examples is not None and not args.examples.is_dir():
        raise ValueError("--examples: no such folder. Give one that holds exams, each a file or a folder.")
    password = _password(args.password_file)
    if password is None and not is_loopback(args.host):
        raise ValueError(
            f"--host {args.host}: others can reach that address, so a password is needed. Give --password-file FILE "
            f"or set {PASSWORD_VARIABLE}, or leave --host out."
        )
    return password


def _password(file: Path | None) -> str | None:
    if file is None:
        return _long_enough(PASSWORD_VARIABLE, os.environ.get(PASSWORD_VARIABLE, "")) or None
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise ValueError(
            "--password-file: cannot be read. Give a text file whose first line is the password."
        ) from None
    if not lines or not lines[0].strip():
        raise ValueError("--password-file: its first line is empty. Write the password there.")
    return _long_enough("--password-file", lines[0].strip())


def _long_enough(where: str, password: str) -> str:
    if 0 < len(password) < LEAST_CHARACTERS:
        raise ValueError(
            f"{where}: the password is too short. Give {LEAST_CHARACTERS} or more characters, such as "
            "`openssl rand -hex 12` makes."
        )
    return password


def create_app(
    controller: str,
    templates: TemplateChoice | None = None,
    password: str | None = None,
    host: str = "127.0.0.1",
    examples_folder: Path | None = None,
) -> ASGIApp:
    """The page as an ASGI application.

    Args:
        controller: address of LLaVA's controller.
        templates: which models were trained with which template.
        password: that is asked for; None: nobody is asked.
        host: where it will listen.
        examples_folder: exams to try, beside phantoms and pydicom's files.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads these when it is imported
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import gradio as gr
    from fastapi import FastAPI

    from llava_ultra_ext.data.deidentify.pixel_text import rapid_reader
    from llava_ultra_ext.serve.client import ControllerClient
    from llava_ultra_ext.serve.page.examples import examples
    from llava_ultra_ext.serve.page.guard import Guard
    from llava_ultra_ext.serve.page.layout import build, styles, theme
    from llava_ultra_ext.serve.page.routes import ExamRoutes
    from llava_ultra_ext.serve.page.store import ExamStore

    client = ControllerClient(controller, templates)
    store, limits = ExamStore(), Limits.from_environment()

    @contextlib.asynccontextmanager
    async def closing(_: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(store.sweep_every(SWEEP_SECONDS))
        try:
            yield
        finally:
            sweeping.cancel()
            await asyncio.gather(sweeping, return_exceptions=True)
            await client.aclose()

    app = FastAPI(openapi_url=None, lifespan=closing)
    offered = examples(examples_folder, limits)
    ExamRoutes(store, offered, limits, rapid_reader()).add_to(app)
    page = build(client, store, offered.values())
    page.queue(default_concurrency_limit=None, max_size=None)
    app = gr.mount_gradio_app(
        app, page, path="/", theme=theme(), css=styles(), footer_links=[], ssr_mode=False, show_error=False,
        pwa=False, mcp_server=False, enable_monitoring=False,
    )  # fmt: skip
    return Guard(app, password, hosts_of(host))


if __name__ == "__main__":
    raise SystemExit(main())
