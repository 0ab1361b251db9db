"""How long to wait before a call is made once more: exponential backoff with full jitter, and what the server asks."""

BASE_S, CAP_S = 1.0, 30.0
"""The longest first wait, which doubles with every attempt, and the longest of all."""

_DOUBLINGS = 16
"""More of them change nothing: the cap is reached long before."""


def wait_s(attempt_count: int, *, chance: float, retry_after_s: float | None = None) -> float:
    """Return the seconds to wait after `attempt_count` attempts (1 or more); `chance` is drawn from [0, 1).

    Retry-After is the least, however long it is: the jitter comes on top of it, so that calls refused together do not
    come back together.
    """
    jitter = chance * min(CAP_S, BASE_S * 2.0 ** min(attempt_count - 1, _DOUBLINGS))
    return jitter + max(retry_after_s or 0.0, 0.0)
