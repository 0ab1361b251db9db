"""Fit a backbone: Adam on the training part, early stopping on the validation part, figures on the test part."""

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from liber_feast.artifact import build_backbone
from liber_feast.errors import ConfigError
from liber_feast.inputs import EncodedItems, EncodedUsers, InputSpec
from training.backbones.loss import forward_with_loss
from training.batches import SampleBatches
from training.data import Samples
from training.fit_inputs import InputOptions, fit_inputs
from training.metrics import Quality, quality
from training.split import Split, check_classes, split_by_time

SCORING_ROWS = 4096
"""Samples scored at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitOptions:
    """How a backbone is fitted."""

    backbone: str = "training.backbones.din:DIN"
    """`module:Class`."""
    backbone_config: Mapping[str, Any] = field(default_factory=dict)
    """Values of the backbone's config class that differ from its defaults."""
    seed: int = 0
    epochs: int = 20
    batch_size: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    """Of every weight but the embeddings: theirs would decay in every step, but rare ones learn in few."""
    looks_per_epoch: int = 2
    """How often an epoch looks at the validation part."""
    patience: int = 4
    """Looks without a better validation AUC before the fit stops."""
    sequence_length: int = 20
    user_id: bool = False
    fused_width: int = 32
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 1
    """CPU threads of a step. With one, a seed gives the same figures on every number of cores; steps of 512 samples
    gain little from more, and on a busy machine they lose much."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a fit is, after each step."""

    step: int
    step_count: int
    loss: Tensor
    """The step's mean loss, a scalar on the device of the fit."""
    validation: Quality | None
    """Of this step's look at the validation part, where there was one."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prepared:
    """Samples as arrays, split, with the spec that encoded them."""

    spec: InputSpec
    users: EncodedUsers
    items: EncodedItems
    labels: npt.NDArray[np.bool_]
    split: Split

    def load(self, device: torch.device) -> SampleBatches:
        """Load the samples onto `device`, where their batches are made."""
        return SampleBatches(self.spec, users=self.users, items=self.items, labels=self.labels, device=device)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FittedRun:
    """The best model seen, on the CPU, and its figures."""

    model: nn.Module
    spec: InputSpec
    split: Split
    validation: Quality
    validation_logits: npt.NDArray[np.float32]
    """In the order of `split.validation`."""
    test: Quality | None
    """None where the test part was not asked for."""
    test_logits: npt.NDArray[np.float32] | None
    """In the order of `split.test`; None where the test part was not asked for."""
    best_epoch: float
    """Epochs up to the look whose weights these are."""
    epochs: float
    """Epochs in all."""
    seconds: float


def prepare(samples: Samples, *, options: FitOptions, split: Split | None = None) -> Prepared:
    """Split the samples by time unless `split` says how, fit the input spec on the training part and encode all.

    Raises:
        DataSetError: too few samples for three parts, or a part of one class.
    """
    split = split_by_time(samples.times) if split is None else split
    check_classes(samples.labels, split=split, like_above=samples.like_above)
    vectors = samples.vectors
    spec = fit_inputs(
        samples.table.take(split.train),
        user_columns=samples.user_columns,
        item_columns=samples.item_columns,
        catalog=samples.catalog,
        options=InputOptions(
            like_above=samples.like_above,
            sequence_length=options.sequence_length,
            user_id=options.user_id,
            memory_width=0 if vectors is None else vectors.values.shape[1],
            fused_width=0 if vectors is None else options.fused_width,
            max_partitions=1 if vectors is None else int(vectors.lengths.max()),
        ),
    )
    return Prepared(
        spec=spec,
        users=spec.encode_users(samples.table, recent=samples.recent, vectors=vectors),
        items=spec.encode_items(samples.table),
        labels=samples.labels,
        split=split,
    )


def fit(
    prepared: Prepared,
    *,
    options: FitOptions,
    with_test: bool = True,
    on_step: Callable[[Progress], None] = lambda _: None,
) -> FittedRun:
    """Fit a backbone on prepared samples; equal seeds on the CPU give equal weights.

    Without `with_test` the test part is not scored.

    Raises:
        ConfigError: a backbone or device that cannot be used, or a loss that is not finite.
    """
    with cpu_threads(options.threads):
        return _fit(prepared, options=options, with_test=with_test, on_step=on_step)


def _fit(prepared: Prepared, *, options: FitOptions, with_test: bool, on_step: Callable[[Progress], None]) -> FittedRun:
    started = time.perf_counter()
    device = choose_device(options.device)
    torch.manual_seed(options.seed)
    model = build_backbone(options.backbone, shape=prepared.spec.shape, config=options.backbone_config).to(device)
    optimizer = make_optimizer(model, options=options)
    samples, part = prepared.load(device), prepared.split
    per_epoch = -(-len(part.train) // options.batch_size)
    looks = {per_epoch * look // options.looks_per_epoch for look in range(1, options.looks_per_epoch + 1)}
    best, step, is_finite = Best(), 0, torch.ones((), dtype=torch.bool, device=device)
    for step, rows in enumerate(batches(part.train, options=options), start=1):
        loss = take_step(model, optimizer=optimizer, samples=samples, rows=rows)
        is_finite &= torch.isfinite(loss)  # looked at with the validation part: a GPU would be waited for
        seen = None
        if (step - 1) % per_epoch + 1 in looks:
            logits = score(model, samples, rows=part.validation, is_finite=bool(is_finite))
            seen = quality(prepared.labels[part.validation], logits=logits)
            best.look(seen, logits=logits, step=step, model=model)
        on_step(Progress(step=step, step_count=per_epoch * options.epochs, loss=loss, validation=seen))
        if best.waited >= options.patience:
            break
    model.load_state_dict(best.weights)
    test_logits = score(model, samples, rows=part.test) if with_test else None
    return FittedRun(
        model=model.cpu(),
        spec=prepared.spec,
        split=part,
        validation=best.quality,
        validation_logits=best.logits,
        test=None if test_logits is None else quality(prepared.labels[part.test], logits=test_logits),
        test_logits=test_logits,
        best_epoch=best.step / per_epoch,
        epochs=step / per_epoch,
        seconds=time.perf_counter() - started,
    )


@dataclass(kw_only=True, slots=True)
class Best:
    """The best look so far, with the weights it saw."""

    quality: Quality = Quality(auc=-1.0, log_loss=0.0)
    step: int = 0
    waited: int = 0
    """Looks since then."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    logits: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """Of the validation part, by these weights."""

    def look(self, seen: Quality, *, logits: npt.NDArray[np.float32], step: int, model: nn.Module) -> None:
        """Keep the model's weights if `seen` is better than all before."""
        self.waited += 1
        if seen.auc > self.quality.auc:
            self.quality, self.logits, self.step, self.waited = seen, logits, step, 0
            self.weights = copy.deepcopy(model.state_dict())


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_device(name: str) -> torch.device:
    """Return the device `name`; auto is CUDA where there is one.

    Raises:
        ConfigError: CUDA is asked for and missing.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' is not available here. Use --device auto or cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def make_optimizer(model: nn.Module, *, options: FitOptions) -> torch.optim.Optimizer:
    """Return Adam with weight decay on every weight but the embeddings."""
    tables = {
        weight for module in model.modules() if isinstance(module, nn.Embedding) for weight in module.parameters()
    }
    others = [weight for weight in model.parameters() if weight not in tables]
    return torch.optim.Adam(
        [
            {"params": [weight for weight in model.parameters() if weight in tables], "weight_decay": 0.0},
            {"params": others, "weight_decay": options.weight_decay},
        ],
        lr=options.learning_rate,
    )


def batches(rows: npt.NDArray[np.int64], *, options: FitOptions) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the rows of each step, every epoch in another order."""
    generator = np.random.default_rng(options.seed)
    for _ in range(options.epochs):
        shuffled = generator.permutation(rows)
        for start in range(0, len(rows), options.batch_size):
            yield shuffled[start : start + options.batch_size]


def take_step(
    model: nn.Module,
    *,
    optimizer: torch.optim.Optimizer,
    samples: SampleBatches,
    rows: npt.NDArray[np.int64],
) -> Tensor:
    """Take one step on `rows` and return its loss, detached; what the backbone adds to it is in it."""
    model.train()
    logits, added = forward_with_loss(model, samples.batch(rows))
    loss = F.binary_cross_entropy_with_logits(logits, samples.labels(rows)) + added
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch
    optimizer.step()
    return loss.detach()


def score(
    model: nn.Module, samples: SampleBatches, *, rows: npt.NDArray[np.int64], is_finite: bool = True
) -> npt.NDArray[np.float32]:
    """Return the model's logits for `rows`, in their order; leaves the model in evaluation mode.

    Raises:
        ConfigError: a logit is not finite, or, by `is_finite`, a loss before was not.
    """
    model.eval()
    with torch.inference_mode():
        parts = [
            model(samples.batch(rows[start : start + SCORING_ROWS])).float()
            for start in range(0, len(rows), SCORING_ROWS)
        ]
    logits: npt.NDArray[np.float32] = torch.cat(parts).cpu().numpy()
    if not (is_finite and np.isfinite(logits).all()):
        raise ConfigError("the loss is not finite: the learning rate is too high for this backbone. Lower it.")
    return logits
