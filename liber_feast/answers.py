"""What Feast's feature server answers to errors of ours: 422 where the same rows fail again, 503 where they may not.

The server asks errors of Feast for their status and answers every other one with 500. A producer cannot tell from
that whether to send its rows again.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from feast.errors import FeastError

from liber_feast.errors import InvalidBehaviors, LiberError, RetryableError

STATUS: dict[type[LiberError], int] = {InvalidBehaviors: 422, RetryableError: 503}


@contextmanager
def with_status() -> Iterator[None]:
    """Raise errors of ours that have a status as errors of Feast, too; they stay what they were.

    Raises:
        LiberError: what the block raised.
    """
    try:
        yield
    except LiberError as error:
        status = next((number for kind, number in STATUS.items() if isinstance(error, kind)), None)
        if status is None or isinstance(error, FeastError):
            raise
        both = _kind(type(error), status)
        answer = both.__new__(both)
        answer.args = error.args
        answer.__dict__.update(error.__dict__)
        raise answer.with_traceback(error.__traceback__) from error.__cause__


def _kind(kind: type[LiberError], status: int) -> type[LiberError]:
    """Return an error class of ours that Feast's server answers with a status; it has the same name and module."""
    if kind in _KINDS:
        return _KINDS[kind]
    members = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "http_status_code": lambda _self: status,
    }
    return _KINDS.setdefault(kind, type(kind.__name__, (kind, FeastError), members))


_KINDS: dict[type[LiberError], type[LiberError]] = {}
