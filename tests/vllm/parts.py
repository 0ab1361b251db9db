"""A memory with partitions that wait for their texts, and learners of every backend."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks import _vllm_cpu
from benchmarks._memory import TableCatalog
from liber_feast.behavior import check_behaviors
from liber_feast.budget import Budget, CallOutcome, Prices
from liber_feast.condition import CountCondition
from liber_feast.interest import Progress, WaveCounts, learn
from liber_feast.llm.chat import ChatBackend, ChatCall, ChatResult
from liber_feast.llm.chat_learner import ChatLearner
from liber_feast.llm.rate_limit import RateLimits
from liber_feast.materialize import utc_microseconds
from liber_feast.memory import Memory
from liber_feast.memory.ledger import MemoryLedger
from liber_feast.memory.schema import metadata, texts
from liber_feast.prompt import Message, load_prompt
from liber_feast.waves import MemoryWaves
from tests.feature_repo_kit import SEALED_COUNT, SHIFT_COUNT, SIZE, small_data_set
from tests.memory_parts import no_progress

CONTEXT_TOKENS, CHUNK_SIZE, MAX_OUTPUT_TOKENS = 1024, 4, 64
TEXT_COUNT = SEALED_COUNT + SHIFT_COUNT
PROMPT = load_prompt("movielens")


class OpenForAll:
    """A backend that other tests use too: learners leave it open."""

    def __init__(self, backend: ChatBackend) -> None:
        self._backend = backend
        self.max_in_flight, self.max_output_tokens = backend.max_in_flight, backend.max_output_tokens
        self.context_tokens = backend.context_tokens

    def check(self) -> bool:
        return self._backend.check()

    def count_tokens(self, messages: list[Message]) -> int:
        return self._backend.count_tokens(messages)

    def most_tokens(self, messages: list[Message]) -> int:
        return self._backend.most_tokens(messages)

    def submit(self, calls: list[ChatCall]) -> None:
        self._backend.submit(calls)

    def collect(self, *, timeout_s: float | None) -> list[ChatResult]:
        return list(self._backend.collect(timeout_s=timeout_s))

    def close(self) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class Work:
    """A memory with 16 partitions of four behaviors, which want 16 summaries and 12 shifts."""

    memory: Memory

    def learn(
        self,
        open_backend: Callable[[], ChatBackend],
        *,
        model: str = "tiny",
        progress: Progress = no_progress,
        patience_s: float = 60.0,
    ) -> WaveCounts:
        """Run both waves, failed partitions included."""
        ledger = MemoryLedger(
            self.memory,
            budget=Budget(),
            prices=Prices(),
            model=model,
            prompt_version=PROMPT.version,
            clock=utc_microseconds,
        )
        learner = ChatLearner(
            prompt=PROMPT,
            model=model,
            open_backend=open_backend,
            ledger=ledger,
            rates=RateLimits(),
            prices=Prices(),
            max_attempts=2,
            patience_s=patience_s,
        )
        waves = MemoryWaves(
            memory=self.memory,
            catalog=TableCatalog(small_data_set()),
            learner=learner,
            like_above=3.0,
            clock=utc_microseconds,
            with_failed=True,
        )
        try:
            return learn(learner, waves, progress=progress)
        finally:
            learner.close()

    def texts(self) -> dict[tuple[str, int, int], str]:
        """Return every text by stage, user and partition; none is there twice."""
        columns = (texts.c.stage, texts.c.user_key, texts.c.partition_index, texts.c.text)
        with self.memory.reading() as connection:
            rows = [tuple(row) for row in connection.execute(sa.select(*columns))]
        found = {(stage, user, index): text for stage, user, index, text in rows}
        assert len(found) == len(rows)
        return found

    def answered_count(self) -> int:
        """Return how many calls the ledger has whose answer was kept."""
        calls = metadata.tables["calls"]
        with self.memory.reading() as connection:
            counted = sa.select(sa.func.count()).where(calls.c.outcome == CallOutcome.ANSWERED)
            return int(connection.scalar(counted) or 0)


def new_work(folder: Path) -> Work:
    folder.mkdir(parents=True, exist_ok=True)
    data_set = small_data_set()
    memory = Memory.open("sqlite:///memory.db", base=folder)
    checked = check_behaviors(data_set.behaviors, scale=data_set.scale, now=datetime.now(UTC))
    memory.append(checked.table, condition=CountCondition(SIZE))
    return Work(memory=memory)


def messages_of(text: str) -> list[Message]:
    return [{"role": "system", "content": PROMPT.system}, {"role": "user", "content": f"Films:\n{text}"}]


def calls_of(count: int) -> list[ChatCall]:
    """Return calls that share their first part and end differently."""
    return [ChatCall(call_id=number, messages=messages_of(f"The {number} Archives " * 9)) for number in range(count)]


def ask(backend: ChatBackend, calls: list[ChatCall]) -> list[ChatResult]:
    """Return the result of every call, in the order of the calls."""
    backend.submit(calls)
    results: dict[int, ChatResult] = {}
    while len(results) < len(calls):
        arrived = backend.collect(timeout_s=60.0)
        assert arrived, "no answer within a minute"
        results |= {result.call_id: result for result in arrived}
    assert list(backend.collect(timeout_s=0.0)) == []
    return [results[call.call_id] for call in calls]


def open_engine(model: Path | str, **keys: Any) -> ChatBackend:
    """Open the model in this process; `keys` are arguments of the backend."""
    from liber_feast.llm.vllm import VllmBackend  # noqa: PLC0415 (the tests are collected where it is not installed)

    arguments: dict[str, Any] = {"dtype": "float32", "max_model_len": CONTEXT_TOKENS, "tensor_parallel_size": 1}
    arguments |= {"engine": _vllm_cpu.ENGINE, "chunk_size": CHUNK_SIZE, "temperature": 0.0}
    arguments |= {"max_output_tokens": MAX_OUTPUT_TOKENS, "sampling": {}}
    return VllmBackend(model=str(model), **{**arguments, **keys})
