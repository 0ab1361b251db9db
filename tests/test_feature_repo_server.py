"""Feast's feature server on the repo: what comes by /push is answered by /get-online-features."""

import json
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from feast.feature_server import get_app

from liber_feast.repo import repo_status
from tests import feature_repo_kit as kit

with warnings.catch_warnings():  # whichever HTTP client is installed, starlette may advise another
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return kit.materialized_repo(tmp_path / "repo")


@pytest.fixture
def client(repo: Path) -> Iterator[TestClient]:
    store = kit.open_store(repo)
    with TestClient(get_app(store), raise_server_exceptions=False) as client:
        yield client
    kit.close(store)


def push(client: TestClient, *, to: str = "online", **columns: list[Any]) -> Any:
    return client.post("/push", json={"push_source_name": "behavior_push", "df": columns, "to": to})


def ask(client: TestClient, users: list[str], features: list[str]) -> dict[str, list[Any]]:
    answer = client.post("/get-online-features", json={"entities": {"user_id": users}, "features": features}).json()
    return dict(zip(answer["metadata"]["feature_names"], (one["values"] for one in answer["results"]), strict=True))


def text(moment: datetime) -> str:
    return moment.isoformat()


def test_pushed_behaviors_are_served_and_fill_a_partition(repo: Path, client: TestClient) -> None:
    features = ["behavior_sequence:item_ids", "behavior_sequence:behavior_count", "partition_summary:partition_index"]
    features += ["partition_summary:summary", "long_term_memory:partition_count", "fused_vector:fused"]
    assert ask(client, ["u0005"], features)["summary"] == [None]
    times = [text(kit.END - timedelta(days=2)), text(kit.END - timedelta(days=1))]
    columns: dict[str, list[Any]] = {"item_id": ["i0001", "i0002"], "rating": [5, 1], "event_timestamp": times}
    answer = push(client, user_id=["u0005", "u0005"], **columns)
    assert answer.status_code == 200, answer.text
    found = ask(client, ["u0005", "nobody"], features)
    assert found["item_ids"][0][-2:] == ["i0001", "i0002"]
    assert found["behavior_count"] == [5, None]
    assert found["partition_index"] == [0, None]
    assert found["summary"][0].startswith("The user rated 4 films")
    assert found["partition_count"] == [1, None]
    assert len(found["fused"][0]) == 2 * kit.WIDTH
    assert repo_status(repo)["behaviors"] == len(kit.log_of(repo)) + 2


def test_a_push_to_both_stores_reaches_the_log(repo: Path, client: TestClient) -> None:
    size = len(kit.log_of(repo))
    columns: dict[str, list[Any]] = {"item_id": ["i0001"], "rating": [5.0]}
    times = ["2023-12-30T12:00:00+00:00"]
    answer = push(client, user_id=["u0005"], event_timestamp=times, to="online_and_offline", **columns)
    assert answer.status_code == 200, answer.text
    log = kit.log_of(repo)
    assert len(log) == size + 1
    assert log.to_pylist()[-1]["event_timestamp"] == datetime.fromisoformat(times[0])


def test_a_bad_push_is_answered_with_its_reason_and_changes_nothing(repo: Path, client: TestClient) -> None:
    before = kit.memory_rows(repo)
    columns: dict[str, list[Any]] = {"item_id": ["i0001"], "rating": [99.0], "event_timestamp": [text(kit.END)]}
    answer = push(client, user_id=["u0005"], **columns)
    assert answer.status_code == 422
    said = json.loads(answer.json())
    assert (said["module"], said["class"]) == ("liber_feast.errors", "InvalidBehaviors")
    assert "a rating outside the scale 0.5 to 5" in said["message"]
    assert kit.memory_rows(repo) == before


def test_a_push_while_the_memory_is_locked_is_answered_with_503_and_can_be_sent_again(tmp_path: Path) -> None:
    repo = kit.repo_to_push_to(tmp_path / "repo", memory="sqlite:///data/memory.db?timeout=0.1", on_the_fly="worker")
    store = kit.open_store(repo)
    columns: dict[str, list[Any]] = {"item_id": ["i0001"], "rating": [4.0], "event_timestamp": [text(kit.END)]}
    with TestClient(get_app(store), raise_server_exceptions=False) as client:
        assert push(client, user_id=["u0005"], **columns).status_code == 200
        with closing(sqlite3.connect(repo / "data" / "memory.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            answer = push(client, user_id=["u0004"], **columns)
        assert answer.status_code == 503
        assert json.loads(answer.json())["class"] == "MemoryBusy"
        assert push(client, user_id=["u0004"], **columns).status_code == 200
    kit.close(store)


def test_the_services_of_training_and_serving_are_answered(client: TestClient) -> None:
    for service in ("ctr_baseline", "ctr_training", "ctr_serving"):
        entities = {"user_id": ["u0001"], "item_id": ["i0001"]}
        asked = {"entities": entities, "feature_service": service, "full_feature_names": True}
        answer = client.post("/get-online-features", json=asked)
        assert answer.status_code == 200, answer.text
        values = dict(zip(answer.json()["metadata"]["feature_names"], answer.json()["results"], strict=True))
        assert values["item_attributes__title"]["values"][0]
        assert len(values["item_text__vector"]["values"][0]) == kit.WIDTH
        assert values["behavior_sequence__behavior_count"]["values"] == [19]
        if service != "ctr_serving":  # the others have no two features of one name
            del asked["full_feature_names"]
            assert client.post("/get-online-features", json=asked).status_code == 200
