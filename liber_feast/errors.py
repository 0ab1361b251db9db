"""Every error that liber_feast raises on purpose.

LiberError
├── ConfigError                 a key or value in feature_store.yaml or on the command line
├── DataSetError                a data set folder or file that cannot be read as it is
├── InvalidBehaviors            rows that break the behavior schema; nothing of their table was taken
├── OutOfOrderBehavior          a stream that is not ordered by (event_time, behavior_id)
├── BadWindow                   a materialization window that starts after its end
├── StoreNotReady               a feature repo that was never applied, loaded or materialized
├── EncoderError                model files, PCA files and their versions
├── PromptError                 a prompt template that cannot be used
├── MemoryFailure               the memory database is unusable or of another version
├── ArtifactError               a training run folder that cannot be used
├── TrackingFailure             MLflow does not take what a fit logs
├── MissingExtra                a package of an extra is not installed
├── BackendRefused              an interest backend that no further call can succeed with: key, model, address
├── PartitionsFailed            some texts could not be had; everything else was done         exit code 3
├── BudgetExhausted             the budget allows no further call; everything else was done   exit code 4
├── StoreFailure                a Delta table or online store that cannot be written: full disk, no rights
└── RetryableError              the same call may succeed later; nothing was written
    ├── BackendUnreachable      an interest backend that does not answer
    ├── MemoryAway              the database of the memory does not answer
    └── OnlineStoreAway         the online store does not answer

`feast` is a click program: being click exceptions, these end there as `Error: <message>` and exit code 1
instead of a traceback. Everywhere else they are ordinary exceptions.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from click import ClickException

if TYPE_CHECKING:
    from liber_feast.behavior import Behavior


def one_line(error: BaseException) -> str:
    """Return the message of somebody else's error as one line, to quote it in one of ours.

    Without color codes, stack frames (deltalake appends them) and the dots at its end: our sentence has its own.
    """
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", str(error))
    text = re.sub(r"(?is)(?:(?:stack )?backtrace:)?\s*\n\s*0: [^\n]*\n(?:\s+at [^\n]*\n)?\s*1: .*", "", text)
    return printable(text).rstrip(". ")


def printable(text: str) -> str:
    """Return a text as a message may quote it: one line, and every character that is not printed by its number.

    NUL ends lines of some logs, half a surrogate pair cannot be written at all, and others turn what follows around.
    """
    line = " ".join(text.split())
    return line if line.isprintable() else "".join(one if one.isprintable() else _number(one) for one in line)


def _number(character: str) -> str:
    return character.encode("unicode_escape").decode()


class LiberError(ClickException):
    """Base of all our errors; the message says what, where and what to do."""

    exit_code = 1


@contextmanager
def ended_in_one_line() -> Iterator[None]:
    """Let an error of ours end the process: one line on stderr, and its exit code."""
    try:
        yield
    except LiberError as error:
        sys.stderr.write(f"Error: {error.format_message()}\n")
        sys.exit(error.exit_code)


class ConfigError(LiberError):
    """A configuration key or value that cannot be used.

    Not a ValueError: pydantic would fold it into a ValidationError of many lines.
    """


class DataSetError(LiberError, ValueError):
    """A data set that is missing, truncated, edited or of an unknown format."""


class InvalidBehaviors(LiberError, ValueError):
    """Behaviors that break the schema. `column` and `row_count` say which and how many rows."""

    def __init__(self, message: str, *, column: str | None = None, row_count: int = 0) -> None:
        self.column, self.row_count = column, row_count
        super().__init__(message)


class OutOfOrderBehavior(LiberError, ValueError):
    """A stream whose behavior `later` belongs before the behavior `earlier` that it follows."""

    def __init__(self, *, earlier: "Behavior", later: "Behavior") -> None:
        self.earlier, self.later = earlier, later
        super().__init__(
            f"user {later.user_id!r}: behavior {later.behavior_id!r} at {later.event_time.isoformat()} follows"
            f" {earlier.behavior_id!r} at {earlier.event_time.isoformat()}."
            " Sort the stream by (event_time, behavior_id)."
        )


class BadWindow(LiberError, ValueError):
    """A window that starts after its end; a window of one instant is allowed."""


class StoreNotReady(LiberError):
    """The feature repo lacks a step: load, apply or materialize."""


class EncoderError(LiberError):
    """The text encoder's files are missing, altered or of another version."""


class PromptError(LiberError, ValueError):
    """A prompt template that is missing, malformed or lacks a placeholder."""


class MemoryFailure(LiberError):
    """The memory database cannot be opened, or was written by another version."""


class ArtifactError(LiberError):
    """A training run folder that is missing, incomplete or does not fit the store."""


class TrackingFailure(LiberError):
    """MLflow does not answer, or does not take what a fit logs."""


class MissingExtra(LiberError, ImportError):
    """A package of an optional extra is not installed."""

    def __init__(self, *, package: str, extra: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(f"{package} is not installed. Run: pip install 'liber-feast[{extra}]'")


class RetryableError(LiberError):
    """The same call may succeed later; nothing was written."""


class BackendRefused(LiberError):
    """An interest backend that refuses every call: a wrong key, an unknown model, a wrong address."""


class PartitionsFailed(LiberError):
    """A run in which `failed_count` texts could not be had; everything else was kept and published."""

    exit_code = 3

    def __init__(self, message: str, *, failed_count: int) -> None:
        self.failed_count = failed_count
        super().__init__(message)


class BudgetExhausted(LiberError):
    """The budget allows no further call; what was learned is kept and published, the rest is pending.

    `limit` names the limit that was reached, for example `the 2.00 dollars of this day`.
    """

    exit_code = 4

    def __init__(self, message: str, *, limit: str) -> None:
        self.limit = limit
        super().__init__(message)


class BackendUnreachable(RetryableError):
    """An interest backend that does not answer; the run may succeed later, what it kept stays."""


class StoreFailure(LiberError):
    """A Delta table or online store that cannot be written as things are: a full disk, a folder without rights."""


class MemoryAway(RetryableError):
    """The database of the memory does not answer: it restarts, is gone, or takes no more connections."""


class OnlineStoreAway(RetryableError):
    """The online store does not answer; what is missing there is written when it does."""
