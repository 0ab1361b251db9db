"""What the job adds to the LLM's own time: against a server that always takes 200 ms, and against bare vLLM.

`python -m benchmarks.llm_overhead [--vllm-python .venv-vllm/bin/python]`. The first part writes the texts of 2,000
partitions with the `openai` backend, 64 calls at a time, memory and ledger included; `wall_over_ideal` is its time over
`ceil(calls / 64) * 0.2 s` (median of three runs). The second part runs in the environment of `make test-vllm`, with
the real engine and a tiny model: `vllm_throughput_ratio` is the tokens per second of our waves over those of one
`LLM.chat` on the same prompts.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa

from benchmarks._llm_server import LLMServer
from benchmarks._memory import PARTITION_SIZE, cascade_of, even_behaviors, memory_of
from liber_feast.datasets import DataSet, read_data_set
from liber_feast.interest import learn
from liber_feast.llm.openai import OpenAIBackend

ROOT = Path(__file__).resolve().parents[1]
USERS, PARTITIONS_PER_USER = 100, 20
CONCURRENCY, LATENCY_S = 64, 0.2
RUNS = 3


def main(vllm_python: Path) -> None:
    """Measure both parts and print the figures."""
    data_set = read_data_set("synthetic", seed=0)
    behaviors = even_behaviors(data_set, users=USERS, per_user=PARTITIONS_PER_USER * PARTITION_SIZE)
    with LLMServer(latency_s=LATENCY_S) as server:
        runs = [_run(data_set, behaviors, server) for _ in range(RUNS)]
    ideal = math.ceil(runs[0]["calls"] / CONCURRENCY) * LATENCY_S
    ratios = [run["seconds"] / ideal for run in runs]
    figures = {
        "partitions": USERS * PARTITIONS_PER_USER,
        "calls": int(runs[0]["calls"]),
        "ideal_s": ideal,
        "wall_s": [round(run["seconds"], 3) for run in runs],
        "wall_over_ideal": round(statistics.median(ratios), 4),
        "cpu_ms_per_call": round(statistics.median(run["cpu_s"] / run["calls"] for run in runs) * 1_000, 3),
        **_vllm(vllm_python),
    }
    print(json.dumps(figures))


def _run(data_set: DataSet, behaviors: pa.Table, server: LLMServer) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        memory = memory_of(behaviors, Path(folder))
        learner, waves = cascade_of(
            memory, data_set, model=server.model, open_backend=lambda: _backend(server), max_attempts=5
        )
        start, cpu = time.perf_counter(), time.process_time()
        counts = learn(learner, waves, progress=lambda _stage, _count, _total: None)
        seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu
        learner.close()
        memory.close()
    calls = counts.summary_count + counts.shift_count
    if counts.failed_count or calls != USERS * (2 * PARTITIONS_PER_USER - 1):
        raise SystemExit(f"the run is not whole: {counts}")
    print(f"{calls} calls in {seconds:.2f} s, {cpu_s:.2f} s of them CPU", file=sys.stderr, flush=True)
    return {"calls": calls, "seconds": seconds, "cpu_s": cpu_s}


def _backend(server: LLMServer) -> OpenAIBackend:
    return OpenAIBackend(
        model=server.model,
        base_url=server.base_url,
        api_key=None,
        api_key_env=None,
        max_concurrency=CONCURRENCY,
        timeout_s=60.0,
        temperature=0.0,
        max_output_tokens=256,
        context_tokens=None,
        tokenizer=None,
        extra_body={},
    )


def _vllm(python: Path) -> dict[str, object]:
    """Run the second part in its own environment."""
    if not python.exists():
        raise SystemExit(f"{python} is missing: `make test-vllm` makes the environment of the second part.")
    done = subprocess.run(
        [str(python), "-m", "benchmarks._vllm_throughput"], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    return dict(json.loads(done.stdout.decode().splitlines()[-1]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--vllm-python", type=Path, default=ROOT / ".venv-vllm" / "bin" / "python")
    main(parser.parse_args().vllm_python)
