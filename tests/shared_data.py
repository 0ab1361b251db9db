"""Where the real data sets lie; tests that need one skip visibly where it is missing."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared(name: str) -> Path:
    """Return the folder of a shared data set, or skip the test saying which folder is missing."""
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"the data set {name} is not at {folder}")
    return folder
