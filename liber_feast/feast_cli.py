"""What the program `feast` shows of a user's mistake: one line on stderr, as for our own errors.

Our errors are click exceptions, which the program prints as `Error: <message>`. Feast's own (a window whose start is
after its end, a value of feature_store.yaml that it refuses, a view that does not exist) leave it as tracebacks.
"""

import logging
import sys
import warnings
from pathlib import Path
from types import TracebackType

from dateutil.parser import ParserError  # type: ignore[import-untyped]
from feast.errors import FeastError
from feast.repo_config import FeastConfigError
from pydantic import ValidationError
from yaml import YAMLError  # type: ignore[import-untyped]

from liber_feast.errors import one_line

PROGRAM = "feast"
EXPERIMENTAL = "Batch feature views are experimental"


def install(program: str) -> bool:
    """Set `sys.excepthook` where the running `program` (its path) is `feast`; return whether it is.

    Also silences Feast's warning that batch feature views are experimental: a user of our views can do nothing about
    it.
    """
    if Path(program).name != PROGRAM:
        return False
    warnings.filterwarnings("ignore", message=EXPERIMENTAL, category=RuntimeWarning)
    following = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        message = user_message(error)
        if message is None:
            following(kind, error, trace)
            return
        logging.getLogger(__name__).debug("the error in full", exc_info=error)
        sys.stderr.write(f"Error: {message}\n")

    sys.excepthook = show
    return True


def user_message(error: BaseException) -> str | None:
    """Return one line for an error of Feast that a user can correct, or None for every other error."""
    if isinstance(error, FeastConfigError):
        return f"feature_store.yaml: {_refused(error)}."
    if isinstance(error, YAMLError):
        return f"feature_store.yaml is no valid YAML: {_line(error)}."
    if isinstance(error, ParserError):
        return f"{_line(error)}. Write START and END as ISO 8601, for example 2024-01-31T00:00:00."
    if isinstance(error, FeastError) or (isinstance(error, ValueError) and _was_raised_by_feast(error)):
        return _line(error)
    return None


def _refused(error: FeastConfigError) -> str:
    context = error.__context__
    if not isinstance(context, ValidationError):
        return _line(error)
    first = context.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    return f"{key}: {first['msg']}, found {first['input']!r}" if key else str(first["msg"])


def _was_raised_by_feast(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).split(".")[0] == PROGRAM


def _line(error: BaseException) -> str:
    return one_line(error) or type(error).__name__
