"""Fit a backbone: Adam on the training part, early stopping on the validation part, figures on the test part."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from liber_feast.artifact import build_backbone
from liber_feast.errors import ConfigError, DataSetError
from liber_feast.inputs import EncodedItems, EncodedUsers, InputSpec
from training.backbones.loss import forward_with_loss
from training.batches import SampleBatches
from training.checkpoint import Checkpoints, fit_identity, read_checkpoint, write_checkpoint
from training.data import Samples
from training.fit_inputs import InputOptions, fit_inputs
from training.fit_match import with_count_scale, with_match_scales
from training.id_dropout import hide_ids
from training.memory_dropout import hide_memory
from training.metrics import Quality, quality
from training.options import FitOptions, Precision
from training.split import Split, check_classes, split_by_time
from training.state import FitState, Look

SCORING_ROWS = 4096
"""Samples scored at once."""


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
    losses: npt.NDArray[np.float32]
    """Of every step, the mean over its samples."""
    looks: tuple[Look, ...]
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
    vectors, evidence = samples.vectors, samples.evidence
    if samples.knowledge is not None:
        vectors = samples.knowledge.seen(samples.times, until=int(samples.times[split.validation].min()))
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
            memory_kind="partitions" if samples.knowledge is None else "knowledge",
            item_width=samples.item_width,
            memory_evidence=evidence is not None,
            match=options.match,
        ),
    )
    spec = with_count_scale(spec, evidence=evidence, train=split.train)
    users = spec.encode_users(samples.table, recent=samples.recent, vectors=vectors, evidence=evidence)
    items = spec.encode_items(samples.table, times=samples.times)
    return Prepared(
        spec=with_match_scales(spec, users=users, items=items, train=split.train),
        users=users,
        items=items,
        labels=samples.labels,
        split=split,
    )


def fit(
    prepared: Prepared,
    *,
    options: FitOptions,
    with_test: bool = True,
    checkpoints: Checkpoints | None = None,
    on_step: Callable[[Progress], None] = lambda _: None,
) -> FittedRun:
    """Fit a backbone on prepared samples; equal seeds on the CPU give equal weights.

    Without `with_test` the test part is not scored. With `checkpoints` a fit that was cut off goes on where it was.

    Raises:
        ConfigError: a backbone or device that cannot be used, or a loss that is not finite.
        DataSetError: a test part without samples is to be scored.
        ArtifactError: a checkpoint that is of another fit, or cannot be read or written.
    """
    if with_test and not len(prepared.split.test):
        raise DataSetError("the split has no test part to score.")
    with cpu_threads(options.threads):
        return _fit(prepared, options=options, with_test=with_test, checkpoints=checkpoints, on_step=on_step)


def _fit(
    prepared: Prepared,
    *,
    options: FitOptions,
    with_test: bool,
    checkpoints: Checkpoints | None,
    on_step: Callable[[Progress], None],
) -> FittedRun:
    device = choose_device(options.device)
    torch.manual_seed(options.seed)
    model = build_backbone(options.backbone, shape=prepared.spec.shape, config=options.backbone_config).to(device)
    state = FitState(model=model, optimizer=make_optimizer(model, options=options))
    samples = prepared.load(device)
    identity = {} if checkpoints is None else fit_identity(prepared, options=options, device=device)
    if checkpoints is not None and checkpoints.resume and checkpoints.path.exists():
        read_checkpoint(checkpoints.path, state=state, identity=identity, device=device)
    started = time.perf_counter() - state.seconds
    for progress in train(state, samples=samples, prepared=prepared, options=options):
        state.seconds = time.perf_counter() - started
        if checkpoints is not None and checkpoints.is_due(step=state.step, looked=progress.validation is not None):
            write_checkpoint(checkpoints.path, state=state, identity=identity, device=device)
        on_step(progress)
    model.load_state_dict(state.best.weights)
    test_logits = score(model, samples, rows=prepared.split.test) if with_test else None
    return _fitted(state, prepared=prepared, options=options, test_logits=test_logits)


def train(state: FitState, *, samples: SampleBatches, prepared: Prepared, options: FitOptions) -> Iterator[Progress]:
    """Take the steps that a fit has left; between two of them its state can be kept.

    Raises:
        ConfigError: a loss or a logit is not finite; losses are looked at with the validation part.
    """
    part, labels = prepared.split, prepared.labels
    per_epoch = len(step_ends(len(part.train), batch_size=options.batch_size))
    looks = {per_epoch * look // options.looks_per_epoch for look in range(1, options.looks_per_epoch + 1)}
    bfloat16 = chosen_precision(options, device=samples.device) == "bfloat16"
    for rows in batches(part.train, options=options, start=state.step):
        if state.best.waited >= options.patience:
            return
        loss = take_step(
            state.model,
            optimizer=state.optimizer,
            samples=samples,
            rows=rows,
            bfloat16=bfloat16,
            hidden_ids=options.id_dropout,
            hidden_memory=options.memory_dropout,
        )
        state.stepped(loss)
        seen = None
        if (state.step - 1) % per_epoch + 1 in looks:
            check_finite(state.losses())
            logits = score(state.model, samples, rows=part.validation)
            seen = quality(labels[part.validation], logits=logits)
            state.looked(seen, logits=logits)
        yield Progress(step=state.step, step_count=per_epoch * options.epochs, loss=loss, validation=seen)


def _fitted(
    state: FitState, *, prepared: Prepared, options: FitOptions, test_logits: npt.NDArray[np.float32] | None
) -> FittedRun:
    part, best = prepared.split, state.best
    per_epoch = len(step_ends(len(part.train), batch_size=options.batch_size))
    return FittedRun(
        model=state.model.cpu(),
        spec=prepared.spec,
        split=part,
        validation=best.quality,
        validation_logits=best.logits,
        test=None if test_logits is None else quality(prepared.labels[part.test], logits=test_logits),
        test_logits=test_logits,
        losses=state.losses(),
        looks=tuple(state.looks),
        best_epoch=best.step / per_epoch,
        epochs=state.step / per_epoch,
        seconds=state.seconds,
    )


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
        fused=True,
    )


def chosen_precision(options: FitOptions, *, device: torch.device) -> Precision:
    """Return the precision of the products of a training step on `device`: auto is bfloat16 on a GPU."""
    if options.precision != "auto":
        return options.precision
    return "bfloat16" if device.type == "cuda" else "float32"


def step_ends(count: int, *, batch_size: int) -> list[int]:
    """Return where the steps of an epoch of `count` samples end.

    What is left over is a smaller last step; a single sample, which has no variance to normalize by, joins the step
    before.
    """
    ends = [*range(batch_size, count, batch_size), count]
    if len(ends) > 1 and ends[-1] - ends[-2] == 1:
        del ends[-2]
    return ends


def batches(rows: npt.NDArray[np.int64], *, options: FitOptions, start: int = 0) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the rows of each step after the first `start` steps, every epoch in another order."""
    generator = np.random.default_rng(options.seed)
    ends = step_ends(len(rows), batch_size=options.batch_size)
    for epoch in range(options.epochs):
        shuffled = generator.permutation(rows)
        for step, (left, right) in enumerate(pairwise([0, *ends]), start=epoch * len(ends)):
            if step >= start:
                yield shuffled[left:right]


def take_step(
    model: nn.Module,
    *,
    optimizer: torch.optim.Optimizer,
    samples: SampleBatches,
    rows: npt.NDArray[np.int64],
    bfloat16: bool = False,
    hidden_ids: float = 0.0,
    hidden_memory: float = 0.0,
) -> Tensor:
    """Take one step on `rows`, with `bfloat16` under autocast, and return its loss, detached.

    What the backbone adds to the loss is in it. Of a share `hidden_ids` of the samples the user id is hidden, and of a
    share `hidden_memory` the long-term memory.
    """
    model.train()
    batch = samples.step_batch(rows)
    if hidden_ids:
        batch = hide_ids(batch, share=hidden_ids)
    if hidden_memory and samples.has_memory:
        batch = hide_memory(batch, share=hidden_memory, has_evidence=samples.has_evidence)
    with torch.autocast(samples.device.type, dtype=torch.bfloat16, enabled=bfloat16):
        labels = samples.labels(rows)
        logits, added = forward_with_loss(model, batch, labels_B=labels)
    loss = F.binary_cross_entropy_with_logits(logits.float(), labels) + added
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch
    optimizer.step()
    return loss.detach()


def score(model: nn.Module, samples: SampleBatches, *, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return the model's logits for `rows`, in their order; leaves the model in evaluation mode.

    Raises:
        ConfigError: a logit is not finite.
    """
    model.eval()
    with torch.inference_mode():
        parts = [
            model(samples.batch(rows[start : start + SCORING_ROWS])).float()
            for start in range(0, len(rows), SCORING_ROWS)
        ]
    logits: npt.NDArray[np.float32] = torch.cat(parts).cpu().numpy()
    check_finite(logits)
    return logits


def check_finite(values: npt.NDArray[np.float32]) -> None:
    """Check losses or logits.

    Raises:
        ConfigError: one is not finite.
    """
    if not np.isfinite(values).all():
        raise ConfigError("the loss is not finite: the learning rate is too high for this backbone. Lower it.")
