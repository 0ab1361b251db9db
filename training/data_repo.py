"""A feature repo of its own for a data set that is compared on: loaded, applied and materialized once."""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from liber_feast.config import SequenceConfig
from liber_feast.datasets.writer import DESCRIPTION
from liber_feast.errors import ArtifactError, ConfigError, MissingExtra
from liber_feast.quickstart import Steps, script_of
from liber_feast.repo import fits_prompt
from liber_feast.tensor_file import write_atomically
from training.variant_repo import LOCAL

try:
    from filelock import FileLock, Timeout
except ImportError as error:
    raise MissingExtra(package="filelock", extra="train") from error

EXTENDED = frozenset({"interest", "evidence"})
"""Blocks of the engine that keep what else the template says of them."""
READY = "ready.json"
"""The data set that the repo has, and whether it is done: a folder without this file is no repo of ours."""
FREE = "extractive"
LOCK = ".lock"
"""What the name of the folder's lock, beside it, ends in."""


def data_repo(template: Path, *, data: str, folder: Path, sequence_length: int) -> Path:
    """Return the feature repo `folder`, with the definitions of `template` and the data set `data` materialized.

    Its store shows at least `sequence_length` behaviors of a user. Where the folder is there already, nothing else is
    done; where another process makes it, it is waited for. Nothing of `template` is written to; its data stays behind.
    The texts are those of the extractive backend: an LLM's cost money, and are not written in passing.

    Raises:
        ArtifactError: `folder` has another data set, is none that was made here, or cannot be written.
        ConfigError: the template is no feature repo, or its backend is an LLM.
        StepFailed: a step failed.
    """
    with _one_at_a_time(folder):
        return _made(template, data=data, folder=folder, sequence_length=sequence_length)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other process makes the folder: one that is not ready looks as if its process had been cut off."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(folder.name + LOCK))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            sys.stderr.write(f"{folder} is made by another process: waiting for it\n")
            lock.acquire()
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def _unwritable(folder: Path, error: OSError) -> ArtifactError:
    return ArtifactError(f"{folder} cannot be written: {error.strerror or error}. Name another folder with --out.")


def _made(template: Path, *, data: str, folder: Path, sequence_length: int) -> Path:
    if folder.exists():
        made = state_of(folder)
        if made is None:
            raise ArtifactError(f"{folder} exists and is of no comparison. Name another folder with --out.")
        if made["data"] != data:
            raise ArtifactError(
                f"{folder} has the data set {made['data']!r}, not {data!r}. Name another folder with --out."
            )
        if made.get("ready", True):
            _show_behaviors(folder / "feature_store.yaml", count=sequence_length)
            return folder
        try:
            shutil.rmtree(folder)  # of a run that was cut off
        except OSError as error:
            raise _unwritable(folder, error) from error
    if not (template / "feature_store.yaml").is_file():
        raise ConfigError(f"{template} is no feature repo: it has no feature_store.yaml. Name one with --repo.")
    write_atomically(folder / READY, json.dumps({"data": data, "ready": False}).encode())
    shutil.copytree(
        template, folder, ignore=shutil.ignore_patterns("data", "data-*", "__pycache__", READY), dirs_exist_ok=True
    )
    _configure(folder / "feature_store.yaml", changes=LOCAL_ENGINE)
    steps = Steps()
    command = [script_of("liber"), "load", data, "--repo", str(folder.resolve()), "--json"]
    loaded = steps.run("load", command)
    description = json.loads((folder / "data" / DESCRIPTION).read_text(encoding="utf-8"))
    changes = _for_data(loaded, scale=description["scale"])
    _configure(folder / "feature_store.yaml", changes=changes)
    _show_behaviors(folder / "feature_store.yaml", count=sequence_length)
    steps.run("apply", [script_of("feast"), "apply"], cwd=folder, is_json=False)
    window = [description["start"], description["end"]]
    steps.run("materialize", [script_of("feast"), "materialize", *window], cwd=folder, is_json=False)
    write_atomically(folder / READY, json.dumps({"data": data, "ready": True}).encode())
    return folder


def state_of(folder: Path) -> dict[str, Any] | None:
    """Return what `data_repo` said of a folder that it made: `data` and `ready`; None of any other."""
    try:
        found = json.loads((folder / READY).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "data" in found else None


LOCAL_ENGINE: Mapping[str, Any] = {"memory": LOCAL["memory"], "on_the_fly": "inline", "fusion": {"weights": None}}


def _for_data(loaded: Mapping[str, Any], *, scale: Mapping[str, float]) -> dict[str, Any]:
    """Return the engine block's keys that fit the data set."""
    behavior = {"scale": [scale["low"], scale["high"]], "like_above": scale["like_above"]}
    fits = fits_prompt(loaded["prompt"], in_use=loaded["prompt_in_use"])
    changes = {"behavior": behavior, "evidence": {"text": loaded["item_text"]}}
    return changes if fits else {**changes, "interest": {"prompt": loaded["prompt"]}}


def _show_behaviors(path: Path, *, count: int) -> None:
    """Let the store show at least `count` recent behaviors of a user."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    sequence = config["batch_engine"].get("sequence") or {}
    if sequence.get("length", SequenceConfig().length) < count:
        config["batch_engine"]["sequence"] = {**sequence, "length": count}
        write_atomically(path, yaml.safe_dump(config, sort_keys=False).encode())


def _configure(path: Path, *, changes: Mapping[str, Any]) -> None:
    """Keep everything of the copy in its own folder, and change keys of the engine block."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        block, registry = config["batch_engine"], config["registry"]
        backend = block["interest"]["backend"]
        config["registry"] = (
            {**registry, "path": LOCAL["registry"]} if isinstance(registry, dict) else LOCAL["registry"]
        )
        config["online_store"] = {"type": "sqlite", "path": LOCAL["online"]}
        block |= {name: value for name, value in changes.items() if name not in EXTENDED}
        for name in EXTENDED & changes.keys():
            if (given := block.get(name, {})) is not None:  # `evidence: null` leaves it out
                block[name] = {**given, **changes[name]}
        block.pop("metrics", None)
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be used for a data set of its own: {error}.") from error
    if backend != FREE:
        raise ConfigError(
            f"{path}: the texts of `interest.backend: {backend}` cost money. Load and materialize the data set"
            " yourself, and compare with --repo alone."
        )
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
