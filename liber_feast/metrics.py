"""Prometheus metrics of LLM calls. Labels are models, stages and fixed words: no user, no text, no free reason.

They stand in the client library's default registry, which `feast serve --metrics` shows; `serve` and `write_textfile`
show them where that does not run. Importing Feast switches the library to files shared between processes, and has to
come before this module where Feast's server runs; it does there.
"""

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    start_http_server,
    write_to_textfile,
)
from prometheus_client.registry import Collector

from liber_feast.budget import NANODOLLARS, CallOutcome
from liber_feast.errors import ConfigError

SECONDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 120.0)
"""Upper bounds of the histogram of call seconds."""

OURS = CollectorRegistry()
"""Our metrics alone: those of the process would clash with the ones of a node exporter that reads the text file."""

_CALLS = Counter("liber_llm_calls", "Calls to an LLM that ended.", ("model", "stage", "outcome"), registry=OURS)
_TOKENS = Counter(
    "liber_llm_tokens", "Tokens of answered calls; cached are part of input.", ("model", "stage", "kind"), registry=OURS
)
_SECONDS = Histogram(
    "liber_llm_call_seconds", "Seconds of answered calls.", ("model", "stage"), buckets=SECONDS, registry=OURS
)
_RETRIES = Counter(
    "liber_llm_retries", "Texts asked for once more, by why.", ("model", "stage", "reason"), registry=OURS
)
_FAILURES = Counter("liber_llm_failures", "Texts that could not be had.", ("model", "stage"), registry=OURS)
_CACHE_HITS = Counter(
    "liber_llm_cache_hits", "Answered calls with tokens in the prefix cache.", ("model", "stage"), registry=OURS
)
_DOLLARS = Counter("liber_llm_dollars", "Dollars spent, as the ledger counts them.", ("model", "stage"), registry=OURS)
_PENDING = Gauge(
    "liber_pending_partitions",
    "Sealed partitions that wait for a text.",
    registry=OURS,
    multiprocess_mode="mostrecent",
)
for _metric in (_CALLS, _TOKENS, _SECONDS, _RETRIES, _FAILURES, _CACHE_HITS, _DOLLARS, _PENDING):
    REGISTRY.register(_metric)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answered:
    """The series of answered calls of one model and stage; finding one by its labels costs more than counting."""

    input: Counter
    cached: Counter
    output: Counter
    seconds: Histogram
    cache_hits: Counter


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsServer:
    """A running HTTP server; `close` stops it."""

    port: int
    close: Callable[[], None]


def record_call(
    *,
    model: str,
    stage: str,
    outcome: CallOutcome,
    input_tokens: int = 0,
    cached_tokens: int = 0,
    output_tokens: int = 0,
    seconds: float = 0.0,
    nanodollars: int = 0,
) -> None:
    """Count a call that ended; tokens and seconds count where it was answered, whether or not the text was of use."""
    _calls(model, stage, outcome).inc()
    if nanodollars:
        _dollars(model, stage).inc(nanodollars / NANODOLLARS)
    if outcome in (CallOutcome.ANSWERED, CallOutcome.REJECTED):
        series = _answered(model, stage)
        series.input.inc(input_tokens)
        series.output.inc(output_tokens)
        series.seconds.observe(seconds)
        if cached_tokens:
            series.cached.inc(cached_tokens)
            series.cache_hits.inc()


def record_retry(*, model: str, stage: str, reason: str) -> None:
    """Count a text that is asked for once more; `reason` is `busy`, `lost`, `rejected` or `too_long`."""
    _RETRIES.labels(model, stage, reason).inc()


def record_failure(*, model: str, stage: str) -> None:
    """Count a text that could not be had."""
    _FAILURES.labels(model, stage).inc()


def set_pending_partitions(count: int) -> None:
    """Say how many sealed partitions wait for a text."""
    _PENDING.set(count)


class _Labeled(Collector):
    """Our metrics with labels of the process beside their own."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        for metric in OURS.collect():
            samples = [sample._replace(labels={**sample.labels, **self._labels}) for sample in metric.samples]
            metric.samples = samples
            yield metric


@contextmanager
def own_textfile(path: Path) -> Iterator[tuple[Path, int]]:
    """Yield a file beside `path` that no other process on this machine writes to meanwhile, and its number.

    The number is the lowest that is free, so that whoever comes after a process writes to the file of that one.

    Raises:
        ConfigError: the folder cannot be written to.
    """
    for number in count():
        lock = path.with_name(f".{path.stem}-worker-{number}.lock")
        try:
            descriptor = os.open(lock, os.O_CREAT | os.O_RDWR, 0o666)
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        try:
            yield path.with_name(f"{path.stem}-worker-{number}{path.suffix}"), number
        finally:
            os.close(descriptor)
        return


def write_textfile(path: Path, *, labels: Mapping[str, str] | None = None) -> None:
    """Write our metrics for a node exporter's text file collector; a reader never sees half a file.

    `labels` tell them from those of another process, whose file the collector reads too.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        write_to_textfile(str(path), _Labeled(labels) if labels else OURS)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"batch_engine.metrics.textfile: {path} cannot be written ({error.strerror}). Check the folder.")


def serve(port: int) -> MetricsServer:
    """Serve the metrics of this process over HTTP, from a thread, until it ends or the server is closed.

    Raises:
        ConfigError: the port is taken or not allowed.
    """
    try:
        server, thread = start_http_server(port)
    except OSError as error:
        raise ConfigError(
            f"batch_engine.metrics.port: {port} cannot be listened on ({error.strerror}). Choose a free port."
        ) from error

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return MetricsServer(port=server.server_port, close=close)


@lru_cache
def _calls(model: str, stage: str, outcome: CallOutcome) -> Counter:
    return _CALLS.labels(model, stage, outcome.value)


@lru_cache
def _dollars(model: str, stage: str) -> Counter:
    return _DOLLARS.labels(model, stage)


@lru_cache
def _answered(model: str, stage: str) -> _Answered:
    return _Answered(
        input=_TOKENS.labels(model, stage, "input"),
        cached=_TOKENS.labels(model, stage, "cached"),
        output=_TOKENS.labels(model, stage, "output"),
        seconds=_SECONDS.labels(model, stage),
        cache_hits=_CACHE_HITS.labels(model, stage),
    )
