"""A training run folder: what `python -m training fit` exports and serving loads. JSON and safetensors, no pickle.

| file | what |
| --- | --- |
| config.json | the backbone (`module:Class`) and its config, features, feature services, versions, seed, hashes; the |
| | options of the fit, the git revision and the package versions it was made with |
| model.safetensors | the weights |
| inputs.json, inputs.safetensors | the `InputSpec`: vocabularies and scales, the item table's arrays |
| fusion/ | with LIBER: the fusion weights that `liber fuse` publishes (see `liber_feast.fusion`) |
| metrics.json | the figures of the fit |
| curves.json, curves.png | loss by step, and the looks at the validation part |

Loading imports the class that config.json names, so a run folder is to be trusted as code is.
"""

import hashlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as parse_arrays
from safetensors.numpy import save as array_bytes
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as tensor_bytes
from torch import Tensor, nn

from liber_feast.errors import ArtifactError, ConfigError, one_line
from liber_feast.inputs import Batch, InputShape, InputSpec, ItemTable

FORMAT_VERSION = 4
CONFIG, METRICS, INPUTS = "config.json", "metrics.json", "inputs.json"
MODEL_TENSORS, INPUT_TENSORS, FUSION_FOLDER = "model.safetensors", "inputs.safetensors", "fusion"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """What a run folder says of itself in config.json, beside the hashes of its files."""

    backbone: str
    """`module:Class` of the backbone."""
    backbone_config: Mapping[str, Any]
    features: str
    """`baseline`, `liber`, `evidence`, `liber+evidence` or `kar`."""
    feature_service: str
    """What serving reads."""
    training_service: str
    """What the samples were built from."""
    encoder_version: str | None
    """Version of the partition vectors; None without LIBER."""
    fusion_version: str | None
    """Version of the run's own fusion weights; None without LIBER."""
    item_encoder_version: str | None
    """Version of the vectors of items and evidence; None without item texts."""
    seed: int
    like_above: float
    data_fingerprint: str
    """Hash of the behaviors that the samples are."""
    service_schema: Mapping[str, str] | None = None
    """The type of each feature of the service that serving reads, by `view:feature`; None where training had none."""
    service_schema_hash: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Artifact:
    """A loaded run: the model is on the CPU, in evaluation mode."""

    name: str
    folder: Path
    facts: RunFacts
    spec: InputSpec
    model: nn.Module

    @property
    def backbone(self) -> str:
        return self.facts.backbone

    @property
    def feature_service(self) -> str:
        return self.facts.feature_service

    @property
    def fusion_version(self) -> str | None:
        return self.facts.fusion_version

    def score(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Return the probabilities (B,) that each sample of `spec.encode`'s arrays is a like."""
        with torch.inference_mode():
            logits: Tensor = self.model(to_tensors(batch))
            return cast("npt.NDArray[np.float32]", torch.sigmoid(logits).numpy())


def to_tensors(batch: Batch, *, device: torch.device | None = None) -> dict[str, Tensor]:
    """Return the arrays as tensors of the same types; on the CPU they share memory."""
    return {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in batch.items()}


def find_class(reference: str) -> type[nn.Module]:
    """Return the backbone class `module:Class`, which has a config class as `Config`.

    Raises:
        ConfigError: no such module or class, or a class that is no backbone.
    """
    module_name, _, class_name = reference.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"backbone {reference!r} cannot be imported: {error}. It is named package.module:Class, where `import"
            " package.module` works."
        ) from error
    if not (isinstance(found, type) and issubclass(found, nn.Module) and hasattr(found, "Config")):
        raise ConfigError(f"backbone {reference!r} is no torch.nn.Module with a config dataclass `Config`.")
    return found


def build_backbone(reference: str, *, shape: InputShape, config: Mapping[str, Any]) -> nn.Module:
    """Return an untrained backbone of `shape` with `config`'s values in its config class.

    Raises:
        ConfigError: see `find_class`; or a key that the config class does not know.
    """
    kind = cast("Any", find_class(reference))
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
    try:
        chosen = kind.Config(**values)
    except TypeError as error:
        raise ConfigError(f"backbone {reference!r}: its config does not fit: {error}.") from error
    return cast("nn.Module", kind(shape, config=chosen))


def write_artifact(
    folder: Path,
    *,
    facts: RunFacts,
    spec: InputSpec,
    model: nn.Module,
    metrics: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write what is loaded and the metrics into `folder`, which exists and which nobody reads yet.

    `extra` is kept in config.json, for people and for training; it must be JSON itself.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    written = {
        MODEL_TENSORS: tensor_bytes(tensors),
        INPUT_TENSORS: array_bytes(_item_arrays(spec.items)),
        INPUTS: _json_bytes(spec.to_json()),
        METRICS: _json_bytes(metrics),
    }
    for name, content in written.items():
        (folder / name).write_bytes(content)
    hashes = {name: _hash(content) for name, content in written.items() if name != METRICS}
    config = {**(extra or {}), "format_version": FORMAT_VERSION, **asdict(facts), "files": hashes}
    (folder / CONFIG).write_bytes(_json_bytes(config))


def load_artifact(folder: Path) -> Artifact:
    """Return the run in `folder`.

    Raises:
        ArtifactError: a file is missing, altered, of another format version or does not fit the backbone.
    """
    config = _parse_json(_read(folder, CONFIG), path=folder / CONFIG)
    if config.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{folder / CONFIG} is not of format version {FORMAT_VERSION}. Fit again, or use the release that wrote it."
        )
    files = {name: _verified(folder, name, config=config) for name in (MODEL_TENSORS, INPUTS, INPUT_TENSORS)}
    try:
        facts = RunFacts(**{name: config[name] for name in RunFacts.__dataclass_fields__ if name in config})
        arrays = parse_arrays(files[INPUT_TENSORS])
        items = ItemTable(
            ids=(),
            times=arrays["item_times"],
            codes=arrays["item_codes"],
            numbers=arrays["item_numbers"],
            vectors=arrays.get("item_vectors"),
        )
        spec = InputSpec.from_json(_parse_json(files[INPUTS], path=folder / INPUTS), items=items)
        model = build_backbone(facts.backbone, shape=spec.shape, config=facts.backbone_config)
        model.load_state_dict(parse_tensors(files[MODEL_TENSORS]))
    except (KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ArtifactError(f"{folder}: the run cannot be used: {one_line(error)}. Fit it again.") from error
    except ConfigError as error:
        raise ArtifactError(f"{folder / CONFIG}: {error.message}") from error
    return Artifact(name=folder.resolve().name, folder=folder, facts=facts, spec=spec, model=model.eval())


def _item_arrays(items: ItemTable) -> dict[str, npt.NDArray[Any]]:
    arrays: dict[str, npt.NDArray[Any]] = {
        "item_codes": items.codes,
        "item_numbers": items.numbers,
        "item_times": items.times,
    }
    return arrays if items.vectors is None else {**arrays, "item_vectors": items.vectors}


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{folder / name} cannot be read ({error.strerror}): {folder} is no complete training run."
            " Run `python -m training fit`."
        ) from error


def _verified(folder: Path, name: str, *, config: Mapping[str, Any]) -> bytes:
    content = _read(folder, name)
    hashes = config.get("files")
    if not isinstance(hashes, dict) or hashes.get(name) != _hash(content):
        raise ArtifactError(f"{folder / name} was altered: its hash is not the one in {CONFIG}. Fit the run again.")
    return content


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _json_bytes(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def _parse_json(content: bytes, *, path: Path) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except ValueError as error:
        raise ArtifactError(f"{path} is no JSON: {one_line(error)}.") from error
    if not isinstance(document, dict):
        raise ArtifactError(f"{path} is no JSON object.")
    return document
