"""The quickstart, end to end, as the commands a user runs."""

import json
import os
import shutil
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from liber_feast import cli
from liber_feast.errors import LiberError
from liber_feast.quickstart import StepFailed, Steps, score, stop
from tests.shared_data import shared

ROOT = Path(__file__).resolve().parents[1]
FIT_FIGURES = {"auc", "log_loss"}


def quickstart(folder: Path, data: str, *options: str) -> dict[str, Any]:
    """Run the quickstart on a copy of the feature repo; return its figures."""
    copy_repo(folder)
    done = run_quickstart(folder, data, *options)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def copy_repo(folder: Path) -> None:
    ignored = shutil.ignore_patterns("data", "data-*", "__pycache__")
    shutil.copytree(ROOT / "feature_repo", folder / "feature_repo", ignore=ignored)


def run_quickstart(folder: Path, data: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "liber_feast.cli", "quickstart", data, "--json", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def refusal(
    folder: Path, data: str, *options: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> list[str]:
    """Run the quickstart's code here, on a copy of the feature repo; return what it and its steps say on stderr."""
    copy_repo(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(sys, "argv", ["liber", "quickstart", data, "--json", *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capfd.readouterr()
    assert (ended.value.code, said.out) == (1, "")
    return said.err.splitlines()


def check(facts: dict[str, Any], *, folder: Path) -> None:
    assert facts["summaries"] == facts["sealed_partitions"] > 0
    assert 0 < facts["shifts"] < facts["summaries"]
    assert facts["calls_per_user"] == round((facts["summaries"] + facts["shifts"]) / facts["users"], 2)
    assert facts["calls_this_run"] == facts["summaries"] + facts["shifts"]
    assert 0 < facts["texts_encoded"] <= facts["calls_this_run"]  # equal texts are encoded once
    for fit in facts["fits"].values():
        assert fit.keys() == FIT_FIGURES
        assert 0 < fit["auc"] < 1
        assert 0 < fit["log_loss"] < 2
    scores = facts["scored"]["scores"]
    assert len(scores) == 10
    assert all(0 < one["score"] < 1 and one["title"] for one in scores)
    assert facts["scored"]["missing"] == {
        "store": False,
        "user": False,
        "behaviors": False,
        "interests": False,
        "fusion_version_mismatch": None,
        "evidence": False,
        "evidence_version_mismatch": None,
        "items": [],
    }
    assert facts["summary"].startswith("The user rated 20 films")
    assert facts["shift"].startswith("Compared with the 20 films before")
    for place in facts["places"].values():
        assert (folder / place).exists()


def test_it_goes_from_synthetic_behaviors_to_a_served_score_and_again_without_a_call(tmp_path: Path) -> None:
    facts = quickstart(tmp_path, "synthetic", "--users", "20", "--behaviors", "1500")
    check(facts, folder=tmp_path)
    assert facts["behaviors"] == 1500

    again = run_quickstart(tmp_path, "synthetic", "--users", "20", "--behaviors", "1500")
    assert again.returncode == 0, again.stderr[-4000:]
    assert "0 partitions sealed, 0 summaries, 0 shifts, 0 texts encoded, 0 rows published" in again.stderr
    repeated = json.loads(again.stdout.splitlines()[-1])
    held = ("summaries", "shifts", "calls_per_user")
    assert {name: repeated[name] for name in held} == {name: facts[name] for name in held}
    assert (repeated["calls_this_run"], repeated["texts_encoded"]) == (0, 0)
    assert repeated["fits"] == facts["fits"]


def test_it_goes_the_whole_way_on_twenty_users_of_movielens(tmp_path: Path) -> None:
    facts = quickstart(tmp_path, str(shared("ml-latest-small")), "--users", "20")
    check(facts, folder=tmp_path)
    assert facts["users"] == 20


@pytest.mark.parametrize("data", ["nowhere", "."], ids=["no folder", "no data set"])
def test_a_step_that_fails_ends_the_job(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    *lines, last = refusal(tmp_path, data, monkeypatch=monkeypatch, capfd=capfd)
    assert not any("Traceback" in line for line in lines)
    assert last.startswith("Error: Stopped: `")
    assert f" load {data} " in last
    assert last.endswith("` ended with exit code 1; its error is above.")


def test_it_stops_where_the_texts_would_be_about_other_things_than_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data = str(shared("amazon-2023-small"))
    lines = refusal(tmp_path, data, "--users", "20", monkeypatch=monkeypatch, capfd=capfd)
    wanted = "set interest: {prompt: amazon_products} and evidence: {text: full} in feature_repo/feature_store.yaml"
    assert lines[-1] == f"Error: {wanted}, then run again"
    assert not any("apply" in line for line in lines)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ([sys.executable, "-c", ""], "ended without its figures on stdout."),
        ([sys.executable, "-c", "print('no figures')"], "ended without its figures on stdout."),
        ([sys.executable, "-c", "raise SystemExit(3)"], "ended with exit code 3; its error is above."),
        (["/nowhere/feast", "apply"], "cannot be started: No such file or directory."),
    ],
    ids=["empty", "no JSON", "failed", "no program"],
)
def test_a_step_without_its_figures_has_failed(command: list[str], reason: str) -> None:
    with pytest.raises(StepFailed, match="Stopped: ") as caught:
        Steps().run("step", command)
    assert caught.value.message.endswith(reason)
    assert "\n" not in caught.value.message


class Refusing(BaseHTTPRequestHandler):
    """Answers every question with 503 and a reason."""

    def do_POST(self) -> None:
        self.send_response(503)
        self.end_headers()
        self.wfile.write(b'{"detail":\n "the store is away"}')

    def log_message(self, *_: object) -> None:
        pass


def test_a_refused_question_is_one_line_with_the_reply() -> None:
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(LiberError) as caught:
            score(url, {})
        thread.join()
    assert caught.value.message == f'{url} answered 503: {{"detail": "the store is away"}}'
    with pytest.raises(LiberError, match="did not answer with scores: .*refused"):
        score(url, {})


def test_a_server_that_does_not_end_when_asked_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("liber_feast.quickstart.SERVER_STOP_S", 0.2)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        stop(server)
    assert server.returncode == -signal.SIGKILL
