"""Prometheus metrics: what a run counts, and where it can be read."""

import re
import socket
from pathlib import Path
from urllib.request import urlopen

import pytest
from prometheus_client import REGISTRY, generate_latest

from liber_feast import metrics
from liber_feast.budget import CallOutcome, Prices
from liber_feast.errors import ConfigError
from liber_feast.llm.chat import ErrorKind
from tests.chat_parts import (
    ANSWER,
    BAD_CALL,
    BUSY,
    EMPTY,
    LOST,
    TOO_LONG,
    Reply,
    ScriptedBackend,
    SimulatedClock,
    always,
    film_of,
    flat,
    learner_of,
    summary_requests,
)

NAMES = {
    "liber_llm_calls_total",
    "liber_llm_tokens_total",
    "liber_llm_call_seconds_count",
    "liber_llm_retries_total",
    "liber_llm_failures_total",
    "liber_llm_cache_hits_total",
    "liber_llm_dollars_total",
    "liber_pending_partitions",
}


def value(name: str, **labels: str) -> float:
    """Return a sample of the default registry; 0 where there is none."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


def ours() -> str:
    """Return our metrics as a server shows them."""
    return "\n".join(line for line in generate_latest(REGISTRY).decode().splitlines() if "liber_" in line)


def test_a_call_counts_under_its_model_stage_and_outcome() -> None:
    of = {"model": "counted-1", "stage": "summary"}
    metrics.record_call(
        **of,
        outcome=CallOutcome.ANSWERED,
        input_tokens=100,
        cached_tokens=40,
        output_tokens=7,
        seconds=0.25,
        nanodollars=2_000_000_000,
    )
    metrics.record_call(**of, outcome=CallOutcome.REJECTED, input_tokens=10, output_tokens=1, seconds=1.0)
    metrics.record_call(**of, outcome=CallOutcome.LOST, seconds=60.0, nanodollars=500_000_000)
    assert [value("liber_llm_calls_total", **of, outcome=outcome) for outcome in CallOutcome] == [1, 1, 0, 1]
    tokens = [value("liber_llm_tokens_total", **of, kind=kind) for kind in ("input", "cached", "output")]
    assert tokens == [110, 40, 8]
    assert (value("liber_llm_call_seconds_count", **of), value("liber_llm_call_seconds_sum", **of)) == (2, 1.25)
    assert (value("liber_llm_cache_hits_total", **of), value("liber_llm_dollars_total", **of)) == (1, 2.5)


def test_a_run_counts_its_calls_retries_failures_and_dollars() -> None:
    replies = {
        0: always(BUSY, LOST, EMPTY, ANSWER),
        1: always(BAD_CALL),
        2: always(EMPTY),
        3: always(Reply(error=ErrorKind.BUSY, retry_after_s=1.0), ANSWER),
        4: lambda prompt, _: TOO_LONG if "Drama" in prompt else ANSWER,
    }
    backend = ScriptedBackend(
        clock=SimulatedClock(), script=lambda prompt, times: replies[film_of(prompt)](prompt, times)
    )
    of = {"model": "scripted-1", "stage": "summary"}
    names = [
        *(("liber_llm_retries_total", {"reason": reason}) for reason in ("busy", "lost", "rejected", "too_long")),
        *(("liber_llm_calls_total", {"outcome": outcome}) for outcome in ("answered", "rejected", "refused", "lost")),
        ("liber_llm_failures_total", {}),
        ("liber_llm_call_seconds_count", {}),
        ("liber_llm_dollars_total", {}),
    ]
    before = [value(name, **of, **labels) for name, labels in names]
    learner = learner_of(backend, prices=Prices(input=1.0, output=1.0), max_attempts=5)
    flat(learner.summarize(summary_requests(5)))
    after = [value(name, **of, **labels) for name, labels in names]
    counted = [round(later - earlier, 9) for earlier, later in zip(before, after, strict=True)]
    spent = learner.spent()
    assert counted == [2, 1, 2, 1, 3, 3, 4, 1, 2, 6, round(spent.dollars, 9)]
    assert (spent.call_count, spent.failed_count) == (11, 2)


def test_metrics_name_no_user_and_quote_no_reason() -> None:
    backend = ScriptedBackend(clock=SimulatedClock(), script=always(BAD_CALL))
    flat(learner_of(backend).summarize(summary_requests(3)))
    shown = ours()
    assert "user-" not in shown
    assert "scripted bad_call" not in shown
    assert set(re.findall(r"[{,](\w+)=", shown)) <= {
        "model",
        "stage",
        "outcome",
        "kind",
        "reason",
        "le",
        "pid",
        "quantile",
    }


def test_the_text_file_holds_our_metrics_and_no_others(tmp_path: Path) -> None:
    metrics.record_call(model="m", stage="shift", outcome=CallOutcome.ANSWERED, cached_tokens=1, nanodollars=1)
    metrics.record_retry(model="m", stage="shift", reason="busy")
    metrics.record_failure(model="m", stage="shift")
    metrics.set_pending_partitions(17)
    metrics.write_textfile(tmp_path / "liber.prom")
    lines = (tmp_path / "liber.prom").read_text(encoding="utf-8").splitlines()
    names = {re.split(r"[{ ]", line)[0] for line in lines if not line.startswith("#")}
    assert names >= NAMES
    assert all(name.startswith("liber_") for name in names)
    assert any(line.startswith("liber_pending_partitions") and line.endswith(" 17.0") for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["liber.prom"]


def test_a_text_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^batch_engine\.metrics\.textfile: .* cannot be written \(No such file"):
        metrics.write_textfile(tmp_path / "missing" / "liber.prom")


def test_processes_write_to_files_of_their_own_under_the_lowest_numbers_that_are_free(tmp_path: Path) -> None:
    path = tmp_path / "liber.prom"
    with metrics.own_textfile(path) as (first, zero):
        with metrics.own_textfile(path) as (second, one):
            assert (first.name, zero) == ("liber-worker-0.prom", 0)
            assert (second.name, one) == ("liber-worker-1.prom", 1)
        with metrics.own_textfile(path) as (third, _):
            assert third == second
    with metrics.own_textfile(path) as (again, _):
        assert again == first


def test_labels_of_a_process_stand_on_every_metric_of_its_file_and_on_none_elsewhere(tmp_path: Path) -> None:
    metrics.record_call(model="m", stage="shift", outcome=CallOutcome.ANSWERED)
    metrics.write_textfile(tmp_path / "one.prom", labels={"worker": "3"})
    lines = (tmp_path / "one.prom").read_text(encoding="utf-8").splitlines()
    samples = [line for line in lines if not line.startswith("#")]
    assert samples
    assert all('worker="3"' in line for line in samples)
    assert 'worker="3"' not in ours()


def test_a_folder_in_which_nothing_can_be_made_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"^batch_engine\.metrics\.textfile: .* cannot be written \(No such file"),
        metrics.own_textfile(tmp_path / "missing" / "liber.prom"),
    ):
        pass


def test_the_metrics_are_served_over_http_until_closed() -> None:
    metrics.set_pending_partitions(23)
    server = metrics.serve(0)
    try:
        with urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as response:
            assert "liber_pending_partitions" in response.read().decode()
    finally:
        server.close()
    metrics.serve(server.port).close()


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"^batch_engine\.metrics\.port: {port} cannot be listened on \(Address"):
            metrics.serve(port)
