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
from pathlib import Path
from typing import Any

from benchmarks import _vllm_cpu

_vllm_cpu.set_environment()

import pyarrow as pa

from benchmarks._memory import cascade_of, even_behaviors, memory_of
from benchmarks._tiny_model import make_tiny_model
from liber_feast.datasets import DataSet, read_data_set
from liber_feast.interest import learn
from liber_feast.llm.chat import ChatCall, ChatResult
from liber_feast.llm.vllm import VllmBackend
from liber_feast.prompt import Message

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
    behaviors = even_behaviors(data_set, users=USERS, per_user=PARTITIONS_PER_USER * PARTITION_SIZE)
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
    shared = SharedBackend(backend)
    with tempfile.TemporaryDirectory() as folder:
        memory = memory_of(behaviors, Path(folder), partition_size=PARTITION_SIZE)
        learner, waves = cascade_of(memory, data_set, model="tiny", open_backend=lambda: shared, max_attempts=3)
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--chunk-size", type=int, default=512)
    asked = parser.parse_args()
    main(runs=asked.runs, chunk_size=asked.chunk_size)
