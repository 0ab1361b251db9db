"""Requests and tokens per minute: no minute, wherever it begins, holds more than the limits allow.

The limits hold for one process, from its start. A server that counts by the clock's minutes, or fills a bucket that
holds a minute's worth, never has to refuse a call that keeps them.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

MINUTE_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RateLimits:
    """The most that is sent in a minute, each at least 1; None: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Of prompts, and the most that their answers can have: what servers count when a call comes in."""

    @property
    def is_unlimited(self) -> bool:
        """Whether nothing has to be counted."""
        return self.requests_per_minute is None and self.tokens_per_minute is None


class RateLimiter:
    """What was sent in the last minute. Times are seconds of one clock that never runs backwards."""

    def __init__(self, limits: RateLimits) -> None:
        self._limits = limits
        self._sent: deque[tuple[float, int]] = deque()
        self._tokens = 0

    def admitted(self, sizes: Sequence[int], *, now: float) -> int:
        """Return how many of the next calls, by their tokens, may go now: the first of them.

        A call larger than a whole minute's tokens goes when nothing was sent for a minute, and alone.
        """
        if self._limits.is_unlimited:
            return len(sizes)
        self._forget(now)
        count, tokens = len(self._sent), self._tokens
        for position, size in enumerate(sizes):
            if not self._fits(size, count=count, tokens=tokens):
                return position
            count, tokens = count + 1, tokens + size
        return len(sizes)

    def note(self, sizes: Sequence[int], *, now: float) -> None:
        """Count calls that go now."""
        if not self._limits.is_unlimited:
            self._sent.extend((now, size) for size in sizes)
            self._tokens += sum(sizes)

    def free_time(self, size: int, *, now: float) -> float:
        """Return when a call of so many tokens may go; `now` or earlier: at once."""
        free, count, tokens = now, len(self._sent), self._tokens
        for sent_time, sent_size in self._sent:
            if self._fits(size, count=count, tokens=tokens):
                break
            free, count, tokens = sent_time + MINUTE_S, count - 1, tokens - sent_size
        return free

    def _fits(self, size: int, *, count: int, tokens: int) -> bool:
        requests, most = self._limits.requests_per_minute, self._limits.tokens_per_minute
        if requests is not None and count >= requests:
            return False
        return most is None or tokens + size <= most or count == 0

    def _forget(self, now: float) -> None:
        while self._sent and self._sent[0][0] + MINUTE_S <= now:
            self._tokens -= self._sent.popleft()[1]
