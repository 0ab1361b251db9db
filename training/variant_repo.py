"""A copy of a feature repo whose partitions have another size, materialized from the same tables."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from liber_feast.datasets.writer import DESCRIPTION, TABLES
from liber_feast.errors import ConfigError, StoreNotReady
from liber_feast.quickstart import Steps, script_of

LOCAL = {"memory": "sqlite:///data/memory.db", "registry": "data/registry.db", "online": "data/online.db"}
"""Where a copy keeps its own, whatever the repo uses."""


@contextmanager
def repo_with_partitions(repo: Path, *, size: int) -> Iterator[Path]:
    """Give a temporary copy of `repo` with partitions of `size` behaviors, applied and materialized by its backend.

    Nothing of `repo` is written to; of its data the tables that `liber load` wrote are copied.

    Raises:
        StoreNotReady: `liber load` wrote no tables there.
        ConfigError: its feature_store.yaml cannot be read.
        StepFailed: `feast apply` or `feast materialize` failed.
    """
    with tempfile.TemporaryDirectory(prefix=f"partitions-of-{size}-") as folder:
        copy = Path(folder) / "feature_repo"
        window = _copy(repo, copy)
        configure_copy(copy / "feature_store.yaml", size=size)
        steps = Steps()
        steps.run("apply", [script_of("feast"), "apply"], cwd=copy, is_json=False)
        steps.run("materialize", [script_of("feast"), "materialize", *window], cwd=copy, is_json=False)
        yield copy


def _copy(repo: Path, copy: Path) -> tuple[str, str]:
    """Copy definitions and tables; return the window that covers the data set."""
    description = repo / "data" / DESCRIPTION
    if not description.is_file():
        raise StoreNotReady(
            f"{repo}: `liber load` wrote no tables there ({description} is missing), so there can be no partitions of"
            " another size. Leave out the variants `partition_...`."
        )
    shutil.copytree(repo, copy, ignore=lambda folder, names: _passed_over(Path(folder), names, repo=repo))
    found = json.loads(description.read_text(encoding="utf-8"))
    return found["start"], found["end"]


def _passed_over(folder: Path, names: list[str], *, repo: Path) -> set[str]:
    if folder == repo:
        return {name for name in names if name == "__pycache__" or name.startswith("data-")}
    return {name for name in names if name not in (*TABLES, DESCRIPTION)} if folder == repo / "data" else set()


def configure_copy(path: Path, *, size: int) -> None:
    """Let the feature_store.yaml of a copy keep everything in its own folder, with partitions of `size`.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        block = config["batch_engine"]
        registry = config["registry"]
        config["registry"] = (
            {**registry, "path": LOCAL["registry"]} if isinstance(registry, dict) else LOCAL["registry"]
        )
        config["online_store"] = {"type": "sqlite", "path": LOCAL["online"]}
        block |= {"memory": LOCAL["memory"], "partition": {"condition": "count", "size": size}, "on_the_fly": "inline"}
        block |= {"fusion": {"weights": None}}
        block.pop("metrics", None)
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be used for partitions of another size: {error}.") from error
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
