"""What the calls of a process came to so far: for its progress bars and its metrics. The ledger holds the budget."""

from collections.abc import Callable
from dataclasses import dataclass

from liber_feast import metrics
from liber_feast.budget import NANODOLLARS, PlannedCall, Prices, SettledCall, cost_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Spending:
    """The calls of one learner that have ended, of both stages."""

    call_count: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    """Part of `input_tokens`."""
    failed_count: int = 0
    """Texts that could not be had."""
    dollars: float = 0.0
    """A call without an answer counts at the most that it can have cost, as in the ledger."""
    seconds: float = 0.0
    """Since the first call was prepared."""


class SpendingMeter:
    """Counts calls as they end, for `spent` and for Prometheus."""

    def __init__(self, *, model: str, prices: Prices, clock: Callable[[], float]) -> None:
        self._model, self._prices, self._clock = model, prices, clock
        self._start: float | None = None
        self._calls = self._input = self._output = self._cached = self._failed = self._spent = 0

    def start(self) -> None:
        """Start the time, if it does not run already."""
        self._start = self._clock() if self._start is None else self._start

    def call_ended(self, settled: SettledCall, *, planned: PlannedCall) -> None:
        """Count a call as the ledger settles it."""
        cost = cost_of(settled, reserved=planned.most(self._prices), prices=self._prices).nanodollars
        self._calls += 1
        self._input += settled.input_tokens
        self._output += settled.output_tokens
        self._cached += settled.cached_tokens
        self._spent += cost
        metrics.record_call(
            model=self._model,
            stage=planned.stage,
            outcome=settled.outcome,
            input_tokens=settled.input_tokens,
            cached_tokens=settled.cached_tokens,
            output_tokens=settled.output_tokens,
            seconds=settled.seconds,
            nanodollars=cost,
        )

    def retried(self, *, stage: str, reason: str) -> None:
        """Count a text that is asked for once more."""
        metrics.record_retry(model=self._model, stage=stage, reason=reason)

    def failed(self, *, stage: str) -> None:
        """Count a text that could not be had."""
        self._failed += 1
        metrics.record_failure(model=self._model, stage=stage)

    def spent(self) -> Spending:
        """Return what was counted so far."""
        return Spending(
            call_count=self._calls,
            input_tokens=self._input,
            output_tokens=self._output,
            cached_tokens=self._cached,
            failed_count=self._failed,
            dollars=self._spent / NANODOLLARS,
            seconds=0.0 if self._start is None else self._clock() - self._start,
        )
