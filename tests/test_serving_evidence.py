"""Scores of runs that compare evidence with candidates: those of the training path, from what the store has online."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from liber_feast.artifact import load_artifact
from serving.ranker import Ranker, Ranking, open_ranker
from tests.serving_parts import (
    ITEM_WIDTH,
    KNOWN_ITEMS,
    NEW_ITEM,
    OTHER_ENCODER,
    UNICODE_USER,
    item_vector,
    make_run,
    make_store,
    training_rows,
)

ITEMS = [*KNOWN_ITEMS, NEW_ITEM, "nobody has seen it"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "din-liber-evidence", features="liber+evidence")


@pytest.fixture(scope="module")
def repo(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("repo"), run=run)


@pytest.fixture(scope="module")
def ranker(run: Path, repo: Path) -> Ranker:
    return open_ranker(repo, run=run)


def scores(ranking: Ranking) -> list[float]:
    return [item.score for item in ranking.scores]


def offline(run: Path, user_id: str, **changes: pa.Array) -> np.ndarray:
    """Return the scores of the training path; `changes` replace columns of its rows."""
    artifact = load_artifact(run)
    rows = training_rows(user_id, item_ids=ITEMS)
    for name, values in changes.items():
        rows = rows.set_column(rows.column_names.index(name), name, values)
    items = artifact.spec.encode_items(rows)
    newer = {NEW_ITEM: np.array(item_vector(NEW_ITEM), np.float32)}
    users = artifact.spec.encode_users(rows, newer=newer)
    every = np.arange(len(ITEMS))
    return artifact.score(artifact.spec.batch(users, items=items, user_rows=every, item_rows=every))


@pytest.mark.parametrize("user_id", ["u1", UNICODE_USER, "not sealed", "pushed"])
def test_a_score_with_evidence_is_that_of_the_training_path(ranker: Ranker, run: Path, user_id: str) -> None:
    expected = offline(run, user_id)
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(scores(ranker.score(user_id, item_ids=ITEMS)), expected, atol=1e-6)


def test_evidence_and_the_vectors_of_items_count(run: Path) -> None:
    plain = offline(run, "u1")
    nothing = pa.nulls(len(ITEMS), pa.list_(pa.float32()))
    assert not np.allclose(plain, offline(run, "u1", memory_evidence=nothing), atol=1e-4)
    assert not np.allclose(plain, offline(run, "u1", vector=nothing), atol=1e-4)


def test_an_item_of_the_window_that_is_newer_than_the_run_has_its_online_vector(run: Path) -> None:
    artifact = load_artifact(run)
    rows = training_rows("u1", item_ids=["i1"])
    known = artifact.spec.encode(rows)["dense"]
    newer = {NEW_ITEM: np.ones(ITEM_WIDTH, np.float32)}
    found = artifact.spec.encode_request(rows, item_ids=["i1"], newer=newer)["dense"]
    np.testing.assert_array_equal(found[:, :5], known[:, :5])
    assert found[0, 5] != known[0, 5]


def test_a_user_without_evidence_is_named(ranker: Ranker) -> None:
    missing = ranker.score("not sealed", item_ids=["i1"]).missing
    assert (missing.evidence, missing.evidence_version_mismatch) == (True, None)
    missing = ranker.score("u1", item_ids=["i1"]).missing
    assert (missing.evidence, missing.evidence_version_mismatch) == (False, None)


def test_evidence_of_another_encoder_is_never_compared(ranker: Ranker, run: Path) -> None:
    ranking = ranker.score("of other weights", item_ids=ITEMS)
    assert ranking.missing.evidence_version_mismatch == OTHER_ENCODER
    assert ranking.missing.evidence
    nothing = pa.nulls(len(ITEMS), pa.list_(pa.float32()))
    empty = {"memory_evidence": nothing, "vectors": nothing}
    np.testing.assert_allclose(scores(ranking), offline(run, "of other weights", **empty), atol=1e-6)


def test_a_run_without_evidence_misses_none(tmp_path: Path, repo: Path) -> None:
    plain = make_run(tmp_path / "run", features="baseline")
    assert not open_ranker(repo, run=plain).score("not sealed", item_ids=["i1"]).missing.evidence
