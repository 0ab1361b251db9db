"""How fast a training epoch is beside public implementations, and what LIBER's fusion adds to a step.

`python -m benchmarks.training [--data synthetic|FOLDER] [--backbones din,dien] [--runs N]`. The samples are those of a
data set (24,000 synthetic behaviors by default), with the fields, histories of 20 and training part that a fit has;
embeddings of 32, MLP [200, 80], dropout .3, batches of 512, Adam, one thread.

`speedup` is the time of an epoch of the peer of the same name over that of ours, the medians of epochs that alternate,
each after one to warm up. An epoch is what a fit of either makes of it: its batches from its own loader (in the same
process), forward, backward, step. The peers of DIN and DIEN are fuxictr's. Its plain models are not in its package, so
deepctr-torch's are the peers of DCN, DeepFM, xDeepFM, AutoInt and FiBiNET (`benchmarks._training_deepctr`). Against
models put together from the layers of fuxictr's package, as its repository does it (`benchmarks._training_peers`),
their figure is `speedup_over_fuxictr_layers`: ours again, beside those. Ours has the sizes of what it is beside: DIEN's
states are as wide as a behavior, and our epoch has the auxiliary loss, which the peer does not know; AutoInt's heads
have 16 numbers each beside deepctr-torch's, which parts the embedding among them, 32 beside fuxictr's.

`fusion_overhead` is what a step takes longer with the fused vector than without, on the same samples; a user has a
partition for every 20 behaviors, of random vectors. Steps alternate; on a CPU it is their CPU time. Steps hide the
memory of three samples in ten, as fits do by default; `fusion_overhead_nothing_hidden` is that of steps that hide none.

On CUDA the same follows as `gpu_speedup`, `gpu_speedup_over_fuxictr_layers` and `gpu_fusion_overhead`, and for DIN at
batch 16,384 the share of an epoch that the GPU is busy (`gpu_utilization`) and the time of a step over that with
`torch.compile` (`gpu_compile_speedup`).
Without CUDA these are null.
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmarks._choices import some_of
from benchmarks._training_deepctr import make_deepctr_peer
from benchmarks._training_peers import BATCH_SIZE, DROPOUT, HIDDEN, SEQUENTIAL, WIDTH, make_peer
from benchmarks._training_samples import benchmark_samples
from liber_feast.allocator import keep_freed_memory
from liber_feast.artifact import build_backbone
from training.backbones import BACKBONES
from training.batches import SampleBatches
from training.fit import Prepared, batches, make_optimizer, prepare, take_step
from training.options import FitOptions

SEVEN = ("dcn", "deepfm", "xdeepfm", "autoint", "fibinet", "din", "dien")
FUSED = ("din", "dien")
FUXICTR, FUXICTR_LAYERS, DEEPCTR = "fuxictr 2.3.10", "layers of fuxictr 2.3.10", "deepctr-torch 0.3.0"
USERS = 200
STEPS = 40
"""Steps with and without fusion in each run."""
WARM_UP = 5
MEMORY_DROPOUT = FitOptions().memory_dropout
LARGE_BATCH = 16_384


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Ours:
    """A backbone of ours, its optimizer and its samples on a device."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    samples: SampleBatches
    rows: npt.NDArray[np.int64]
    options: FitOptions

    def step(self, rows: npt.NDArray[np.int64]) -> None:
        """Take a step, and wait for it."""
        self._take(rows)
        _wait(self.samples.device)

    def _take(self, rows: npt.NDArray[np.int64]) -> None:
        hidden = self.options.memory_dropout
        take_step(self.model, optimizer=self.optimizer, samples=self.samples, rows=rows, hidden_memory=hidden)

    def train_epoch(self) -> None:
        """Take the steps of an epoch."""
        for rows in batches(self.rows, options=self.options):
            self._take(rows)


def main(*, data: str, backbones: Sequence[str], runs: int, users: int = USERS, step_count: int = STEPS) -> None:
    """Measure and print one JSON object."""
    keep_freed_memory()
    torch.set_num_threads(1)
    count = users if data == "synthetic" else None
    base, with_memory = (
        prepare(benchmark_samples(data, users=count, with_memory=memory), options=FitOptions())
        for memory in (False, True)
    )
    cpu = torch.device("cpu")
    figures = {
        "train_samples": len(base.split.train),
        "runs": runs,
        **_compared(base, backbones, runs=runs, device=cpu),
        "fusion_overhead": _fusion_overheads(base, with_memory, backbones, step_count=runs * step_count, device=cpu),
        "fusion_overhead_nothing_hidden": _fusion_overheads(
            base, with_memory, backbones, step_count=runs * step_count, device=cpu, memory_dropout=0.0
        ),
        **_gpu_figures(base, with_memory, backbones, runs=runs),
    }
    print(json.dumps(figures))


def _compared(prepared: Prepared, backbones: Sequence[str], *, runs: int, device: torch.device) -> dict[str, Any]:
    """Return the speedups of each backbone, and samples a second of ours and of what it is beside."""
    asked = {
        "speedup": {name: FUXICTR if name in SEQUENTIAL else DEEPCTR for name in backbones},
        "speedup_over_fuxictr_layers": {name: FUXICTR_LAYERS for name in backbones if name not in SEQUENTIAL},
    }
    rates: dict[str, list[dict[str, Any]]] = {name: [] for name in backbones}
    figures: dict[str, dict[str, float]] = {figure: {} for figure in asked}
    for name in backbones:
        for figure, peers in asked.items():
            if name in peers:
                rate = _rates(name, prepared, kind=peers[name], runs=runs, device=device)
                figures[figure][name] = round(rate["ours"] / rate["peer"], 3)
                rates[name].append({"beside": peers[name], **{side: round(count) for side, count in rate.items()}})
                print(f"{device.type} {name}: {figure} {figures[figure][name]}", file=sys.stderr, flush=True)
    return {**figures, "samples_per_s": rates}


def _rates(name: str, prepared: Prepared, *, kind: str, runs: int, device: torch.device) -> dict[str, float]:
    """Return samples a second of our epochs and of those of a peer, which alternate."""
    gpu = 0 if device.type == "cuda" else -1
    with tempfile.TemporaryDirectory() as folder:
        peer = (
            make_deepctr_peer(
                name, prepared, width=WIDTH, hidden=HIDDEN, dropout=DROPOUT, batch_size=BATCH_SIZE, gpu=gpu
            )
            if kind == DEEPCTR
            else make_peer(name, prepared, folder=Path(folder), gpu=gpu)
        )
        ours = _ours(name, prepared, device=device, config=_same_sizes(name, prepared, kind=kind))
        own, theirs = _alternating((ours.train_epoch, peer.train_epoch), runs=runs, device=device)
    count = len(prepared.split.train)
    return {"ours": count / statistics.median(own), "peer": count / statistics.median(theirs)}


def _same_sizes(name: str, prepared: Prepared, *, kind: str) -> dict[str, Any]:
    """Return the config of ours that gives it the sizes of a peer, where the default does not."""
    if name == "dien":
        return {"hidden_width": WIDTH * (len(prepared.spec.item_fields) + 1)}
    return {"head_width": WIDTH // 2} if name == "autoint" and kind == DEEPCTR else {}


def _alternating(works: Sequence[Callable[[], None]], *, runs: int, device: torch.device) -> tuple[list[float], ...]:
    """Return the seconds of each run of each work; one run of each comes before and does not count."""
    seconds: tuple[list[float], ...] = tuple([] for _ in works)
    for run in range(runs + 1):
        for work, times in zip(works, seconds, strict=True):
            start = time.perf_counter()
            work()
            _wait(device)
            if run:
                times.append(time.perf_counter() - start)
    return seconds


def _ours(
    name: str,
    prepared: Prepared,
    *,
    device: torch.device,
    config: Mapping[str, Any] | None = None,
    batch_size: int = BATCH_SIZE,
    memory_dropout: float = MEMORY_DROPOUT,
) -> Ours:
    config = _same_sizes(name, prepared, kind=FUXICTR) if config is None else config
    options = FitOptions(
        backbone=BACKBONES[name],
        backbone_config=config,
        epochs=1,
        batch_size=batch_size,
        memory_dropout=memory_dropout,
    )
    torch.manual_seed(0)
    model = build_backbone(options.backbone, shape=prepared.spec.shape, config=options.backbone_config).to(device)
    return Ours(
        model=model,
        optimizer=make_optimizer(model, options=options),
        samples=prepared.load(device),
        rows=prepared.split.train,
        options=options,
    )


def _fusion_overheads(
    base: Prepared,
    with_memory: Prepared,
    backbones: Sequence[str],
    *,
    step_count: int,
    device: torch.device,
    memory_dropout: float = MEMORY_DROPOUT,
) -> dict[str, float]:
    """Return what the fused vector adds to a step of DIN and of DIEN, as a share of the step without."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    overheads = {}
    for name in FUSED:
        if name not in backbones:
            continue
        plain, fused = (
            _ours(name, prepared, device=device, memory_dropout=memory_dropout) for prepared in (base, with_memory)
        )
        seconds: tuple[list[float], list[float]] = ([], [])
        for number, rows in enumerate(islice(_endless(plain), step_count + WARM_UP)):
            for one, times in zip((plain, fused), seconds, strict=True):
                start = clock()
                one.step(rows)
                if number >= WARM_UP:
                    times.append(clock() - start)
        plain_s, fused_s = (statistics.median(times) for times in seconds)
        overheads[name] = round(fused_s / plain_s - 1, 4)
        steps = f"{plain_s * 1e3:.1f} -> {fused_s * 1e3:.1f} ms"
        print(f"{device.type} {name}: a step with fusion {steps}", file=sys.stderr, flush=True)
    return overheads


def _endless(ours: Ours) -> Iterator[npt.NDArray[np.int64]]:
    return cycle([rows for rows in batches(ours.rows, options=ours.options) if len(rows) == ours.options.batch_size])


def _gpu_figures(base: Prepared, with_memory: Prepared, backbones: Sequence[str], *, runs: int) -> dict[str, Any]:
    names = (
        *("gpu", "gpu_speedup", "gpu_speedup_over_fuxictr_layers", "gpu_fusion_overhead"),
        *("gpu_utilization", "gpu_compile_speedup"),
    )
    if not torch.cuda.is_available():
        print(f"CUDA is not available: {', '.join(names)} are null.", file=sys.stderr, flush=True)
        return dict.fromkeys(names)
    device = torch.device("cuda")
    compared = _compared(base, backbones, runs=runs, device=device)
    overheads = _fusion_overheads(base, with_memory, backbones, step_count=runs * STEPS, device=device)
    values = (
        torch.cuda.get_device_name(),
        compared["speedup"],
        compared["speedup_over_fuxictr_layers"],
        overheads,
        _utilization(base, device=device, runs=runs),
        _compile_speedup(base, device=device, runs=runs),
    )
    return dict(zip(names, values, strict=True))


def _utilization(prepared: Prepared, *, device: torch.device, runs: int) -> float:
    """Return the mean share of time that the GPU is busy, during epochs of DIN over five seconds or more."""
    ours = _ours("din", prepared, device=device, batch_size=LARGE_BATCH)
    ours.train_epoch()
    seen: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            seen.append(torch.cuda.utilization())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    while time.perf_counter() - start < 5 * runs:
        ours.train_epoch()
    _wait(device)
    done.set()
    watcher.join()
    return round(statistics.mean(seen) / 100, 3)


def _compile_speedup(prepared: Prepared, *, device: torch.device, runs: int) -> float:
    """Return the time of a step of DIN over that of the compiled one."""
    plain, compiled = (_ours("din", prepared, device=device, batch_size=LARGE_BATCH) for _ in range(2))
    compiled.model.compile()
    rows = np.resize(plain.rows, LARGE_BATCH)
    times = _alternating((lambda: plain.step(rows), lambda: compiled.step(rows)), runs=runs * STEPS, device=device)
    plain_s, compiled_s = (statistics.median(one[WARM_UP:]) for one in times)
    return round(plain_s / compiled_s, 3)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _asked_runs(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more.")
    return int(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="synthetic")
    parser.add_argument("--backbones", type=some_of(SEVEN), default=list(SEVEN))
    parser.add_argument("--runs", type=_asked_runs, default=3)
    asked = parser.parse_args()
    for package in ("fuxictr", "deepctr_torch"):
        if find_spec(package) is None:
            sys.exit(f"{package} is not installed: pip install --no-deps --requirement requirements-peers.lock")
    main(data=asked.data, backbones=asked.backbones, runs=asked.runs)
