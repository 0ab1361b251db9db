import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from liber_feast.artifact import load_artifact
from serving.app import create_app
from serving.service import open_service
from tests.serving_parts import (
    KNOWN_ITEMS,
    NEW_ITEM,
    OTHER_VERSION,
    PATIENT,
    UNICODE_ITEM,
    UNICODE_USER,
    USERS,
    VERSION,
    make_run,
    make_store,
    training_rows,
)

NOBODY = {
    "store": False,
    "user": True,
    "behaviors": True,
    "interests": True,
    "fusion_version_mismatch": None,
    "evidence": False,
    "evidence_version_mismatch": None,
    "items": [],
}
COMPLETE = {**NOBODY, "user": False, "behaviors": False, "interests": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "din-liber")


@pytest.fixture(scope="module")
def repo(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("repo"), run=run)


@pytest.fixture(scope="module")
def client(repo: Path, run: Path) -> Iterator[TestClient]:
    with TestClient(create_app(open_service(repo, run=run, limits=PATIENT))) as opened:
        yield opened


def ask(client: TestClient, user_id: str, item_ids: Sequence[str]) -> dict[str, Any]:
    response = client.post("/v1/score", json={"user_id": user_id, "item_ids": list(item_ids)})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    assert all(0 < item["score"] < 1 for item in body["scores"])
    return body


def scores(body: dict[str, Any]) -> list[float]:
    return [item["score"] for item in body["scores"]]


def test_a_reply_has_every_item_in_the_order_asked_with_its_title(client: TestClient) -> None:
    body = ask(client, "u1", ["i3", "i1", "i3"])
    assert [(item["item_id"], item["title"]) for item in body["scores"]] == [
        ("i3", "Title of i3"),
        ("i1", "Title of i1"),
        ("i3", "Title of i3"),
    ]
    assert body["user_id"] == "u1"
    assert body["missing"] == COMPLETE
    assert body["model"] == {
        "run": "din-liber",
        "backbone": "training.backbones.din:DIN",
        "feature_service": "ctr_serving",
        "fusion_version": VERSION,
    }


@pytest.mark.parametrize("user_id", [name for name, user in USERS.items() if user.fusion_version == VERSION])
def test_a_score_is_that_of_the_training_path_with_the_fusion_in_the_model(
    client: TestClient, run: Path, user_id: str
) -> None:
    item_ids = [*KNOWN_ITEMS, NEW_ITEM, "nobody has seen it"]
    artifact = load_artifact(run)
    batch = artifact.spec.encode(training_rows(user_id, item_ids=item_ids))
    assert "vectors" in batch
    expected = artifact.score(batch)
    assert np.ptp(expected) > 1e-3  # a score that told nothing apart would pass anything
    np.testing.assert_allclose(scores(ask(client, user_id, item_ids)), expected, atol=1e-6)


def test_a_user_nobody_has_seen_gets_scores_and_the_reply_says_what_was_missing(client: TestClient) -> None:
    assert ask(client, "nobody", ["i1"])["missing"] == NOBODY


def test_a_user_without_a_sealed_partition_lacks_interests_alone(client: TestClient) -> None:
    assert ask(client, "not sealed", ["i1"])["missing"] == COMPLETE | {"interests": True}


def test_a_user_known_by_pushed_behaviors_alone_lacks_attributes_and_interests(client: TestClient) -> None:
    assert ask(client, "pushed", ["i1"])["missing"] == COMPLETE | {"user": True, "interests": True}


def test_an_item_nobody_has_seen_is_scored_without_title_and_named_once(client: TestClient) -> None:
    body = ask(client, "u1", ["ghost", "i1", "ghost", "phantom"])
    assert body["missing"] == COMPLETE | {"items": ["ghost", "phantom"]}
    assert [item["title"] for item in body["scores"]] == [None, "Title of i1", None, None]
    ghost, _, again, phantom = scores(body)
    assert ghost == again == phantom


def test_an_item_newer_than_the_run_is_scored_with_its_online_attributes(client: TestClient) -> None:
    body = ask(client, "u1", [NEW_ITEM, "ghost"])
    assert body["missing"]["items"] == ["ghost"]
    new, ghost = scores(body)
    assert new != ghost


def test_a_vector_of_other_weights_is_never_scored(client: TestClient, run: Path) -> None:
    body = ask(client, "of other weights", ["i1", "i2"])
    assert body["missing"] == COMPLETE | {"interests": True, "fusion_version_mismatch": OTHER_VERSION}
    artifact = load_artifact(run)
    rows = training_rows("of other weights", item_ids=["i1", "i2"])
    empty = rows.set_column(rows.column_names.index("vectors"), "vectors", [[[], []]])
    np.testing.assert_allclose(scores(body), artifact.score(artifact.spec.encode(empty)), atol=1e-6)
    assert not np.allclose(scores(body), artifact.score(artifact.spec.encode(rows)), atol=1e-6)


def test_ids_of_any_script_are_scored(client: TestClient) -> None:
    body = ask(client, UNICODE_USER, [UNICODE_ITEM, "\u0000", " "])
    assert body["user_id"] == UNICODE_USER
    assert body["scores"][0]["title"] == f"Title of {UNICODE_ITEM}"
    assert body["missing"] == COMPLETE | {"items": ["\u0000", " "]}


def test_a_thousand_items_are_one_request(client: TestClient) -> None:
    item_ids = [f"i{number % 12}" for number in range(1_000)]
    found = scores(ask(client, "u1", item_ids))
    np.testing.assert_allclose(found[:12], scores(ask(client, "u1", item_ids[:12])), atol=1e-6)
    assert len(found) == 1_000


@pytest.mark.parametrize(
    ("body", "place", "message"),
    [
        ({"item_ids": ["i1"]}, ["body", "user_id"], "Field required"),
        ({"user_id": "u1"}, ["body", "item_ids"], "Field required"),
        ({"user_id": "u1", "item_ids": []}, ["body", "item_ids"], "at least 1 item"),
        ({"user_id": "u1", "item_ids": ["i"] * 1_001}, ["body", "item_ids"], "at most 1000 items"),
        ({"user_id": "", "item_ids": ["i1"]}, ["body", "user_id"], "at least 1 character"),
        ({"user_id": "u" * 513, "item_ids": ["i1"]}, ["body", "user_id"], "at most 512 characters"),
        ({"user_id": 1, "item_ids": ["i1"]}, ["body", "user_id"], "valid string"),
        ({"user_id": None, "item_ids": ["i1"]}, ["body", "user_id"], "valid string"),
        ({"user_id": "u1", "item_ids": ["i1", 7]}, ["body", "item_ids", 1], "valid string"),
        ({"user_id": "u1", "item_ids": "i1"}, ["body", "item_ids"], "valid list"),
        ({"user_id": "u1", "item_ids": ["i1"], "limit": 3}, ["body", "limit"], "Extra inputs are not permitted"),
        ({"user_id": "\ud800", "item_ids": ["i1"]}, ["body", "user_id"], "unicode"),
        ({"user_id": "u1", "item_ids": ["i1"], "\ud800": 3}, ["body"], "unicode"),
        (["u1"], ["body"], "valid dictionary"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, list | dict) else "",
)
def test_an_invalid_body_is_refused_with_its_place_and_reason(
    client: TestClient, body: Any, place: list[Any], message: str
) -> None:
    response = client.post("/v1/score", content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code == 422
    (problem,) = response.json()["detail"]
    assert problem["loc"] == place
    assert message in problem["msg"]


def test_a_body_that_is_no_json_is_refused(client: TestClient) -> None:
    response = client.post("/v1/score", content=b'{"user_id": ', headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert response.json()["detail"][0]["msg"] == "JSON decode error"


def test_healthz_names_the_model(client: TestClient) -> None:
    response = client.get("/healthz")
    assert response.status_code == 200
    assert response.json() == {"status": "ok", "model": ask(client, "u1", ["i1"])["model"]}


def test_requests_in_parallel_get_their_own_answers(client: TestClient) -> None:
    questions = [(name, [item, "ghost"]) for name in [*USERS, "nobody"] for item in KNOWN_ITEMS]
    expected = [ask(client, *question) for question in questions]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda question: ask(client, *question), questions * 2))
    for body, wanted in zip(found, expected * 2, strict=True):
        assert {**body, "scores": None} == {**wanted, "scores": None}
        np.testing.assert_allclose(scores(body), scores(wanted), atol=1e-6)


def test_a_baseline_run_reads_its_own_service_and_misses_no_interests(repo: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "din-baseline", features="baseline")
    with TestClient(create_app(open_service(repo, run=run, limits=PATIENT))) as client:
        body = ask(client, "of other weights", ["i1", NEW_ITEM])
        unseen = ask(client, "nobody", ["i1"])
    assert body["missing"] == COMPLETE
    assert body["model"]["feature_service"] == "ctr_baseline"
    assert body["model"]["fusion_version"] is None
    assert unseen["missing"] == NOBODY | {"interests": False}
    artifact = load_artifact(run)
    rows = training_rows("of other weights", item_ids=["i1", NEW_ITEM])
    np.testing.assert_allclose(scores(body), artifact.score(artifact.spec.encode(rows)), atol=1e-6)
