"""How a backbone is fitted: the options of a fit, checked, and as the JSON that a fit can be repeated from."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from liber_feast.errors import ConfigError, one_line
from liber_feast.evidence_rows import Match
from training.backbones import HISTORY_LENGTH, history_length
from training.data import Features

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FitOptions:
    """How a backbone is fitted.

    Raises:
        ConfigError: a value of another type, or outside its range.
    """

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
    sequence_length: int = HISTORY_LENGTH
    """Recent behaviors that the backbone sees; those that search a long history want `history_length`."""
    user_id: bool = False
    """Whether the user id is a field. It learns each user's bias and is noise for every new user."""
    id_dropout: float = 0.0
    """With the user id, the share of a step's samples whose id is hidden: at .9 it does least harm to others."""
    memory_dropout: float = 0.3
    """The share of a step's samples from which the long-term memory is hidden, where features have one."""
    match: Match = "mean"
    """How the partitions of the memory count in its match with the candidate. All but `mean` are learned, for
    experiments: they cannot be served."""
    fused_width: int = 32
    device: Device = "auto"
    precision: Precision = "auto"
    """Of the products of a training step: bfloat16 (autocast) or float32; auto is bfloat16 on a GPU. Weights are
    float32, and so is scoring."""
    threads: int = 1
    """CPU threads of a step. With one, a seed gives the same figures on every number of cores; steps of 512 samples
    gain little from more, and on a busy machine they lose much."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            _check_type(name, getattr(self, name), kind=kind)
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise ConfigError(f"option {name!r} is {getattr(self, name)}; it must be at least {least}.")
        for name in ("learning_rate", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"option {name!r} is {getattr(self, name)}; it must be 0 or more, and finite.")
        for name in ("id_dropout", "memory_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"option {name!r} is {getattr(self, name)}; it must be 0 or more, and below 1.")
        if self.id_dropout and not self.user_id:
            raise ConfigError("option 'id_dropout' hides user ids, which are no field without 'user_id' (--user-id).")

    def to_json(self) -> dict[str, Any]:
        """Return every option as JSON values."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return document


LEAST = {
    "seed": 0,
    "epochs": 1,
    "batch_size": 2,
    "looks_per_epoch": 1,
    "patience": 1,
    "sequence_length": 1,
    "fused_width": 1,
    "threads": 1,
}
"""The lowest value of each count."""


def with_backbone(options: FitOptions, *, reference: str) -> FitOptions:
    """Return the options with another backbone, its default config and, unless it was chosen, its length of history."""
    length = options.sequence_length
    if length == history_length(options.backbone):
        length = history_length(reference)
    return replace(options, backbone=reference, backbone_config={}, sequence_length=length)


def options_from(document: Mapping[str, Any], *, source: str) -> FitOptions:
    """Return the options that `FitOptions.to_json` wrote; what is not in `document` has its default.

    Raises:
        ConfigError: an unknown option, or a value that cannot be used; the message names `source`.
    """
    known = [option.name for option in fields(FitOptions)]
    unknown = sorted(document.keys() - set(known))
    if unknown:
        raise ConfigError(f"{source}: option {unknown[0]!r} is unknown. Known: {', '.join(known)}.")
    try:
        return FitOptions(**document)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error.message}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig:
    """What a config file says: that of a run folder, or of a search."""

    features: Features
    options: FitOptions


def read_config(path: Path) -> FitConfig:
    """Return the features and options that `path` holds under these names.

    Raises:
        ConfigError: no such file, no JSON, or without usable features and options.
    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {one_line(error)}.") from error
    found = document if isinstance(document, dict) else {}
    features, options = found.get("features"), found.get("options")
    if not (features in get_args(Features) and isinstance(options, dict)):
        raise ConfigError(
            f"{path} names no `features` and `options` to fit by: it is neither the config.json of a run folder nor the"
            " search.json of a search that ended."
        )
    return FitConfig(features=cast("Features", features), options=options_from(options, source=str(path)))


def _check_type(name: str, value: object, *, kind: Any) -> None:
    """Check a value by its annotation; an int is a float, a bool is no int."""
    if get_origin(kind) is Literal:
        right, wanted = value in get_args(kind), f"one of {', '.join(get_args(kind))}"
    elif get_origin(kind) is not None:
        right, wanted = isinstance(value, Mapping), "an object"
    else:
        allowed = (int, float) if kind is float else kind
        right = isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))
        wanted = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}[kind]
    if not right:
        raise ConfigError(f"option {name!r} is {value!r}; it must be {wanted}.")
