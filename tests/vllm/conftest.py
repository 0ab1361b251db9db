"""The engine and the server of all tests of this folder. They need an environment of their own: `make test-vllm`."""
# ruff: noqa: E402  (the environment variables have to be set before torch is imported)

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import _vllm_cpu

IS_INSTALLED = find_spec("vllm") is not None
if IS_INSTALLED:
    _vllm_cpu.set_environment()

from liber_feast.llm.chat import ChatBackend
from tests.vllm.parts import CONTEXT_TOKENS, open_engine
from tests.vllm.server import VllmServer

OURS_ALONE = pytest.mark.filterwarnings("ignore", "error:::(liber_feast|benchmarks|tests)")
"""Warnings of vLLM and of all that it brings are no errors."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here not in item.path.parents:
            continue
        item.add_marker(OURS_ALONE)
        if not IS_INSTALLED:
            item.add_marker(pytest.mark.skip(reason="needs vLLM: run `make test-vllm`"))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from benchmarks._tiny_model import make_tiny_model  # noqa: PLC0415 (torch)

    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny", repetition_penalty=1.5)


@pytest.fixture(scope="session")
def engine(model: Path) -> Iterator[ChatBackend]:
    backend = open_engine(model)
    yield backend
    backend.close()


@pytest.fixture(scope="session")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    server = VllmServer(model, log=tmp_path_factory.mktemp("server") / "log", context_tokens=CONTEXT_TOKENS)
    server.start()
    yield server
    server.kill()
