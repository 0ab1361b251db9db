"""Folders for what is made once and copied by tests."""

import atexit
import shutil
import tempfile
from pathlib import Path


def lasting_folder() -> Path:
    """Return a new folder that lasts as long as this process."""
    folder = Path(tempfile.mkdtemp(prefix="liber-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
