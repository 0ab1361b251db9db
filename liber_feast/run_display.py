"""What a run shows while it lasts: bars for people, metrics for Prometheus."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from tqdm import tqdm

from liber_feast import metrics
from liber_feast.errors import ConfigError, LiberError
from liber_feast.interest import Progress
from liber_feast.llm.spending import Spending
from liber_feast.pace import Exposed

LLM_STAGES = ("summaries", "shifts")
"""As `interest.learn` names them to a bar."""

REFRESH_S = 15.0
"""Seconds between two looks at what is pending, while a run lasts; more where a look takes long."""
SHARE = 20
"""So many times the seconds of a look pass before the next one."""

logger = logging.getLogger(__name__)


@contextmanager
def bars(builder: Callable[[int], Any] | None, *, spent: Callable[[], Spending] | None = None) -> Iterator[Progress]:
    """One of Feast's bars at a time: a stage opens its own and closes the one before.

    With `spent` a bar also shows what the calls of this run come to.
    """
    bar: Any = None
    shown = ""
    before = spent() if spent else Spending()

    def progress(stage: str, count: int, total: int | None) -> None:
        nonlocal bar, shown
        if builder is None:
            return
        if stage != shown:
            if bar is not None:
                bar.close()
            bar, shown = builder(total or 0), stage
            bar.set_description(stage)
        if spent is not None and stage in LLM_STAGES:
            bar.set_postfix_str(postfix(spent(), before=before), refresh=False)
        bar.update(count)

    try:
        yield progress
    finally:
        if bar is not None:
            bar.close()


def postfix(now: Spending, *, before: Spending) -> str:
    """Return calls, tokens a second, failures and money since `before`, the last two where there are any."""
    calls, failed = now.call_count - before.call_count, now.failed_count - before.failed_count
    tokens = now.input_tokens + now.output_tokens - before.input_tokens - before.output_tokens
    seconds, dollars = now.seconds - before.seconds, now.dollars - before.dollars
    parts = [f"{calls} calls", f"{tokens / seconds if seconds > 0 else 0:.0f} tokens/s"]
    parts += [f"{failed} failed"] if failed else []
    parts += [f"${dollars:.4f}"] if dollars > 0 else []
    return ", ".join(parts)


@contextmanager
def exposed_metrics(
    *,
    port: int | None,
    textfile: Path | None,
    count_pending: Callable[[], None],
    labels: Mapping[str, str] | None = None,
    every_s: float = REFRESH_S,
) -> Iterator[None]:
    """Keep our metrics up to date for as long as the block lasts, in `textfile` too, and serve them on `port`.

    `count_pending` sets the gauges of what the memory holds, `labels` are added to all that is in the file. It is
    called before and after the block, and from another thread every `every_s` seconds. A port that cannot be listened
    on is a warning on stderr: another command of the same repo may have it.

    Raises:
        ConfigError: the file cannot be written; the block was not entered.
    """

    def show() -> None:
        count_pending()
        if textfile is not None:
            metrics.write_textfile(textfile, labels=labels)

    show()
    with _served(port), _refreshed(show, every_s=every_s):
        yield


@contextmanager
def _served(port: int | None) -> Iterator[None]:
    server = None
    try:
        server = None if port is None else metrics.serve(port)
    except ConfigError as error:
        tqdm.write(f"Warning: {error.message} The metrics of this run are not served.", file=sys.stderr)
    try:
        yield
    finally:
        if server is not None:
            server.close()


@contextmanager
def _refreshed(show: Callable[[], None], *, every_s: float) -> Iterator[None]:
    is_over, refresh = Event(), _Refresh(show)

    def refresh_often() -> None:
        seconds = 0.0
        while not is_over.wait(max(every_s, SHARE * seconds)):
            start = time.monotonic()
            refresh()
            seconds = time.monotonic() - start

    thread = Thread(target=refresh_often, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        refresh()


class _Refresh:
    """Counts and writes once a call; no run ends because its metrics cannot be shown.

    Why they cannot is said once, and again only after they could.
    """

    def __init__(self, show: Callable[[], None]) -> None:
        self._show = show
        self._is_failing = False

    def __call__(self) -> None:
        try:
            self._show()
        except LiberError as error:
            self._say(error.message)
        except SQLAlchemyError as error:
            self._say(f"the memory cannot be read ({type(error).__name__})")
        else:
            self._is_failing = False

    def _say(self, why: str) -> None:
        if not self._is_failing:
            logger.warning("metrics: %s", why)
        self._is_failing = True


@contextmanager
def worker_metrics(
    exposed: Exposed, *, number: int, count_pending: Callable[[], None], every_s: float = REFRESH_S
) -> Iterator[None]:
    """Show the metrics of one worker process of several: in a file of its own, on the port and its number.

    A file that cannot be written is a warning on stderr, as a port is: texts are worth more than their count.
    """
    port = None if exposed.port is None else exposed.port + number
    with ExitStack() as stack:
        textfile, labels = None, {"worker": str(number)}
        if exposed.textfile is not None:
            try:
                textfile, free = stack.enter_context(metrics.own_textfile(exposed.textfile))
                labels = {"worker": str(free)}
                metrics.write_textfile(textfile, labels=labels)
            except ConfigError as error:
                textfile = None
                tqdm.write(f"Warning: {error.message} The metrics of this worker are not written.", file=sys.stderr)
        shown = exposed_metrics(
            port=port, textfile=textfile, count_pending=count_pending, labels=labels, every_s=every_s
        )
        with shown:
            yield
