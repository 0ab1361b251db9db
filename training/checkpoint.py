"""Checkpoints: a fit that was cut off goes on as if it had not been, on the CPU to the last bit.

A checkpoint is one safetensors file with all that a fit's next steps depend on: weights, Adam's moments, the generators
of torch, the losses so far and the best look with its weights. The order of the samples follows from seed and step.
It also says which fit it is of, and serves no other.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensor_bytes
from torch import Tensor

from liber_feast.errors import ArtifactError, one_line
from liber_feast.tensor_file import write_atomically
from training.metrics import Quality
from training.options import FitOptions
from training.state import Best, FitState, Look

FORMAT_VERSION = 1
FILE = "state.safetensors"
MODEL, OPTIMIZER, BEST, RNG = "model.", "optimizer.", "best.", "rng."
START_ANEW = "Fit with the options and data that it was written with, or start anew with --overwrite."


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoints:
    """Where a fit keeps its checkpoint, and how often."""

    folder: Path
    every: int | None = None
    """Steps between two checkpoints; 0: one at every look at the validation part; None: none."""
    resume: bool = False
    """Whether to go on from the checkpoint that is there; without one the fit starts at its first step."""

    @property
    def path(self) -> Path:
        return self.folder / FILE

    def is_due(self, *, step: int, looked: bool) -> bool:
        """Return whether to write one after `step`, which `looked` at the validation part."""
        if self.every is None:
            return False
        return step % self.every == 0 if self.every else looked

    def remove(self) -> None:
        """Remove the checkpoint, what a killed process left of one, and then the folder, if nothing else is in it."""
        if not self.folder.is_dir():
            return
        for path in (self.path, *self.folder.glob(f".{FILE}.*")):
            path.unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


def fit_identity(prepared: object, *, options: FitOptions, device: torch.device) -> dict[str, Any]:
    """Return what makes a fit this one: its options, the device it came to, and a hash of all of its inputs."""
    digest = hashlib.sha256()
    for part in _parts(prepared):
        digest.update(part)
    return {**options.to_json(), "device": device.type, "inputs": digest.hexdigest()[:16]}


def check_identity(
    found: Mapping[str, Any], *, wanted: Mapping[str, Any], owner: str, remedy: str = START_ANEW
) -> None:
    """Check that what `owner` holds is of the fit that `wanted` identifies; `remedy` says what to do where it is not.

    Raises:
        ArtifactError: it is of another one; the message names the first difference.
    """
    for name, value in wanted.items():
        if found.get(name) != value:
            raise ArtifactError(
                f"{owner} is of another fit: {name} was {found.get(name)!r} and is {value!r} now. {remedy}"
            )


def _parts(value: object) -> Iterator[bytes]:
    """Yield the bytes of arrays and values in a dataclass, and in those that it holds."""
    if is_dataclass(value):
        for part in fields(value):
            yield part.name.encode()
            yield from _parts(getattr(value, part.name))
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype.str}{value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    else:
        yield repr(value).encode()


def write_checkpoint(path: Path, *, state: FitState, identity: Mapping[str, Any], device: torch.device) -> None:
    """Write `state` to `path`; a reader sees the checkpoint before, or this one, whole.

    Raises:
        ArtifactError: it cannot be written.
    """
    moments = state.optimizer.state_dict()["state"]
    tensors = {
        **{MODEL + name: tensor for name, tensor in state.model.state_dict().items()},
        **{f"{OPTIMIZER}{i}.{name}": tensor for i, kept in moments.items() for name, tensor in kept.items()},
        **{BEST + name: tensor for name, tensor in state.best.weights.items()},
        **{RNG + name: tensor for name, tensor in _generators(device).items()},
        "losses": torch.from_numpy(state.losses()),
        "best_logits": torch.from_numpy(state.best.logits),
    }
    facts = {
        "format_version": FORMAT_VERSION,
        "fit": identity,
        "step": state.step,
        "seconds": state.seconds,
        "looks": [asdict(look) for look in state.looks],
        "best": {"quality": asdict(state.best.quality), "step": state.best.step, "waited": state.best.waited},
    }
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    own = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    try:
        write_atomically(path, tensor_bytes(own, metadata={name: json.dumps(fact) for name, fact in facts.items()}))
    except OSError as error:
        raise ArtifactError(f"checkpoint {path} cannot be written: {error.strerror}.") from error


def read_checkpoint(path: Path, *, state: FitState, identity: Mapping[str, Any], device: torch.device) -> None:
    """Bring `state`, that of a fit of `identity` before its first step, to where the checkpoint is.

    Raises:
        ArtifactError: the file cannot be used, or is of another fit; the message says what differs.
    """
    facts, tensors = _load(path, device=device)
    check_identity(facts["fit"], wanted=identity, owner=f"checkpoint {path}")
    try:
        state.model.load_state_dict(_under(tensors, MODEL))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under(tensors, OPTIMIZER).items():
            number, _, key = name.partition(".")
            moments.setdefault(int(number), {})[key] = tensor
        groups = state.optimizer.state_dict()["param_groups"]
        state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        state.restore_losses(tensors["losses"].cpu().numpy())
        state.step, state.seconds = facts["step"], facts["seconds"]
        state.looks = [Look(step=look["step"], validation=Quality(**look["validation"])) for look in facts["looks"]]
        state.best = Best(
            quality=Quality(**facts["best"]["quality"]),
            step=facts["best"]["step"],
            waited=facts["best"]["waited"],
            weights=_under(tensors, BEST),
            logits=tensors["best_logits"].cpu().numpy(),
        )
        _restore_generators(_under(tensors, RNG), device=device)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _unusable(path, error) from error


def _load(path: Path, *, device: torch.device) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            facts = {name: json.loads(fact) for name, fact in (file.metadata() or {}).items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except (OSError, SafetensorError, ValueError) as error:
        raise _unusable(path, error) from error
    if facts.get("format_version") != FORMAT_VERSION or not isinstance(facts.get("fit"), dict):
        raise ArtifactError(f"{path} is no checkpoint of format version {FORMAT_VERSION}. Start anew with --overwrite.")
    return facts, tensors


def _unusable(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(f"checkpoint {path} cannot be used: {one_line(error)}. Start anew with --overwrite.")


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _generators(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's generators that a fit on `device` draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _restore_generators(states: Mapping[str, Tensor], *, device: torch.device) -> None:
    torch.set_rng_state(states["cpu"].cpu())
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
