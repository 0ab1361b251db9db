"""The engine in a process of its own, as vLLM starts it by default."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from liber_feast.errors import BackendUnreachable
from liber_feast.llm.chat import ChatAnswer, ChatBackend
from tests.vllm.parts import ask, calls_of, open_engine


@pytest.fixture
def separate(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatBackend]:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    backend = open_engine(model)
    yield backend
    backend.close()


def engine_processes() -> set[psutil.Process]:
    return {child for child in psutil.Process().children(recursive=True) if "EngineCore" in child.name()}


def test_it_answers_and_once_it_is_killed_the_run_ends(separate: ChatBackend) -> None:
    assert all(isinstance(result, ChatAnswer) for result in ask(separate, calls_of(6)))
    (process,) = engine_processes()
    separate.submit(calls_of(6))
    process.kill()
    with pytest.raises(BackendUnreachable, match="^vLLM's engine (is gone|broke down)"):
        while True:
            separate.collect(timeout_s=30.0)
    separate.close()
    assert engine_processes() == set()
