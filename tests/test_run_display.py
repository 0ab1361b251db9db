"""What a run shows: bars with what its calls come to."""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from liber_feast import metrics
from liber_feast.errors import RetryableError
from liber_feast.llm.spending import Spending
from liber_feast.run_display import bars, exposed_metrics, postfix
from liber_feast.shortfall import alike


@dataclass(kw_only=True)
class Bar:
    """A progress bar that remembers what it was told."""

    total: int
    description: str = ""
    postfix: str = ""
    count: int = 0
    is_closed: bool = False

    def set_description(self, text: str) -> None:
        self.description = text

    def set_postfix_str(self, text: str, *, refresh: bool) -> None:
        assert not refresh  # `update` draws the bar when it is time
        self.postfix = text

    def update(self, count: int) -> None:
        self.count += count

    def close(self) -> None:
        self.is_closed = True


@dataclass(kw_only=True)
class Bars:
    """Feast's builder of bars."""

    made: list[Bar] = field(default_factory=list)

    def __call__(self, total: int) -> Bar:
        self.made.append(Bar(total=total))
        return self.made[-1]


def test_a_stage_has_a_bar_with_its_total_and_closes_the_one_before() -> None:
    made = Bars()
    with bars(made) as progress:
        progress("summaries", 3, 10)
        progress("summaries", 7, 10)
        progress("shifts", 1, None)
    first, second = made.made
    assert (first.total, first.count, first.description, first.is_closed) == (10, 10, "summaries", True)
    assert (second.total, second.count, second.is_closed, second.postfix) == (0, 1, True, "")


def test_without_a_builder_nothing_is_shown() -> None:
    with bars(None, spent=Spending) as progress:
        progress("summaries", 1, 1)


def test_bars_of_an_llm_show_what_this_run_spent() -> None:
    made = Bars()
    before = Spending(call_count=5, input_tokens=100, output_tokens=50, dollars=1.0, seconds=10.0)
    after = Spending(call_count=9, input_tokens=200, output_tokens=90, dollars=1.5, seconds=12.0, failed_count=1)
    spendings = iter([before, after])
    with bars(made, spent=lambda: next(spendings)) as progress:
        progress("summaries", 4, 4)
        progress("texts encoded", 4, 4)
    assert [bar.postfix for bar in made.made] == ["4 calls, 70 tokens/s, 1 failed, $0.5000", ""]


@pytest.mark.parametrize(
    ("now", "shown"),
    [
        (Spending(), "0 calls, 0 tokens/s"),
        (Spending(call_count=2, input_tokens=30, seconds=3.0), "2 calls, 10 tokens/s"),
        (Spending(call_count=2, dollars=0.00005, failed_count=2), "2 calls, 0 tokens/s, 2 failed, $0.0001"),
    ],
    ids=["nothing yet", "for nothing", "failures and money"],
)
def test_failures_and_money_are_shown_where_there_are_any(now: Spending, shown: str) -> None:
    assert postfix(now, before=Spending()) == shown


@dataclass(kw_only=True)
class Counted:
    """Sets the gauge to how often it was asked to, and may fail."""

    count: int = 0
    error: Exception | None = None

    def __call__(self) -> None:
        self.count += 1
        metrics.set_pending_partitions(self.count)
        if self.error is not None and self.count > 1:
            raise self.error


def pending_in(path: Path) -> float:
    (line,) = [line for line in path.read_text("utf-8").splitlines() if line.startswith("liber_pending_partitions")]
    return float(line.split()[-1])


def wait_until(is_true: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_the_text_file_and_what_is_pending_are_kept_up_to_date_while_a_run_lasts(tmp_path: Path) -> None:
    counted, path = Counted(), tmp_path / "liber.prom"
    with exposed_metrics(port=None, textfile=path, count_pending=counted, every_s=0.02):
        assert pending_in(path) >= 1
        wait_until(lambda: pending_in(path) >= 3)
    last = counted.count
    assert pending_in(path) == last > 3
    time.sleep(0.1)
    assert counted.count == last


def test_what_is_pending_is_counted_before_and_after_a_run_that_shows_it_nowhere() -> None:
    counted = Counted()
    with exposed_metrics(port=None, textfile=None, count_pending=counted):
        assert counted.count == 1
    assert counted.count == 2


@pytest.mark.parametrize(
    "error",
    [RetryableError("The memory is locked."), OperationalError("SELECT secret", {"user": "u-17"}, Exception("u-17"))],
    ids=["locked", "broken"],
)
def test_a_run_goes_on_where_its_metrics_cannot_be_shown(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    counted = Counted(error=error)
    with exposed_metrics(port=None, textfile=None, count_pending=counted, every_s=0.02):
        wait_until(lambda: counted.count > 2)
    assert len(caplog.messages) == 1, "it is said once"
    assert caplog.messages[0].startswith("metrics: ")
    assert "u-17" not in caplog.text


def test_why_metrics_cannot_be_shown_is_said_again_after_they_could(caplog: pytest.LogCaptureFixture) -> None:
    counted = Counted()
    with exposed_metrics(port=None, textfile=None, count_pending=counted, every_s=0.01):
        for times in (1, 2):
            counted.error = RetryableError("The memory is locked.")
            wait_until(lambda: len(caplog.messages) == times)  # noqa: B023
            counted.error, before = None, counted.count
            wait_until(lambda: counted.count > before + 1)  # noqa: B023
    assert caplog.messages == ["metrics: The memory is locked."] * 2


def test_a_port_that_another_command_has_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with exposed_metrics(port=port, textfile=None, count_pending=Counted()):
            pass
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"Warning: batch_engine.metrics.port: {port} cannot be listened on (Address")
    assert line.endswith("The metrics of this run are not served.")


def test_reasons_that_differ_in_numbers_alone_are_counted_together() -> None:
    reasons = {
        "prompt of 1,453 tokens does not fit 300": 3,
        "prompt of 452 tokens does not fit 300": 4,
        "answer cut off at 256 tokens": 2,
        "answer is empty": 1,
    }
    assert alike(reasons) == {
        "prompt of 452 to 1,453 tokens does not fit 300": 7,
        "answer cut off at 256 tokens": 2,
        "answer is empty": 1,
    }
    assert alike({}) == {}
