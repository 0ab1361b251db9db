"""`python -m training compare --data`: from a data set to tables, with the commands that a user would run."""

import json
import subprocess
import sys
import time
from pathlib import Path
from queue import Queue
from threading import Thread

import numpy as np
import pytest
import yaml
from filelock import FileLock

from liber_feast.errors import ArtifactError, ConfigError
from liber_feast.quickstart import StepFailed
from tests.feature_repo_kit import copy_feature_repo
from training.compare import data_name
from training.compare_command import cli
from training.data_repo import LOCK, READY, data_repo, state_of

USERS, ITEMS, BEHAVIORS = 12, 30, 45


@pytest.fixture
def movies(tmp_path: Path) -> Path:
    """Write a small data set in the form of MovieLens latest."""
    folder = tmp_path / "ml-tiny"
    folder.mkdir()
    random = np.random.default_rng(1)
    genres = ("Comedy", "Drama", "Horror", "War")
    titles = [f"{number},Film {number} (1999),{genres[number % 4]}" for number in range(1, ITEMS + 1)]
    rows = []
    for step in range(BEHAVIORS):
        for user in range(1, USERS + 1):
            item = int(random.integers(1, ITEMS + 1))
            rating = (4.5 if (item + user) % 4 < 2 else 2.0) + 0.5 * int(random.integers(0, 2))
            rows.append(f"{user},{item},{rating},{1_000_000_000 + 1_000 * step + user}")
    (folder / "movies.csv").write_text("movieId,title,genres\n" + "\n".join(titles) + "\n", encoding="utf-8")
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.mark.slow
def test_compare_loads_a_data_set_fits_and_ends_with_one_json_object(
    tmp_path: Path, movies: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    behavior, evidence = {"scale": [1, 5], "like_above": 4.0}, {"width": 16, "text": "full"}
    template = copy_feature_repo(tmp_path / "template", behavior=behavior, evidence=evidence)
    out = tmp_path / "out"
    arguments = ["compare", "--data", str(movies), "--repo", str(template), "--out", str(out), "--seeds", "2"]
    arguments += ["--backbones", "dcn", "--features", "liber", "--folds", "1", "--epochs", "1", "--device", "cpu"]
    cli(arguments, standalone_mode=False)
    document = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert {"auc", "log_loss", "auc_gain", "user_bootstrap_p", "folds_auc_gain", "folds_p_value"} <= set(
        document["backbones"]["dcn"]["liber"]
    )
    assert document["held"]["like_above"] == 3.0  # of the data set, not of the template
    assert document["held"]["samples"] == USERS * BEHAVIORS
    assert document["held"]["store"]["item_text"] == "categories"  # likewise
    assert document["held"]["store"]["interest"] == {"backend": "extractive", "form": "plain"}
    assert not (template / "data").exists()
    repo = out / "feature_repo"
    config = yaml.safe_load((repo / "feature_store.yaml").read_text(encoding="utf-8"))
    assert config["batch_engine"]["evidence"] == {"width": 16, "text": "categories"}  # width of the template
    assert config["batch_engine"]["sequence"] == {"length": 20}  # what DCN sees: the template has 6
    assert data_name(repo) == document["held"]["data"]
    before = (repo / "data" / "memory.db").stat().st_mtime_ns
    cli(arguments, standalone_mode=False)
    assert json.loads(capfd.readouterr().out.splitlines()[-1]) == document
    assert (repo / "data" / "memory.db").stat().st_mtime_ns == before
    data_repo(template, data=str(movies), folder=repo, sequence_length=300)
    config = yaml.safe_load((repo / "feature_store.yaml").read_text(encoding="utf-8"))
    assert config["batch_engine"]["sequence"] == {"length": 300}  # for one that searches
    assert (repo / "data" / "memory.db").stat().st_mtime_ns == before
    with pytest.raises(ArtifactError, match="has the data set"):
        data_repo(template, data="synthetic", folder=repo, sequence_length=20)


def test_texts_that_cost_money_are_not_written_in_passing(tmp_path: Path) -> None:
    template = copy_feature_repo(tmp_path / "template")
    path = template / "feature_store.yaml"
    config = yaml.safe_load(path.read_text())
    config["batch_engine"]["interest"] = {"backend": "openai", "prompt": "movielens"}
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match="`interest.backend: openai` cost money"):
        data_repo(template, data="synthetic", folder=tmp_path / "out" / "feature_repo", sequence_length=20)
    assert state_of(tmp_path / "out" / "feature_repo") == {"data": "synthetic", "ready": False}


@pytest.mark.parametrize("own", ["out", "template"])
def test_a_feature_repo_of_the_users_own_is_never_taken_for_one_that_was_cut_off(tmp_path: Path, own: str) -> None:
    template = copy_feature_repo(tmp_path / "template")
    (template / "data").mkdir()
    (template / "data" / "memory.db").write_bytes(b"mine")
    folder = template if own == "template" else copy_feature_repo(tmp_path / "out" / "feature_repo")
    before = sorted(folder.rglob("*"))
    for content in (None, "[]", "{}", "no JSON"):
        if content is not None:
            (folder / READY).write_text(content)
        with pytest.raises(ArtifactError, match="exists and is of no comparison. Name another folder with --out"):
            data_repo(template, data="synthetic", folder=folder, sequence_length=20)
    (folder / READY).unlink()
    assert sorted(folder.rglob("*")) == before
    assert (template / "data" / "memory.db").read_bytes() == b"mine"


def test_one_that_was_cut_off_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "feature_repo"
    with pytest.raises(StepFailed):
        data_repo(copy_feature_repo(tmp_path / "template"), data="/nowhere", folder=folder, sequence_length=20)
    assert state_of(folder) == {"data": "/nowhere", "ready": False}
    (folder / "half").write_text("")
    with pytest.raises(StepFailed):
        data_repo(tmp_path / "template", data="/nowhere", folder=folder, sequence_length=20)
    assert not (folder / "half").exists()


def test_one_that_another_process_makes_is_waited_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = copy_feature_repo(tmp_path / "out" / "feature_repo")
    state = {"data": "synthetic", "ready": False}
    (folder / READY).write_text(json.dumps(state))
    made: Queue[Path] = Queue()

    def second() -> None:
        made.put(data_repo(tmp_path / "template", data="synthetic", folder=folder, sequence_length=20))

    with FileLock(folder.with_name(folder.name + LOCK)):
        process = Thread(target=second)
        process.start()
        while process.is_alive() and "waiting for it" not in capfd.readouterr().err:
            time.sleep(0.01)
        assert process.is_alive()
        assert state_of(folder) == state
        (folder / READY).write_text(json.dumps({**state, "ready": True}))
    process.join(timeout=60)
    assert made.get_nowait() == folder


HOLD_AND_BE_KILLED = """
import os, signal, sys
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_one_whose_process_was_killed_is_not_waited_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = copy_feature_repo(tmp_path / "out" / "feature_repo")
    (folder / READY).write_text(json.dumps({"data": "/nowhere", "ready": False}))
    lock = folder.with_name(folder.name + LOCK)
    killed = subprocess.run([sys.executable, "-c", HOLD_AND_BE_KILLED, str(lock)], check=False)
    assert killed.returncode < 0
    with pytest.raises(StepFailed):
        data_repo(copy_feature_repo(tmp_path / "template"), data="/nowhere", folder=folder, sequence_length=20)
    assert "waiting" not in capfd.readouterr().err


def test_a_folder_that_cannot_be_written_is_named_in_one_line(tmp_path: Path) -> None:
    template = copy_feature_repo(tmp_path / "template")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArtifactError, match=r"cannot be written: File exists. Name another folder with --out"):
        data_repo(template, data="synthetic", folder=tmp_path / "file" / "feature_repo", sequence_length=20)
    half = copy_feature_repo(tmp_path / "half")
    (half / READY).write_text(json.dumps({"data": "synthetic", "ready": False}))
    (tmp_path / "link").symlink_to(half)
    with pytest.raises(ArtifactError, match=r"link cannot be written: .*symbolic link"):
        data_repo(template, data="synthetic", folder=tmp_path / "link", sequence_length=20)
    assert (half / "feature_store.yaml").exists()


def test_a_folder_without_definitions_is_no_template(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no feature repo"):
        data_repo(tmp_path, data="synthetic", folder=tmp_path / "out", sequence_length=20)


def test_a_repo_that_nothing_was_loaded_into_is_called_by_its_place(tmp_path: Path) -> None:
    assert data_name(tmp_path) == str(tmp_path)
