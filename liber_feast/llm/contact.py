"""An open backend and what is known of it: whether it is there, since when it is silent, what it refuses."""

from dataclasses import dataclass

from liber_feast.llm.chat import ChatBackend
from liber_feast.llm.fit import Fitter
from liber_feast.llm.rate_limit import RateLimiter

REFUSED_IN_ROW = 10
"""Calls refused as such without one that was ever answered, after which the server counts as refusing every call."""

PROBED_AFTER_S = 30.0
"""Silence after which one call at a time is made, until one is replied to: more would cost and say nothing."""


@dataclass(kw_only=True, slots=True)
class Contact:
    """The waves of a run share it, and the runs of a process. Times are seconds of the loop's clock."""

    backend: ChatBackend
    fitter: Fitter
    limiter: RateLimiter
    is_checked: bool
    """Whether the server was asked and can be used; if not, the first call goes alone."""
    is_proved: bool = False
    """Whether a call got a reply that is worth something."""
    is_answered: bool = False
    """Whether a call was answered, by however bad a text."""
    reply_count: int = 0
    """Times that such replies came, one or some together."""
    replied_at: float = 0.0
    """When the last did, or when the wave began if that was later."""
    silent_since: float | None = None
    """When the silence began: calls ended, and none of them with such a reply. None: there is none."""
    refused_in_row: int = 0
    """Calls that were refused as such before any was answered."""

    @property
    def is_on_trial(self) -> bool:
        """Whether nothing says yet that the server can be used."""
        return not (self.is_checked or self.is_proved)

    @property
    def window(self) -> int:
        """How many calls may be in flight."""
        return 1 if self.is_on_trial else self.backend.max_in_flight

    def begin_wave(self, *, now: float) -> None:
        """What was silent before does not try the patience of this wave."""
        self.replied_at, self.silent_since = now, None

    def note_reply(self, *, now: float, is_answer: bool) -> None:
        """Note one reply or some that came together."""
        self.is_proved = True
        self.reply_count += 1
        self.replied_at, self.silent_since = now, None
        if is_answer:
            self.is_answered, self.refused_in_row = True, 0

    def note_silence(self, *, since: float) -> None:
        """Note that calls ended without a reply, the first of which was made at `since`."""
        if self.silent_since is None:
            self.silent_since = max(self.replied_at, since)

    def is_probed(self, *, now: float) -> bool:
        """Whether it is silent for so long that one call at a time is enough to see if it is back."""
        return self.silent_since is not None and now - self.silent_since >= PROBED_AFTER_S
