"""A known item that changed since the fit is scored as the store has it now, as a training sample of now."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from feast import FeatureStore

from liber_feast.artifact import load_artifact
from liber_feast.encoded import ItemTable
from serving.catalog import ItemCatalog
from serving.online import open_features
from serving.ranker import Ranker, open_ranker
from tests.serving_parts import (
    ITEM_ENCODER,
    KNOWN_ITEMS,
    NOW,
    OTHER_ENCODER,
    UNICODE_USER,
    make_run,
    make_store,
    training_rows,
)

USER, WITH_EVIDENCE, ITEMS = UNICODE_USER, "u1", [*KNOWN_ITEMS]
EDITED = {"title": "Another title", "categories": ["War"], "period": "1990s"}
EDITED_VECTOR = [2.0, -1.0, 0.5]


@pytest.fixture(params=["baseline", "liber+evidence"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", features=request.param)


@pytest.fixture
def repo(run: Path, tmp_path: Path) -> Path:
    return make_store(tmp_path / "repo", run=run)


def write(repo: Path, view: str, **values: object) -> None:
    row = {**values, "event_timestamp": NOW + timedelta(days=1)}
    FeatureStore(repo_path=str(repo)).write_to_online_store(view, pd.DataFrame([row]))


def scores(ranker: Ranker, item_ids: Sequence[str] = ITEMS, *, user_id: str = USER) -> list[float]:
    return [item.score for item in ranker.score(user_id, item_ids=item_ids).scores]


def offline(run: Path, *, edited: str) -> np.ndarray:
    """Return the scores of the training path with one candidate edited."""
    rows = training_rows(USER, item_ids=ITEMS).to_pylist()
    artifact = load_artifact(run)
    changed = [row | EDITED if row["item_id"] == edited else row for row in rows]
    return artifact.score(artifact.spec.encode(pa.Table.from_pylist(changed)))


def test_an_edited_item_is_scored_as_the_store_has_it(run: Path, repo: Path) -> None:
    before = scores(open_ranker(repo, run=run))
    write(repo, "item_attributes", item_id="i1", **EDITED)
    ranker = open_ranker(repo, run=run)
    found = scores(ranker)
    assert abs(found[1] - before[1]) > 1e-4
    np.testing.assert_allclose(np.delete(found, 1), np.delete(before, 1), atol=1e-6)
    np.testing.assert_allclose(found, offline(run, edited="i1"), atol=1e-6)
    assert scores(ranker) == found
    assert scores(ranker, ["i1", "nobody has seen it"])[0] == pytest.approx(found[1], abs=1e-6)


def test_an_item_that_is_as_it_was_needs_no_encoding(run: Path, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranker = open_ranker(repo, run=run)
    scores(ranker)
    monkeypatch.setattr("liber_feast.inputs.InputSpec.encode_items", None)
    assert len(scores(ranker)) == len(ITEMS)


def test_an_edit_is_seen_when_the_catalog_reads_again(run: Path, repo: Path) -> None:
    time = [0.0]
    ranker = open_ranker(repo, run=run)
    ranker._catalog = ItemCatalog(ranker._features, time_to_live_s=60, clock=lambda: time[0])
    before = scores(ranker)
    write(repo, "item_attributes", item_id="i1", **EDITED)
    assert scores(ranker) == before
    time[0] = 61.0
    assert abs(scores(ranker)[1] - before[1]) > 1e-4


def test_a_new_text_counts_in_the_match_unless_it_is_of_another_encoder_or_width(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", features="liber+evidence")
    repo = make_store(tmp_path / "repo", run=run)
    before = scores(open_ranker(repo, run=run), user_id=WITH_EVIDENCE)
    write(repo, "item_text", item_id="i2", vector=EDITED_VECTOR, encoder_version=ITEM_ENCODER)
    found = scores(open_ranker(repo, run=run), user_id=WITH_EVIDENCE)
    assert abs(found[2] - before[2]) > 1e-4
    np.testing.assert_allclose(np.delete(found, 2), np.delete(before, 2), atol=1e-6)
    for vector, encoder in ((EDITED_VECTOR, OTHER_ENCODER), (EDITED_VECTOR[:2], ITEM_ENCODER)):
        write(repo, "item_text", item_id="i2", vector=vector, encoder_version=encoder)
        np.testing.assert_allclose(scores(open_ranker(repo, run=run), user_id=WITH_EVIDENCE), before, atol=1e-6)


def test_a_behavior_is_of_the_item_as_it_was_then(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", features="baseline")
    repo = make_store(tmp_path / "repo", run=run)
    before = scores(open_ranker(repo, run=run))
    artifact = load_artifact(run)
    items = artifact.spec.items
    later = int(NOW.timestamp() * 1e6) + 1
    newest = np.append(items.times, np.full(len(items.ids), later))
    order = np.lexsort((newest, np.array(items.ids * 2)))
    rows = np.append(np.arange(len(items.ids)), np.roll(np.arange(len(items.ids)), 1))[order]
    edited = ItemTable(
        ids=tuple(np.array(items.ids * 2)[order].tolist()),
        times=newest[order],
        codes=np.concatenate([items.codes[:1], items.codes[1:][rows]]),
        numbers=np.concatenate([items.numbers[:1], items.numbers[1:][rows]]),
    )
    spec = replace(artifact.spec, items=edited)
    ranker = Ranker(replace(artifact, spec=spec), features=open_features(repo, service="ctr_baseline"))
    # Each item has another's fields since; candidates are as the store has them, behaviors as they were.
    np.testing.assert_allclose(scores(ranker), before, atol=1e-6)


def test_no_more_is_kept_than_the_catalog_keeps(run: Path, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.known_items.CAPACITY", 3)
    ranker = open_ranker(repo, run=run)
    expected = [scores(ranker, [name])[0] for name in ITEMS]
    assert len(ranker._known._compared) <= 4
    assert scores(ranker) == pytest.approx(expected, abs=1e-6)
