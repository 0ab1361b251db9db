"""The quickstart: every step of the README as the command that a user would run, one after the other."""

import json
import resource
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from rich.console import Console
from rich.table import Table

from liber_feast.behavior import EVENT_TIME, ITEM, USER
from liber_feast.errors import LiberError
from liber_feast.job import open_memory
from liber_feast.repo import DESCRIPTION, open_store, repo_status

SERVER_START_S = 120
SCORED_COUNT = 10
FITS = ("baseline", "liber")


class StepFailed(LiberError):
    """A step of the quickstart ended with an error, which stands above on stderr."""

    def __init__(self, *, command: str, exit_code: int) -> None:
        self.command = command
        super().__init__(f"The quickstart stopped: `{command}` ended with exit code {exit_code}; its error is above.")


class Steps:
    """Runs commands in order, each with its heading on stderr and its seconds kept."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(
        self, name: str, command: Sequence[str], *, cwd: Path | None = None, is_json: bool = True
    ) -> dict[str, Any]:
        """Run a command; return the JSON object of its last line of stdout, where `is_json`.

        Raises:
            StepFailed: it ended with another exit code than 0.
        """
        shown = _shown(command, cwd)
        sys.stderr.write(f"\n$ {shown}\n")
        sys.stderr.flush()
        with self.timed(name):
            done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE if is_json else sys.stderr, check=False)
        if done.returncode:
            raise StepFailed(command=shown, exit_code=done.returncode)
        return dict(json.loads(done.stdout.decode().splitlines()[-1])) if is_json else {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Keep the seconds of a step."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)


def run_quickstart(
    data: str, *, repo: Path, runs: Path, users: int | None = None, behaviors: int | None = None, as_json: bool = False
) -> None:
    """Go from a data set to a served score and print what came of it.

    Raises:
        StepFailed: a step failed.
    """
    steps = Steps()
    _load(steps, data, repo=repo, users=users, behaviors=behaviors)
    window = json.loads((repo / "data" / DESCRIPTION).read_text(encoding="utf-8"))
    steps.run("apply", [_script("feast"), "apply"], cwd=repo, is_json=False)
    steps.run("materialize", [_script("feast"), "materialize", window["start"], window["end"]], cwd=repo, is_json=False)
    fits = {features: _fit(steps, features, repo=repo, runs=runs) for features in FITS}
    steps.run("fuse", [*_liber(), "fuse", str(runs / "din-liber"), "--repo", str(repo), "--json"])
    scored = _serve_and_score(steps, repo=repo, model=runs / "din-liber")
    facts = _facts(steps, repo=repo, runs=runs, fits=fits, scored=scored)
    if as_json:
        sys.stdout.write(json.dumps(facts) + "\n")
    else:
        _show(facts)


def _load(steps: Steps, data: str, *, repo: Path, users: int | None, behaviors: int | None) -> None:
    command = [*_liber(), "load", data, "--repo", str(repo), "--move-aside", "--json"]
    for name, value in (("--users", users), ("--behaviors", behaviors)):
        command += [] if value is None else [name, str(value)]
    steps.run("load", command)


def _fit(steps: Steps, features: str, *, repo: Path, runs: Path) -> dict[str, Any]:
    run = runs / f"din-{features}"
    command = [sys.executable, "-m", "training", "fit", "--backbone", "din", "--features", features]
    return steps.run(f"fit {features}", [*command, "--repo", str(repo), "--run", str(run), "--overwrite", "--json"])


def _serve_and_score(steps: Steps, *, repo: Path, model: Path) -> dict[str, Any]:
    """Start the server, score the items for one user over HTTP, stop the server."""
    user_id, item_ids = _whom_and_what(repo)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "serving", "--repo", str(repo), "--model", str(model), "--port", str(port)]
    sys.stderr.write(f"\n$ {_shown(command, None)}\n")
    with steps.timed("serve"), subprocess.Popen(command, stdout=sys.stderr) as server:
        try:
            _wait_until_healthy(server, port=port, command=_shown(command, None))
            body = json.dumps({"user_id": user_id, "item_ids": item_ids}).encode()
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/score", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=30) as reply:
                return dict(json.load(reply))
        finally:
            server.terminate()


def _wait_until_healthy(server: subprocess.Popen[bytes], *, port: int, command: str) -> None:
    until = time.monotonic() + SERVER_START_S
    while time.monotonic() < until:
        if server.poll() is not None:
            raise StepFailed(command=command, exit_code=server.returncode)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.2)
    raise LiberError(f"The server of `{command}` was not ready within {SERVER_START_S} s.")


def _whom_and_what(repo: Path) -> tuple[str, list[str]]:
    """Return the user who acted last, and the most rated items that the user has not rated."""
    log = DeltaTable(str(repo / "data" / "behaviors")).to_pyarrow_table(columns=[USER, ITEM, EVENT_TIME])
    user_id = log.sort_by(EVENT_TIME)[USER][-1].as_py()
    seen = log.filter(pc.equal(log[USER], user_id))[ITEM].combine_chunks()
    new = log.filter(pc.invert(pc.is_in(log[ITEM], value_set=seen)))
    counts = new.group_by(ITEM).aggregate([(ITEM, "count")])
    ranked: pa.Table = counts.sort_by([(f"{ITEM}_count", "descending"), (ITEM, "ascending")])
    return user_id, ranked[ITEM].to_pylist()[:SCORED_COUNT]


def _facts(
    steps: Steps, *, repo: Path, runs: Path, fits: Mapping[str, Mapping[str, Any]], scored: Mapping[str, Any]
) -> dict[str, Any]:
    status = repo_status(repo)
    store = open_store(repo)
    report = open_memory(store.config).last_report() or {}
    texts = store.get_online_features(
        features=["partition_summary:summary", "partition_shift:shift"], entity_rows=[{USER: scored["user_id"]}]
    ).to_dict()
    calls = status["summaries"] + status["shifts"]
    return {
        "data_set": json.loads((repo / "data" / DESCRIPTION).read_text(encoding="utf-8"))["name"],
        **{name: status[name] for name in ("behaviors", "users", "sealed_partitions", "summaries", "shifts")},
        "calls_per_user": round(calls / max(1, status["users"]), 2),
        "texts_encoded": sum(status["encoder_versions"].values()),
        "step_seconds": steps.seconds,
        "materialize_seconds": {stage: round(seconds, 1) for stage, seconds in report.get("seconds", {}).items()},
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
        "fits": {features: {name: fit[name] for name in ("auc", "log_loss")} for features, fit in fits.items()},
        "scored": scored,
        "summary": texts["summary"][0],
        "shift": texts["shift"][0],
        "places": {"features": str(repo / "data"), "memory": str(repo / "data" / "memory.db"), "runs": str(runs)},
    }


def _show(facts: Mapping[str, Any]) -> None:
    console = Console()
    table = Table(title=f"Quickstart on {facts['data_set']}", title_justify="left", show_header=False)
    for name in ("behaviors", "users", "sealed_partitions", "summaries", "shifts", "texts_encoded"):
        table.add_row(name.replace("_", " "), f"{facts[name]:,}")
    table.add_row("interest-backend calls per user", f"{facts['calls_per_user']:.2f}")
    for name, title in (("step_seconds", "seconds by step"), ("materialize_seconds", "of these, materialize")):
        table.add_row(title, ", ".join(f"{step} {seconds:g}" for step, seconds in facts[name].items()))
    table.add_row("peak memory of a step", f"{facts['peak_memory_mib']:,} MiB")
    for features, metrics in facts["fits"].items():
        table.add_row(f"DIN, {features}", f"AUC {metrics['auc']:.4f}, log loss {metrics['log_loss']:.4f}")
    table.add_row(f"scores for user {facts['scored']['user_id']}", _ranking(facts["scored"]["scores"]))
    table.add_row("the user's last summary", str(facts["summary"]))
    table.add_row("the user's last shift", str(facts["shift"]))
    table.add_row("everything lies in", ", ".join(f"{path} ({name})" for name, path in facts["places"].items()))
    console.print(table)


def _ranking(scores: Sequence[Mapping[str, Any]]) -> str:
    ranked = sorted(scores, key=lambda one: -one["score"])
    return "\n".join(f"{one['score']:.3f}  {one['title'] or one['item_id']}" for one in ranked)


def _liber() -> list[str]:
    return [sys.executable, "-m", "liber_feast.cli"]


def _script(name: str) -> str:
    """Return a command of this Python's own environment, which need not be on the PATH."""
    own = Path(sys.executable).parent / name
    return str(own) if own.exists() else name


def _shown(command: Sequence[str], cwd: Path | None) -> str:
    """Return the command as a user would type it."""
    words = [
        Path(word).name if Path(word).is_absolute() and Path(word).parent.name == "bin" else word for word in command
    ]
    line = (
        shlex.join(words).replace("python -m liber_feast.cli", "liber").replace("python3 -m liber_feast.cli", "liber")
    )
    return f"cd {cwd} && {line}" if cwd else line
