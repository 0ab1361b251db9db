"""The forward pass of DIN over a request's 100 candidates, eager, exported (`torch.export`) and compiled.

Weights are drawn. The exported and the compiled graph take any number of candidates, as requests have them. Passes
alternate on one thread, in inference mode; medians of their times and of their ratios count.
"""

import operator
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks._training_samples import benchmark_samples
from liber_feast.allocator import keep_freed_memory
from liber_feast.artifact import build_backbone
from liber_feast.encoded import DISTINCT
from training.backbones import BACKBONES
from training.fit import prepare
from training.options import FitOptions

CANDIDATES, MOST, WARM_UP_RUNS = 100, 1 << 16, 20
Batch = Mapping[str, Tensor]


def graph_figures(*, data: str, users: int | None, runs: int) -> dict[str, Any]:
    """Return milliseconds of each form, their ratios to the eager one, and the seconds that making them took."""
    torch.set_num_threads(1)
    keep_freed_memory()
    prepared = prepare(benchmark_samples(data, users=users, with_memory=True), options=FitOptions())
    rows = np.random.default_rng(0).choice(prepared.split.train, CANDIDATES)
    torch.manual_seed(0)
    model: Any = build_backbone(BACKBONES["din"], shape=prepared.spec.shape, config={}).eval()
    batch = dict(prepared.load(torch.device("cpu")).batch(rows))
    with torch.no_grad():
        batch["fused"] = model.inputs.fused(batch)
    del batch["vectors"], batch["sealed"]
    forms: dict[str, Callable[[Batch], Tensor]] = {"eager": model}
    made = {}
    for name, make in (("exported", _export), ("compiled", _compile)):
        start = time.perf_counter()
        forms[name] = make(model, batch)
        made[name] = round(time.perf_counter() - start, 1)
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    with torch.inference_mode():
        for run in range(runs + WARM_UP_RUNS):
            for name, form in forms.items():
                start = time.perf_counter()
                form(dict(batch))
                if run >= WARM_UP_RUNS:
                    seconds[name].append(time.perf_counter() - start)
    return {
        "graph_ms": {name: round(1e3 * statistics.median(times), 3) for name, times in seconds.items()},
        "graph_over_eager": {
            name: round(statistics.median(map(operator.truediv, seconds[name], seconds["eager"])), 3) for name in made
        },
        "graph_made_s": made,
    }


def _export(model: Any, batch: Batch) -> Callable[[Batch], Tensor]:
    candidates, items = (torch.export.Dim(name, min=2, max=MOST) for name in ("candidates", "items"))
    sizes = {name: {0: items if name in DISTINCT else candidates} for name in batch}
    with torch.no_grad():
        exported: Any = torch.export.export(model, (dict(batch),), dynamic_shapes=(sizes,)).module()
    return exported  # type: ignore[no-any-return]


def _compile(model: Any, batch: Batch) -> Callable[[Batch], Tensor]:
    compiled: Any = torch.compile(model, dynamic=True)
    with torch.inference_mode():
        compiled(dict(batch))  # it is compiled now
    return compiled  # type: ignore[no-any-return]
