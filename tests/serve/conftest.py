"""Servers that the tests of serving share; they start once for each process of the test run."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import llava_servers
import pytest
from api_server import Running, running_api
from llava_servers import Served
from trained import Trained

MODEL = "llava-ultra-tiny-lora"


@pytest.fixture(scope="session")
def served(trained_lora: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """LLaVA's controller and one worker with `trained_lora`. Leave it as it is: kill and register at your own."""
    folder = tmp_path_factory.mktemp("served")
    with (
        llava_servers.controller(folder) as controller,
        llava_servers.worker(controller, trained_lora, MODEL, folder) as worker,
    ):
        yield Served(controller, worker, MODEL, trained_lora)


@pytest.fixture(scope="session")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """LLaVA's controller for workers that die; the models of each test have names of their own."""
    with llava_servers.controller(tmp_path_factory.mktemp("controller")) as address:
        yield address


@pytest.fixture(scope="session")
def api(controller: str) -> Iterator[Running]:
    """An API in front of `controller`."""
    with running_api(controller) as running:
        yield running


@pytest.fixture
def model() -> str:
    """A name that no other test has registered."""
    return f"llava-{uuid.uuid4().hex[:8]}"
