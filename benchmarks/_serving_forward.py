"""The forward pass of DIEN alone, per 1,000 samples: the paper's table 7.

Weights are drawn: the time of a pass does not depend on what they say. Samples are those of a data set as a fit has
them, a thousand at once on one thread, in inference mode; the passes alternate, and medians of their times and of their
ratios count.
"""

import operator
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from http.client import HTTPConnection

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks._llm_server import LLMServer
from benchmarks._training_samples import benchmark_samples
from liber_feast.artifact import build_backbone
from liber_feast.inputs import InputShape
from training.backbones import BACKBONES
from training.fit import prepare
from training.options import FitOptions

SAMPLES, ITEMS_PER_REQUEST = 1_000, 100
LLM_LATENCY_S = 0.2
"""What the stub of an LLM server is told to take for a text; a real one takes longer."""


def forward_figures(*, data: str, users: int | None, runs: int) -> dict[str, dict[str, float]]:
    """Return seconds per 1,000 samples of each variant, and over the base."""
    torch.set_num_threads(1)
    plain, with_memory = (
        prepare(benchmark_samples(data, users=users, with_memory=memory), options=FitOptions())
        for memory in (False, True)
    )
    rows = np.random.default_rng(0).choice(plain.split.train, SAMPLES)
    device = torch.device("cpu")
    base, raw = (prepared.load(device).batch(rows) for prepared in (plain, with_memory))
    liber = _model(with_memory.spec.shape)
    with torch.inference_mode():
        fused = {name: value for name, value in raw.items() if name not in ("vectors", "sealed")}
        fused["fused"] = liber.inputs.fused(raw)
    text = {**raw, "vectors": raw["vectors"][:, -1:], "sealed": torch.ones(SAMPLES, 1, dtype=torch.bool)}
    passes: dict[str, Callable[[], object]] = {
        "base": _pass(_model(plain.spec.shape), base),
        "liber": _pass(liber, fused),
        "liber_with_fusion_in_the_pass": _pass(liber, raw),
        "kar": _pass(_model(replace(with_memory.spec.shape, memory_kind="knowledge")), text),
    }
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for run in range(runs + 1):
        for name, forward in passes.items():
            start = time.perf_counter()
            forward()
            if run:
                seconds[name].append(time.perf_counter() - start)
    asked = _llm_seconds(SAMPLES // ITEMS_PER_REQUEST)
    seconds["llm_per_request"] = [base_s + asked for base_s in seconds["base"]]
    return {
        "forward_s_per_1000": {name: round(statistics.median(times), 5) for name, times in seconds.items()},
        "forward_over_base": {
            name: round(statistics.median(map(operator.truediv, times, seconds["base"])), 3)
            for name, times in seconds.items()
        },
    }


def _model(shape: InputShape) -> nn.Module:
    torch.manual_seed(0)
    return build_backbone(BACKBONES["dien"], shape=shape, config={}).eval()


def _pass(model: nn.Module, batch: Mapping[str, Tensor]) -> Callable[[], object]:
    def forward() -> object:
        with torch.inference_mode():
            return model(dict(batch))

    return forward


def _llm_seconds(requests: int) -> float:
    """Return what a text for each of some requests takes, one after the other."""
    with LLMServer(latency_s=LLM_LATENCY_S) as server:
        connection = HTTPConnection("127.0.0.1", server.port)
        body = '{"model": "stub", "messages": [{"role": "user", "content": "What does the user like?"}]}'
        start = time.perf_counter()
        for _ in range(requests):
            connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
            connection.getresponse().read()
        seconds = time.perf_counter() - start
        connection.close()
    return seconds
