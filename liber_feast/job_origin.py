"""The origin of a feature repo's job: its configuration, its prompt and its feature views."""

import hashlib
import time
from collections.abc import Callable, Collection, Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from feast import RepoConfig
from feast.errors import FeastError
from feast.infra.registry.base_registry import BaseRegistry
from sqlalchemy.exc import SQLAlchemyError

from liber_feast.origin import CONFIGURATION, PROMPT, VIEWS, FileContent, Origin, Part, file_stamp

REMOTE_S = 10.0
"""Seconds between two looks at a registry that is no local file; Feast's own copy of it is as old as its TTL says."""


def origin_of(config: RepoConfig, *, registry: BaseRegistry, base: Path, names: Collection[str]) -> Origin:
    """Return the origin of a job that needs the feature views `names`; `base` is the folder of the feature repo."""
    parts: dict[str, Part] = {
        CONFIGURATION: FileContent(path=base / CONFIGURATION),
        VIEWS: _part_of_views(config, registry=registry, base=base, names=names),
    }
    prompt = config.batch_engine.interest.prompt
    if prompt.endswith(".toml"):
        parts[PROMPT] = FileContent(path=base / prompt)
    return Origin(parts=parts)


def _part_of_views(config: RepoConfig, *, registry: BaseRegistry, base: Path, names: Collection[str]) -> Part:
    def definitions() -> str:
        every = registry.list_all_feature_views(config.project, allow_cache=True)
        digest = hashlib.sha256()
        for view in sorted((one for one in every if one.name in names), key=lambda one: one.name):
            digest.update(view.to_proto().spec.SerializeToString(deterministic=True))  # without times and intervals
        return digest.hexdigest()

    path = config.registry.path
    if config.registry.registry_type == "file" and "://" not in path:
        return _Definitions(read=definitions, stamp=lambda: file_stamp(base / path), refresh=registry.refresh)
    return _Definitions(read=definitions, stamp=lambda: int(time.monotonic() / REMOTE_S), refresh=lambda: None)


@dataclass(kw_only=True, slots=True)
class _Definitions:
    """The definitions of feature views as a part; they are read where the stamp has changed."""

    read: Callable[[], str]
    stamp: Callable[[], Hashable]
    refresh: Callable[[], object]
    _stamp: Hashable = field(default="none yet")
    _found: Hashable = None

    def __call__(self) -> Hashable:
        """Return a hash; the one of before where the registry cannot be read now."""
        stamp = self.stamp()
        if stamp == self._stamp:
            return self._found
        with suppress(OSError, SQLAlchemyError, FeastError):  # away or half written: the next look may read it
            self.refresh()
            self._found = self.read()
            self._stamp = stamp
        return self._found
