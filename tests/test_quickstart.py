"""The quickstart, end to end, as the commands a user runs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.shared_data import shared

ROOT = Path(__file__).resolve().parents[1]
FIT_FIGURES = {"auc", "log_loss"}


def quickstart(folder: Path, data: str, *options: str) -> dict[str, Any]:
    """Run the quickstart on a copy of the feature repo; return its figures."""
    ignored = shutil.ignore_patterns("data", "data-*", "__pycache__")
    shutil.copytree(ROOT / "feature_repo", folder / "feature_repo", ignore=ignored)
    done = run_quickstart(folder, data, *options)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run_quickstart(folder: Path, data: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "liber_feast.cli", "quickstart", data, "--json", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def check(facts: dict[str, Any], *, folder: Path) -> None:
    assert facts["summaries"] == facts["sealed_partitions"] > 0
    assert 0 < facts["shifts"] < facts["summaries"]
    assert facts["calls_per_user"] == round((facts["summaries"] + facts["shifts"]) / facts["users"], 2)
    assert facts["texts_encoded"] == facts["summaries"] + facts["shifts"]
    for fit in facts["fits"].values():
        assert fit.keys() == FIT_FIGURES
        assert 0 < fit["auc"] < 1
        assert 0 < fit["log_loss"] < 2
    scores = facts["scored"]["scores"]
    assert len(scores) == 10
    assert all(0 < one["score"] < 1 and one["title"] for one in scores)
    assert facts["scored"]["missing"] == {
        "user": False,
        "behaviors": False,
        "interests": False,
        "fusion_version_mismatch": None,
        "items": [],
    }
    assert facts["summary"].startswith("The user rated 20 films")
    assert facts["shift"].startswith("Compared with the 20 films before")
    for place in facts["places"].values():
        assert (folder / place).exists()


def test_it_goes_from_synthetic_behaviors_to_a_served_score_and_again_without_a_call(tmp_path: Path) -> None:
    facts = quickstart(tmp_path, "synthetic", "--users", "40", "--behaviors", "3000")
    check(facts, folder=tmp_path)
    assert facts["behaviors"] == 3000

    again = run_quickstart(tmp_path, "synthetic", "--users", "40", "--behaviors", "3000")
    assert again.returncode == 0, again.stderr[-4000:]
    assert "0 partitions sealed, 0 summaries, 0 shifts, 0 texts encoded, 0 rows published" in again.stderr
    repeated = json.loads(again.stdout.splitlines()[-1])
    assert {name: repeated[name] for name in ("summaries", "shifts")} == {
        name: facts[name] for name in ("summaries", "shifts")
    }
    assert repeated["fits"] == facts["fits"]


def test_it_goes_the_whole_way_on_fifty_users_of_movielens(tmp_path: Path) -> None:
    facts = quickstart(tmp_path, str(shared("ml-latest-small")), "--users", "50")
    check(facts, folder=tmp_path)
    assert facts["users"] == 50


@pytest.mark.parametrize("data", ["nowhere", "."], ids=["no folder", "no data set"])
def test_a_step_that_fails_ends_the_job(tmp_path: Path, data: str) -> None:
    shutil.copytree(ROOT / "feature_repo", tmp_path / "feature_repo", ignore=shutil.ignore_patterns("data"))
    done = run_quickstart(tmp_path, data)
    assert done.returncode != 0
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Error: The quickstart stopped: `liber load")
