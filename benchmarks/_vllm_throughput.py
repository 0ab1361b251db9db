"""Tokens per second of our waves on the real vLLM engine, over those of one bare `LLM.chat` on the same prompts.

`python -m benchmarks._vllm_throughput [--runs N] [--chunk-size N]`, in the environment of `make test-vllm`. Both waves
over 2,000 partitions, memory and ledger included: 3,900 prompts of about 300 tokens, 64 tokens out. Both use the
same engine; they take turns, and the prefix cache is emptied before each. Other load on the machine falsifies the
ratio, as ours has two threads and `LLM.chat` one.
"""

# ruff: noqa: E402  (the environment has to be set before torch is imported)
import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import _vllm_cpu

_vllm_cpu.set_environment()

import numpy as np
import pyarrow as pa

from benchmarks._memory import TableCatalog
from benchmarks._tiny_model import make_tiny_model
from liber_feast.behavior import EVENT_TIME, ITEM, RATING, TIMESTAMP, USER, check_behaviors
from liber_feast.budget import Budget, Limits, Prices
from liber_feast.condition import CountCondition
from liber_feast.datasets import DataSet, read_data_set
from liber_feast.interest import learn
from liber_feast.llm.chat import ChatCall, ChatResult
from liber_feast.llm.chat_learner import ChatLearner
from liber_feast.llm.rate_limit import RateLimits
from liber_feast.llm.vllm import VllmBackend
from liber_feast.materialize import utc_microseconds
from liber_feast.memory import Memory
from liber_feast.memory.ledger import MemoryLedger
from liber_feast.prompt import Message, load_prompt
from liber_feast.waves import MemoryWaves

USERS, PARTITIONS_PER_USER, PARTITION_SIZE = 100, 20, 2
CALLS = USERS * (2 * PARTITIONS_PER_USER - 1)
ANSWER_TOKENS = 64


class SharedBackend:
    """The one engine of all runs: it stays open, and remembers the prompts of the run."""

    def __init__(self, backend: VllmBackend) -> None:
        self._backend = backend
        self.max_in_flight, self.max_output_tokens = backend.max_in_flight, backend.max_output_tokens
        self.context_tokens = backend.context_tokens
        self.prompts: list[Sequence[Message]] = []

    def check(self) -> bool:
        return self._backend.check()

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return self._backend.count_tokens(messages)

    def most_tokens(self, messages: Sequence[Message]) -> int:
        return self._backend.most_tokens(messages)

    def submit(self, calls: Sequence[ChatCall]) -> None:
        self.prompts.extend(call.messages for call in calls)
        self._backend.submit(calls)

    def collect(self, *, timeout_s: float | None) -> Sequence[ChatResult]:
        return self._backend.collect(timeout_s=timeout_s)

    def close(self) -> None:
        pass


def main(*, runs: int, chunk_size: int) -> None:
    """Measure both in turn and print the figures."""
    data_set = read_data_set("synthetic", seed=0)
    behaviors = _behaviors(data_set)
    with tempfile.TemporaryDirectory() as folder:
        model = make_tiny_model(Path(folder) / "tiny", answer_tokens=ANSWER_TOKENS)
        backend = _open(model, chunk_size=chunk_size)
        _, prompts = _ours(data_set, behaviors, backend)
        ours, bare = [], []
        for number in range(runs):
            if number % 2:
                bare.append(_bare(prompts, backend))
            ours.append(_ours(data_set, behaviors, backend)[0])
            if not number % 2:
                bare.append(_bare(prompts, backend))
            print(f"run {number}: ours {ours[-1]:.2f} s, bare {bare[-1]:.2f} s", file=sys.stderr, flush=True)
        input_tokens = statistics.mean(backend.count_tokens(prompt) for prompt in prompts)
        backend.close()
    figures = {
        "vllm_prompts": len(prompts),
        "vllm_input_tokens_per_prompt": round(input_tokens, 1),
        "vllm_output_tokens_per_prompt": ANSWER_TOKENS,
        "vllm_chunk_size": chunk_size,
        "vllm_tokens_per_s": _rate(ours, input_tokens),
        "bare_tokens_per_s": _rate(bare, input_tokens),
        "vllm_wall_s": [round(seconds, 3) for seconds in ours],
        "bare_wall_s": [round(seconds, 3) for seconds in bare],
        "vllm_throughput_ratio": round(statistics.median(bare) / statistics.median(ours), 4),
    }
    print(json.dumps(figures))


def _rate(seconds: Sequence[float], input_tokens: float) -> int:
    return round(CALLS * (input_tokens + ANSWER_TOKENS) / statistics.median(seconds))


def _open(model: Path, *, chunk_size: int) -> VllmBackend:
    return VllmBackend(
        model=str(model),
        dtype="float32",
        max_model_len=2048,
        tensor_parallel_size=1,
        engine=_vllm_cpu.ENGINE,
        chunk_size=chunk_size,
        temperature=0.0,
        max_output_tokens=2 * ANSWER_TOKENS,
        sampling={},
    )


def _ours(data_set: DataSet, behaviors: pa.Table, backend: VllmBackend) -> tuple[float, list[Sequence[Message]]]:
    """Run both waves into a new memory; return their seconds and prompts."""
    prompt, shared = load_prompt(data_set.prompt), SharedBackend(backend)
    with tempfile.TemporaryDirectory() as folder:
        memory = Memory.open("sqlite:///memory.db", base=Path(folder))
        memory.append(behaviors, condition=CountCondition(PARTITION_SIZE))
        prices = Prices(input=0.15, cached_input=0.075, output=0.6)
        ledger = MemoryLedger(
            memory,
            budget=Budget(run=Limits(calls=1_000_000, dollars=1_000.0), day=Limits(tokens=10**10)),
            prices=prices,
            model="tiny",
            prompt_version=prompt.version,
            clock=utc_microseconds,
        )
        learner = ChatLearner(
            prompt=prompt,
            model="tiny",
            open_backend=lambda: shared,
            ledger=ledger,
            rates=RateLimits(),
            prices=prices,
            max_attempts=3,
        )
        waves = MemoryWaves(
            memory=memory,
            catalog=TableCatalog(data_set),
            learner=learner,
            like_above=data_set.scale.like_above,
            clock=utc_microseconds,
        )
        _begin(backend)
        start = time.perf_counter()
        counts = learn(learner, waves, progress=lambda _stage, _count, _total: None)
        seconds = time.perf_counter() - start
        learner.close()
        memory.close()
    if counts.failed_count or counts.summary_count + counts.shift_count != CALLS:
        raise SystemExit(f"the run is not whole: {counts}")
    return seconds, shared.prompts


def _bare(prompts: Sequence[Sequence[Message]], backend: VllmBackend) -> float:
    """Run all prompts in one `LLM.chat`, and return its seconds."""
    llm: Any = backend._llm
    conversations = [list(messages) for messages in prompts]
    _begin(backend)
    start = time.perf_counter()
    outputs = llm.chat(conversations, backend._sampling, use_tqdm=False)
    seconds = time.perf_counter() - start
    if any(len(output.outputs[0].token_ids) != ANSWER_TOKENS for output in outputs):
        raise SystemExit("an answer is not as long as it should be")
    return seconds


def _begin(backend: VllmBackend) -> None:
    backend._llm.reset_prefix_cache()
    gc.collect()


def _behaviors(data_set: DataSet) -> pa.Table:
    """Return the same number of behaviors for every user, with items and ratings drawn from the data set."""
    per_user = PARTITIONS_PER_USER * PARTITION_SIZE
    count = USERS * per_user
    rng = np.random.default_rng(0)
    start = int(datetime(2022, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
    minutes = np.tile(np.arange(per_user), USERS) * 60_000_000
    table = pa.table(
        {
            USER: pa.array(np.repeat(data_set.users[USER].to_pylist()[:USERS], per_user)),
            ITEM: pa.array(rng.choice(data_set.items[ITEM].to_pylist(), count)),
            RATING: pa.array(rng.integers(1, 6, count)),
            EVENT_TIME: pa.array(start + minutes).cast(TIMESTAMP),
        }
    )
    return check_behaviors(table, scale=data_set.scale, now=datetime.now(UTC)).table


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--chunk-size", type=int, default=512)
    asked = parser.parse_args()
    main(runs=asked.runs, chunk_size=asked.chunk_size)
