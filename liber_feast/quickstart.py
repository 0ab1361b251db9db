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
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from rich.console import Console
from rich.table import Table

from liber_feast.behavior import EVENT_TIME, ITEM, USER
from liber_feast.datasets.writer import DESCRIPTION
from liber_feast.errors import ConfigError, LiberError
from liber_feast.job import open_memory
from liber_feast.repo import fits_prompt, open_applied_store, repo_status

SERVER_START_S, SERVER_STOP_S, SCORE_S = 120, 10, 30
SCORED_COUNT = 10
SERVED = "liber+evidence"
FITS = ("baseline", SERVED)


class StepFailed(LiberError):
    """A command that was run as a step failed; what it wrote stands above on stderr."""

    def __init__(self, *, command: str, reason: str) -> None:
        self.command = command
        super().__init__(f"Stopped: `{command}` {reason}")


class Steps:
    """Runs commands in order, each with its heading on stderr and its seconds kept."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(
        self, name: str, command: Sequence[str], *, cwd: Path | None = None, is_json: bool = True
    ) -> dict[str, Any]:
        """Run a command; return the JSON object of its last line of stdout, where `is_json`.

        Raises:
            StepFailed: it could not be started, ended with another exit code than 0, or without its figures.
        """
        shown = _shown(command, cwd)
        sys.stderr.write(f"\n$ {shown}\n")
        sys.stderr.flush()
        with self.timed(name):
            try:
                done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE if is_json else sys.stderr, check=False)
            except OSError as error:
                raise StepFailed(command=shown, reason=f"cannot be started: {error.strerror}.") from error
        if done.returncode:
            raise StepFailed(command=shown, reason=_ended(done.returncode))
        return _figures(done.stdout, command=shown) if is_json else {}

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
        ConfigError: the feature repo asks for texts about another kind of data.
        LiberError: the server was not ready in time, or did not score.
    """
    steps = Steps()
    _load(steps, data, repo=repo, users=users, behaviors=behaviors)
    window = json.loads((repo / "data" / DESCRIPTION).read_text(encoding="utf-8"))
    feast = script_of("feast")
    steps.run("apply", [feast, "apply"], cwd=repo, is_json=False)
    steps.run("materialize", [feast, "materialize", window["start"], window["end"]], cwd=repo, is_json=False)
    fits = {features: _fit(steps, features, repo=repo, runs=runs) for features in FITS}
    served = runs / f"din-{SERVED}"
    steps.run("fuse", [*liber_command(), "fuse", str(served), "--repo", str(repo), "--json"])
    scored = _serve_and_score(steps, repo=repo, model=served)
    facts = _facts(steps, repo=repo, runs=runs, fits=fits, scored=scored)
    if as_json:
        sys.stdout.write(json.dumps(facts) + "\n")
    else:
        _show(facts)


def _load(steps: Steps, data: str, *, repo: Path, users: int | None, behaviors: int | None) -> None:
    command = [*liber_command(), "load", data, "--repo", str(repo), "--move-aside", "--json"]
    for name, value in (("--users", users), ("--behaviors", behaviors)):
        command += [] if value is None else [name, str(value)]
    loaded = steps.run("load", command)
    wanted = []
    if not fits_prompt(loaded["prompt"], in_use=loaded["prompt_in_use"]):
        wanted.append(f"interest: {{prompt: {loaded['prompt']}}}")
    if (loaded["item_text"], loaded["item_text_in_use"]) == ("full", "categories"):
        wanted.append("evidence: {text: full}")  # of few categories alone the PCA of items may never be fitted
    if wanted:
        raise ConfigError(f"set {' and '.join(wanted)} in {repo / 'feature_store.yaml'}, then run again")


def _fit(steps: Steps, features: str, *, repo: Path, runs: Path) -> dict[str, Any]:
    run = runs / f"din-{features}"
    command = [sys.executable, "-m", "training", "fit", "--backbone", "din", "--features", features]
    return steps.run(f"fit {features}", [*command, "--repo", str(repo), "--run", str(run), "--overwrite", "--json"])


def _serve_and_score(steps: Steps, *, repo: Path, model: Path) -> dict[str, Any]:
    """Start the server, score the items for one user over HTTP, stop the server."""
    user_id, item_ids = _whom_and_what(repo)
    port = free_port()
    command = [sys.executable, "-m", "serving", "--repo", str(repo), "--model", str(model), "--port", str(port)]
    sys.stderr.write(f"\n$ {_shown(command, None)}\n")
    with steps.timed("serve"), subprocess.Popen(command, stdout=sys.stderr) as server:
        try:
            wait_until_healthy(server, port=port, command=_shown(command, None))
            return score(f"http://127.0.0.1:{port}/v1/score", {"user_id": user_id, "item_ids": item_ids})
        finally:
            stop(server)


def score(url: str, question: Mapping[str, Any]) -> dict[str, Any]:
    """Ask for scores over HTTP.

    Raises:
        LiberError: no answer, or a refusal; the message holds the reply's text.
    """
    request = urllib.request.Request(url, json.dumps(question).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=SCORE_S) as reply:
            return dict(json.load(reply))
    except urllib.error.HTTPError as error:
        text = " ".join(error.read().decode(errors="replace").split())
        raise LiberError(f"{url} answered {error.code}: {text}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise LiberError(f"{url} did not answer with scores: {error}") from error


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def stop(server: subprocess.Popen[bytes]) -> None:
    """End a server, by force where it does not end when asked."""
    server.terminate()
    try:
        server.wait(SERVER_STOP_S)
    except subprocess.TimeoutExpired:
        server.kill()


def wait_until_healthy(server: subprocess.Popen[bytes], *, port: int, command: str) -> None:
    """Wait for a server that has just been started.

    Raises:
        StepFailed: it ended.
        LiberError: it does not answer in time.
    """
    until = time.monotonic() + SERVER_START_S
    while time.monotonic() < until:
        if server.poll() is not None:
            raise StepFailed(command=command, reason=_ended(server.returncode))
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1):
                return
        except OSError:
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
    """Return the figures: what is held by now, and of calls and encoded texts also those of this run alone."""
    status = repo_status(repo)
    store = open_applied_store(repo)
    report = open_memory(store.config).last_report() or {}
    texts = store.get_online_features(
        features=["partition_summary:summary", "partition_shift:shift"], entity_rows=[{USER: scored["user_id"]}]
    ).to_dict()
    return {
        "data_set": json.loads((repo / "data" / DESCRIPTION).read_text(encoding="utf-8"))["name"],
        **{name: status[name] for name in ("behaviors", "users", "sealed_partitions", "summaries", "shifts")},
        "calls_per_user": round((status["summaries"] + status["shifts"]) / max(1, status["users"]), 2),
        "calls_this_run": report.get("call_count") or report.get("summary_count", 0) + report.get("shift_count", 0),
        "texts_encoded": report.get("encoded_count", 0),
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
    for name in ("behaviors", "users", "sealed_partitions", "summaries", "shifts"):
        table.add_row(name.replace("_", " "), f"{facts[name]:,}")
    table.add_row("interest-backend calls per user, so far", f"{facts['calls_per_user']:.2f}")
    table.add_row("interest-backend calls, this run", f"{facts['calls_this_run']:,}")
    table.add_row("texts encoded, this run (equal ones once)", f"{facts['texts_encoded']:,}")
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


def liber_command() -> list[str]:
    """Return the start of a command of ours."""
    own = Path(script_of("liber"))
    return [str(own)] if own.is_absolute() else [sys.executable, "-m", "liber_feast.cli"]


def script_of(name: str) -> str:
    """Return a command of this Python's own environment, which need not be on the PATH."""
    own = Path(sys.executable).parent / name
    return str(own) if own.exists() else name


def _ended(exit_code: int) -> str:
    return f"ended with exit code {exit_code}; its error is above."


def _figures(stdout: bytes, *, command: str) -> dict[str, Any]:
    """Return the JSON object of the last line of a step's stdout.

    Raises:
        StepFailed: there is none.
    """
    try:
        return dict(json.loads(stdout.decode().splitlines()[-1]))
    except (IndexError, ValueError, TypeError) as error:
        raise StepFailed(command=command, reason="ended without its figures on stdout.") from error


def _shown(command: Sequence[str], cwd: Path | None) -> str:
    """Return the command as a user would type it: programs of this Python's environment by their names."""
    own = Path(sys.executable).parent
    program, *arguments = command
    line = shlex.join([Path(program).name if Path(program).parent == own else program, *arguments])
    return f"cd {cwd} && {line}" if cwd else line
