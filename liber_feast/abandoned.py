"""Folders that a process makes under a hidden name until they are whole, and what killed processes left of them."""

import os
import shutil
from pathlib import Path


def remove_abandoned(folder: Path, *, prefix: str) -> None:
    """Remove the folders `<prefix><process number>` of processes that no longer run, and of this one."""
    for left in folder.glob(f"{prefix}*"):
        number = left.name.removeprefix(prefix)
        if number.isdecimal() and (int(number) == os.getpid() or not _is_running(int(number))):
            shutil.rmtree(left)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):  # no process can have so large a number
        return False
    except PermissionError:
        return True
    return True
