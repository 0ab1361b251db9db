"""How fast a training epoch is beside fuxictr's, and what LIBER's fusion adds to a step.

`python -m benchmarks.training [--data synthetic|FOLDER] [--backbones din,dien] [--runs N]`. The samples are those of a
data set (24,000 synthetic behaviors by default), with the fields, histories of 20 and training part that a fit has;
embeddings of 32, MLP [200, 80], dropout .3, batches of 512, Adam, one thread.

`speedup` is the time of an epoch of the peer of the same name over that of ours, the medians of epochs that alternate,
each after one to warm up. An epoch is what a fit of either makes of it: its batches from its own loader (fuxictr's in
the same process), forward, backward, step. `benchmarks._training_peers` says what the peers are. DIEN's states are as
wide as a behavior, as the peer's are; our epoch has the auxiliary loss, which the peer does not know.

`fusion_overhead` is what a step takes longer with the fused vector than without, on the same samples; a user has a
partition for every 20 behaviors, of random vectors. Steps alternate; on a CPU it is their CPU time.

On CUDA the same follows as `gpu_speedup` and `gpu_fusion_overhead`, and for DIN at batch 16,384 the share of an epoch
that the GPU is busy (`gpu_utilization`) and the time of a step over that with `torch.compile` (`gpu_compile_speedup`).
Without CUDA these are null.
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmarks._training_peers import SEQUENTIAL, WIDTH, make_peer
from benchmarks._training_samples import benchmark_samples
from liber_feast.artifact import build_backbone
from training.allocator import keep_freed_memory
from training.backbones import BACKBONES
from training.batches import SampleBatches
from training.fit import Prepared, batches, make_optimizer, prepare, take_step
from training.options import FitOptions

SEVEN = ("dcn", "deepfm", "xdeepfm", "autoint", "fibinet", "din", "dien")
FUSED = ("din", "dien")
USERS = 200
STEPS = 40
"""Steps with and without fusion in each run."""
WARM_UP = 5
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
        take_step(self.model, optimizer=self.optimizer, samples=self.samples, rows=rows)
        _wait(self.samples.device)

    def train_epoch(self) -> None:
        """Take the steps of an epoch."""
        for rows in batches(self.rows, options=self.options):
            take_step(self.model, optimizer=self.optimizer, samples=self.samples, rows=rows)


def main(*, data: str, backbones: Sequence[str], runs: int) -> None:
    """Measure and print one JSON object."""
    keep_freed_memory()
    torch.set_num_threads(1)
    users = USERS if data == "synthetic" else None
    base, with_memory = (
        prepare(benchmark_samples(data, users=users, with_memory=memory), options=FitOptions())
        for memory in (False, True)
    )
    cpu = torch.device("cpu")
    figures = {
        "train_samples": len(base.split.train),
        "runs": runs,
        **_compared(base, backbones, runs=runs, device=cpu),
        "fusion_overhead": _fusion_overheads(base, with_memory, backbones, runs=runs, device=cpu),
        **_gpu_figures(base, with_memory, backbones, runs=runs),
    }
    print(json.dumps(figures))


def _compared(prepared: Prepared, backbones: Sequence[str], *, runs: int, device: torch.device) -> dict[str, Any]:
    """Return the speedup of each backbone, and samples a second of ours and of the peer."""
    speedup, rates = {}, {}
    for name in backbones:
        with tempfile.TemporaryDirectory() as folder:
            peer = make_peer(name, prepared, folder=Path(folder), gpu=0 if device.type == "cuda" else -1)
            ours = _ours(name, prepared, device=device)
            seconds = _alternating((ours.train_epoch, peer.train_epoch), runs=runs, device=device)
        own, theirs = (statistics.median(times) for times in seconds)
        speedup[name] = round(theirs / own, 3)
        count = len(prepared.split.train)
        rates[name] = {"ours": round(count / own), "peer": round(count / theirs)}
        print(f"{device.type} {name}: {rates[name]} samples/s, speedup {speedup[name]}", file=sys.stderr, flush=True)
    return {"speedup": speedup, "samples_per_s": rates, "peers": {name: _peer_name(name) for name in backbones}}


def _peer_name(name: str) -> str:
    if name in SEQUENTIAL:
        return f"fuxictr 2.3.10, model_zoo.LongCTR.{SEQUENTIAL[name]}"
    return "fuxictr 2.3.10, its repository's model of its package's layers"


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


def _ours(name: str, prepared: Prepared, *, device: torch.device, batch_size: int = 512) -> Ours:
    behavior_width = WIDTH * (len(prepared.spec.item_fields) + 1)
    config = {"hidden_width": behavior_width} if name == "dien" else {}
    options = FitOptions(backbone=BACKBONES[name], backbone_config=config, epochs=1, batch_size=batch_size)
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
    base: Prepared, with_memory: Prepared, backbones: Sequence[str], *, runs: int, device: torch.device
) -> dict[str, float]:
    """Return what the fused vector adds to a step of DIN and of DIEN, as a share of the step without."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    overheads = {}
    for name in FUSED:
        if name not in backbones:
            continue
        plain, fused = (_ours(name, prepared, device=device) for prepared in (base, with_memory))
        seconds: tuple[list[float], list[float]] = ([], [])
        for number, rows in enumerate(islice(_endless(plain), runs * STEPS + WARM_UP)):
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
    names = ("gpu", "gpu_speedup", "gpu_fusion_overhead", "gpu_utilization", "gpu_compile_speedup")
    if not torch.cuda.is_available():
        print(f"CUDA is not available: {', '.join(names)} are null.", file=sys.stderr, flush=True)
        return dict.fromkeys(names)
    device = torch.device("cuda")
    compared = _compared(base, backbones, runs=runs, device=device)["speedup"]
    overheads = _fusion_overheads(base, with_memory, backbones, runs=runs, device=device)
    values = (
        torch.cuda.get_device_name(),
        compared,
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


def _asked_backbones(text: str) -> list[str]:
    names = text.split(",")
    unknown = sorted(set(names) - set(SEVEN))
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is unknown. Known: {', '.join(SEVEN)}.")
    return names


def _asked_runs(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more.")
    return int(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="synthetic")
    parser.add_argument("--backbones", type=_asked_backbones, default=list(SEVEN))
    parser.add_argument("--runs", type=_asked_runs, default=3)
    asked = parser.parse_args()
    if find_spec("fuxictr") is None:
        sys.exit("fuxictr is not installed: pip install --no-deps --requirement requirements-peers.lock")
    main(data=asked.data, backbones=asked.backbones, runs=asked.runs)
