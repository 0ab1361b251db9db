"""What a job was opened from, and what of that is no longer as it was: a process may run for months."""

import hashlib
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

CONFIGURATION, PROMPT, VIEWS = "feature_store.yaml", "the prompt", "the feature views"
"""Parts of an origin."""
LOOK_S = 1.0
"""Seconds between two looks."""

Part = Callable[[], Hashable]
"""Tells the state of something now; equal states are the same state."""
Changes = Mapping[str, Hashable]
"""By part, the state that it has now."""


@dataclass(kw_only=True, slots=True)
class Origin:
    """Parts by name, and their states when this was made."""

    parts: Mapping[str, Part] = field(default_factory=dict)
    every_s: float = LOOK_S
    clock: Callable[[], float] = time.monotonic
    _states: dict[str, Hashable] = field(init=False)
    _changes: Changes = field(default_factory=dict)
    _looked_at: float = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._states = {name: part() for name, part in self.parts.items()}
        self._looked_at = self.clock()

    def changes(self) -> Changes:
        """Return the parts that are not as they were, as of a look that is not older than `every_s` seconds."""
        with self._lock:
            if self.parts and self.clock() - self._looked_at >= self.every_s:
                now = {name: part() for name, part in self.parts.items()}
                self._changes = {name: state for name, state in now.items() if state != self._states[name]}
                self._looked_at = self.clock()
            return self._changes


@dataclass(kw_only=True, slots=True)
class FileContent:
    """The content of a file as a part: it is read where its size or its time has changed."""

    path: Path
    _stamp: Hashable = None
    _hash: str | None = None

    def __call__(self) -> Hashable:
        """Return a hash, or None where there is no such file."""
        found = file_stamp(self.path)
        if found != self._stamp or found is None:
            self._hash = None if found is None else _content_hash(self.path)
            self._stamp = found
        return self._hash


def file_stamp(path: Path) -> Hashable:
    """Return what tells a file from another one, and from itself after a write; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _content_hash(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:  # it has gone since
        return None
