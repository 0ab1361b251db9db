"""The engine in a process of its own, as vLLM starts it by default."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks import _vllm_cpu
from liber_feast.errors import BackendRefused, BackendUnreachable
from liber_feast.llm.chat import ChatAnswer, ChatBackend
from tests.vllm.parts import ask, calls_of, open_engine


@pytest.fixture(autouse=True)
def _processes(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.envs import disable_envs_cache  # noqa: PLC0415 (the tests are collected where it is not installed)

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    disable_envs_cache()  # an engine of this process turned it on


@pytest.fixture
def separate(model: Path) -> Iterator[ChatBackend]:
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
    for _ in range(2):  # and it stays so
        with pytest.raises(BackendUnreachable, match="^vLLM's engine (is gone|broke down)"):
            while True:
                separate.collect(timeout_s=30.0)
        separate.submit(calls_of(6))
    separate.close()
    assert engine_processes() == set()


def test_a_chat_template_that_takes_no_system_message_is_refused_before_any_call(model: Path) -> None:
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}{{ messages }}"
    )
    backend = open_engine(model, engine={**_vllm_cpu.ENGINE, "chat_template": template})
    with pytest.raises(BackendRefused, match="^The chat template of model .* cannot be used: no system role. Take a"):
        backend.check()
    backend.close()
