"""The fits of a comparison: each backbone on each feature set, block and seed; all are kept, so none is made twice."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as array_bytes

from liber_feast.errors import ArtifactError, ConfigError
from liber_feast.tensor_file import write_atomically
from training.backbones import BACKBONES, backbone_reference
from training.checkpoint import check_identity, fit_identity
from training.data import Features, Samples
from training.fit import Prepared, choose_device, fit, prepare
from training.options import FitOptions, with_backbone
from training.protocol import Block, blocks, check_folds
from training.provenance import versions
from training.shared_work import shared_work
from training.split import check_classes
from training.statistics import LEAST_PAIRS

FORMAT_VERSION = 2
FITS, IDENTITY = "fits", "comparison_of.json"
BASE: Features = "baseline"
VARIANTS: tuple[Features, ...] = ("liber", "evidence", "liber+evidence")
SEVEN = ("dcn", "deepfm", "xdeepfm", "autoint", "fibinet", "din", "dien")
"""The backbones of LIBER's table 2."""
SINGLE = {"seed", "backbone", "backbone_config", "threads"}
"""Options that are not the same for all fits, or that change no figure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What is compared.

    Raises:
        ConfigError: an unknown backbone or feature set, or fewer than two seeds.
    """

    backbones: Sequence[str] = SEVEN
    """Names, or `module:Class`."""
    features: Sequence[Features] = (BASE, *VARIANTS)
    """The baseline is always among them, and first."""
    seeds: int = 5
    folds: int = 3
    options: FitOptions = field(default_factory=FitOptions)
    """Of every fit but for the backbone and the seed."""
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By backbone, values of its config that differ from its defaults."""
    sequence_length: int | None = None
    """Recent behaviors that every backbone sees; None: as many as it sees by default."""
    with_final: bool = True
    """Whether the final block is fitted: not while something is chosen."""

    def __post_init__(self) -> None:
        for name in self.backbones:
            backbone_reference(name)
        unknown = [name for name in self.features if name not in get_args(Features)]
        if unknown:
            raise ConfigError(f"features {unknown[0]!r} are unknown. Known: {', '.join(get_args(Features))}.")
        if list(self.features[:1]) != [BASE]:
            raise ConfigError(f"features: the first are {BASE}, which the others are compared with.")
        check_folds(self.folds)
        if self.seeds < LEAST_PAIRS:
            raise ConfigError(f"--seeds {self.seeds}: a paired t-test needs {LEAST_PAIRS} seeds or more.")

    @property
    def variants(self) -> tuple[Features, ...]:
        """The feature sets that are compared with the baseline."""
        return tuple(name for name in self.features if name != BASE)

    def options_of(self, backbone: str) -> FitOptions:
        """Return the options of a backbone's fits, but for the seed."""
        options = with_backbone(self.options, reference=backbone_reference(backbone))
        length = options.sequence_length if self.sequence_length is None else self.sequence_length
        return replace(options, sequence_length=length, backbone_config=dict(self.configs.get(backbone, {})))

    def identity(self, samples: Samples) -> dict[str, Any]:
        """Return what all fits of a comparison have in common."""
        options = {name: value for name, value in self.options.to_json().items() if name not in SINGLE}
        return {"samples": samples.fingerprint, "like_above": samples.like_above, "folds": self.folds, **options}


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One fit."""

    features: Features
    block: str
    backbone: str
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Fitted:
    """What came of one fit."""

    logits: npt.NDArray[np.float32]
    """Of the block's test slice, in its order."""
    facts: Mapping[str, Any]
    """`validation_auc`, `best_epoch`, `epochs` and `seconds`."""


class Fits:
    """Makes the fits of a comparison, or finds them in its folder; holds the inputs of the block last asked for."""

    def __init__(self, comparison: Comparison, *, samples: Mapping[Features, Samples], folder: Path) -> None:
        """Take the samples of every feature set.

        Raises:
            DataSetError: see `blocks`, or a part of a block has one class only.
        """
        self.comparison, self.samples, self.folder = comparison, samples, folder
        base = samples[BASE]
        found = blocks(base.times, folds=comparison.folds)
        self.blocks: dict[str, Block] = {one.name: one for one in found if comparison.with_final or not one.is_final}
        for name, block in self.blocks.items():
            called = "the final block" if block.is_final else name
            check_classes(base.labels, split=block.split, like_above=base.like_above, block=called)
        self._last: tuple[tuple[Features, str, int], Prepared] | None = None

    def tasks(self) -> list[Task]:
        """Return all fits, those of one block and feature set together."""
        chosen = self.comparison
        every = product(chosen.features, self.blocks, chosen.backbones, range(chosen.seeds))
        return [Task(features=name, block=block, backbone=one, seed=seed) for name, block, one, seed in every]

    def options(self, task: Task) -> FitOptions:
        """Return the options of a fit."""
        return replace(self.comparison.options_of(task.backbone), seed=task.seed)

    def __call__(self, task: Task) -> Fitted:
        """Return the fit that is kept, else make and keep it.

        Raises:
            LiberError: see `prepare` and `fit`.
        """
        options = self.options(task)
        prepared = self._prepared(task, options=options)
        identity = fit_identity(prepared, options=options, device=choose_device(options.device))
        path = self.folder / FITS / _file_name(task, identity={**identity, **versions()})
        kept = read_fitted(path)
        if kept is not None:
            return kept
        made = fit(prepared, options=options)
        assert made.test_logits is not None, "a fit scores its test part"
        facts = {
            "validation_auc": made.validation.auc,
            "best_epoch": made.best_epoch,
            "epochs": made.epochs,
            "seconds": made.seconds,
        }
        fitted = Fitted(logits=made.test_logits, facts=facts)
        write_fitted(path, fitted=fitted, identity=identity)
        return fitted

    def _prepared(self, task: Task, *, options: FitOptions) -> Prepared:
        key = (task.features, task.block, options.sequence_length)
        if self._last is None or self._last[0] != key:
            split = self.blocks[task.block].split
            self._last = key, prepare(self.samples[task.features], options=options, split=split)
        return self._last[1]


def run_fits(fits: Fits, *, processes: int, on_fit: Callable[[Task], None] = lambda _: None) -> dict[Task, Fitted]:
    """Make all fits that are not kept yet, `processes` at a time, and return all of them.

    Raises:
        ConfigError: a process was ended from outside.
        LiberError: see `Fits`.
    """
    found = {}
    with shared_work(fits, processes=processes, broken=BROKEN) as fitted:
        for task, one in fitted(fits.tasks()):
            found[task] = one
            on_fit(task)
    return {task: found[task] for task in fits.tasks()}


def claim_folder(folder: Path, *, identity: Mapping[str, Any]) -> None:
    """Make `folder` that of the comparison that `identity` describes, or check that it is.

    Raises:
        ArtifactError: it is of another comparison, or no folder of a comparison, or cannot be written.
    """
    path = folder / IDENTITY
    wanted = {"format_version": FORMAT_VERSION, **identity}
    try:
        if path.exists():
            found = json.loads(path.read_bytes())
            check_identity(found if isinstance(found, dict) else {}, wanted=wanted, owner=f"comparison {folder}")
            return
        if folder.exists() and not folder.is_dir():
            raise ArtifactError(f"{folder} is no folder. Name another one with --out.")
        write_atomically(path, (json.dumps(wanted, indent=2) + "\n").encode())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be used: {error}. Name another folder with --out.") from error


def write_fitted(path: Path, *, fitted: Fitted, identity: Mapping[str, Any]) -> None:
    """Keep a fit, whole or not at all."""
    facts = {"facts": json.dumps(dict(fitted.facts)), "fit": json.dumps(dict(identity))}
    write_atomically(path, array_bytes({"logits": fitted.logits}, metadata=facts))


def read_fitted(path: Path) -> Fitted | None:
    """Return the fit that was kept at `path`, None where there is none that can be read."""
    try:
        with safe_open(path, framework="numpy") as file:
            return Fitted(logits=file.get_tensor("logits"), facts=json.loads(file.metadata()["facts"]))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


def _file_name(task: Task, *, identity: Mapping[str, Any]) -> str:
    key = hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()[:16]
    backbone = task.backbone if task.backbone in BACKBONES else task.backbone.rpartition(":")[2]
    return f"{backbone}-{task.features}-{task.block.replace(' ', '-')}-seed-{task.seed}-{key}.safetensors"


BROKEN = (
    "a process of the comparison was ended from outside, perhaps for want of memory. Run it again, with fewer"
    " --processes: the fits that ended are kept."
)
