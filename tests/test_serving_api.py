"""What every route answers, what it refuses, and that it describes itself as it is."""

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from liber_feast.errors import ConfigError
from serving import bodies
from serving.app import create_app
from serving.limits import is_loopback, open_token
from serving.service import open_service
from tests.serving_parts import (
    OTHER_VERSION,
    PATIENT,
    UNICODE_ITEM,
    UNICODE_USER,
    VERSION,
    make_run,
    make_store,
    publish_fused,
)

TOKEN = "a-secret"

pytestmark = pytest.mark.usefixtures("one_thread")


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


@pytest.fixture(scope="module")
def guarded(repo: Path, run: Path) -> Iterator[TestClient]:
    """A server with a token and narrow limits."""
    limits = replace(PATIENT, body_bytes=2_000, waiting_questions=4)
    service = open_service(repo, run=run, limits=limits)
    with TestClient(create_app(service, token=TOKEN)) as opened:
        yield opened


def test_a_batch_has_a_reply_for_each_request_in_their_order(client: TestClient) -> None:
    questions = [
        {"user_id": "u1", "item_ids": ["i1", "ghost"]},
        {"user_id": "nobody", "item_ids": ["i2"]},
        {"user_id": UNICODE_USER, "item_ids": [UNICODE_ITEM, "i3", "i4"]},
        {"user_id": "u1", "item_ids": ["i1"]},
    ]
    replies = client.post("/v1/score:batch", json={"requests": questions}).json()["replies"]
    for question, reply in zip(questions, replies, strict=True):
        alone = client.post("/v1/score", json=question).json()
        assert {**reply, "scores": None} == {**alone, "scores": None}
        assert [one["score"] for one in reply["scores"]] == pytest.approx(
            [one["score"] for one in alone["scores"]], abs=1e-6
        )


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([], "at least 1 item"),
        ([{"user_id": "u", "item_ids": ["i"]}] * 257, "at most 256 items"),
        ([{"user_id": "u", "item_ids": ["i"] * 1_000}] * 11, "at most 10000 items in all requests"),
        ([{"user_id": "u", "item_ids": []}], "at least 1 item"),
        ("u1", "valid list"),
    ],
    ids=["none", "too many users", "too many items", "no items", "text"],
)
def test_a_batch_of_another_size_is_refused(client: TestClient, requests: Any, message: str) -> None:
    response = client.post("/v1/score:batch", json={"requests": requests})
    assert response.status_code == 422
    assert message in response.json()["detail"][0]["msg"]


def test_scores_say_whether_they_are_a_baseline_and_are_counted(client: TestClient) -> None:
    before = degraded(client)
    complete, unsealed, unknown = (
        client.post("/v1/score", json={"user_id": name, "item_ids": ["i1", "ghost"]}).json()["degraded"]
        for name in ("u1", "not sealed", "nobody")
    )
    assert (complete, unsealed, unknown) == (False, True, True)
    after = degraded(client)
    assert {name: after[name] - before.get(name, 0) for name in ("user", "behaviors", "interests")} == {
        "user": 1,
        "behaviors": 1,
        "interests": 2,
    }


def degraded(client: TestClient) -> dict[str, float]:
    found = re.findall(r'^liber_serving_degraded_total\{missing="(\w+)"\} (\S+)$', client.get("/metrics").text, re.M)
    return {name: float(value) for name, value in found}


def test_interests_of_a_store_without_their_tables_are_none(client: TestClient) -> None:
    for name in ("u1", "nobody", UNICODE_USER):
        response = client.get(f"/v1/users/{name}/interests")
        assert response.status_code == 200
        assert (response.json()["user_id"], response.json()["partitions"]) == (name, [])
    assert client.get("/v1/users/u1/interests").json()["fusion_version"] == VERSION


@pytest.mark.parametrize("limit", ["0", "1001", "x", "-1"])
def test_a_number_of_partitions_that_is_none_is_refused(client: TestClient, limit: str) -> None:
    assert client.get(f"/v1/users/u1/interests?limit={limit}").status_code == 422


def test_a_store_that_is_republished_under_a_running_server_is_noticed(run: Path, tmp_path: Path) -> None:
    repo = make_store(tmp_path / "repo", run=run)
    publish_fused(repo, user_ids=["u1"])
    with TestClient(create_app(open_service(repo, run=run, limits=PATIENT))) as client:
        assert client.get("/readyz").status_code == 200
        publish_fused(repo, user_ids=["of other weights"])
        response = client.get("/readyz")
        assert response.status_code == 503
        assert OTHER_VERSION in response.json()["versions"]
        assert client.post("/v1/score", json={"user_id": "u1", "item_ids": ["i1"]}).status_code == 200


def test_metrics_count_requests_by_route_and_status_without_ids(client: TestClient) -> None:
    client.post("/v1/score", json={"user_id": "a secret name", "item_ids": ["i1"]})
    client.post("/v1/score", json={})
    client.get("/v1/users/a secret name/interests")
    client.get("/a secret path")
    text = client.get("/metrics").text
    for route, status in (
        ("/v1/score", 200),
        ("/v1/score", 422),
        ("/v1/users/{user_id}/interests", 200),
        ("none", 404),
    ):
        assert f'liber_serving_requests_total{{route="{route}",status="{status}"}}' in text
    assert "liber_serving_request_seconds_bucket" in text
    assert "secret" not in text


@pytest.mark.parametrize(
    "kind",
    [one for one in vars(bodies).values() if isinstance(one, type) and one.__module__ == bodies.__name__],
    ids=lambda kind: kind.__name__,
)
def test_the_example_of_a_body_is_one(kind: type[BaseModel]) -> None:
    extra: Any = kind.model_config["json_schema_extra"]
    for example in extra["examples"]:
        assert kind.model_validate(example).model_dump() == example


def test_the_examples_of_the_documentation_are_answered(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for path, name in (("/v1/score", "ScoreRequest"), ("/v1/score:batch", "BatchRequest")):
        assert client.post(path, json=schemas[name]["examples"][0]).status_code == 200


def test_replies_are_as_the_schema_says(client: TestClient) -> None:
    body = client.post("/v1/score", json={"user_id": "u1", "item_ids": ["i1"]}).json()
    bodies.ScoreReply.model_validate(body)
    bodies.InterestsReply.model_validate(client.get("/v1/users/u1/interests").json())


@pytest.mark.parametrize("given_token", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN} "])
def test_without_the_token_nothing_but_the_probes_answers(guarded: TestClient, given_token: str | None) -> None:
    headers = {} if given_token is None else {"Authorization": given_token}
    if given_token == f"Bearer {TOKEN} ":
        headers = {"Authorization": f"Bearer {TOKEN}x"}  # clients strip spaces
    for path in ("/v1/users/u1/interests", "/metrics", "/docs", "/openapi.json"):
        response = guarded.get(path, headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
    assert guarded.post("/v1/score", headers=headers, content=b"x" * 9_999).status_code == 401
    assert guarded.get("/healthz", headers=headers).status_code == 200
    assert guarded.get("/readyz", headers=headers).status_code == 200


def test_with_the_token_requests_are_answered(guarded: TestClient) -> None:
    body = {"user_id": "u1", "item_ids": ["i1"]}
    assert guarded.post("/v1/score", json=body, headers=bearer()).status_code == 200


def bearer() -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKEN}"}


def test_a_body_over_the_limit_is_refused_however_it_comes(guarded: TestClient) -> None:
    stated = guarded.post("/v1/score", content=b"x" * 2_001, headers=bearer())
    streamed = guarded.post("/v1/score", content=iter([b"x" * 500] * 5), headers=bearer())
    assert [stated.status_code, streamed.status_code] == [413, 413]
    assert guarded.post("/v1/score", content=b"x" * 2_000, headers=bearer()).status_code == 422


def test_more_questions_than_the_queue_holds_are_answered_with_429(guarded: TestClient) -> None:
    questions = [{"user_id": "u1", "item_ids": ["i1"]}] * 5
    response = guarded.post("/v1/score:batch", json={"requests": questions}, headers=bearer())
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    allowed = guarded.post("/v1/score:batch", json={"requests": questions[:4]}, headers=bearer())
    assert allowed.status_code == 200


def test_five_hundred_requests_at_once_are_each_answered_with_their_own_scores(repo: Path, run: Path) -> None:
    app = create_app(open_service(repo, run=run, limits=PATIENT))
    users = ["u1", "nobody", UNICODE_USER, "not sealed", "pushed"]

    async def act() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=60) as client:
            asked = [{"user_id": users[number % 5], "item_ids": ["i1", f"i{number % 12}"]} for number in range(500)]
            return await asyncio.gather(*(client.post("/v1/score", json=one) for one in asked))

    scores: dict[str, float] = {}
    for number, response in enumerate(asyncio.run(act())):
        assert response.status_code == 200
        body = response.json()
        assert (body["user_id"], body["scores"][1]["item_id"]) == (users[number % 5], f"i{number % 12}")
        score = body["scores"][0]["score"]
        assert score == pytest.approx(scores.setdefault(body["user_id"], score), abs=1e-6)


def test_a_request_that_takes_too_long_is_answered_with_503(repo: Path, run: Path) -> None:
    limits = replace(PATIENT, request_timeout_s=0.001)
    with TestClient(create_app(open_service(repo, run=run, limits=limits))) as client:
        response = client.post("/v1/score", json={"user_id": "u1", "item_ids": ["i1"] * 1_000})
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"user_id":' * 50_000,
        b'{"user_id": "u1", "item_ids": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"user_id": "u1", "item_ids": ["i1"], "item_ids": 1e999}',
        b'{"user_id": NaN, "item_ids": [Infinity]}',
        b'{"user_id": "u1", "item_ids": [{"a": []}, null, true]}',
        b"1" * 100_000,
    ],
    ids=["empty", "no text", "open lists", "open objects", "deep lists", "twice", "no numbers", "types", "a number"],
)
def test_a_malformed_body_is_refused(client: TestClient, body: bytes) -> None:
    for path in ("/v1/score", "/v1/score:batch"):
        response = client.post(path, content=body, headers={"content-type": "application/json"})
        assert response.status_code in (400, 422)
        response.json()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["user_id", "item_ids", "requests", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=100)
@given(body=JSON, path=st.sampled_from(["/v1/score", "/v1/score:batch"]))
def test_whatever_is_sent_is_answered_or_refused(client: TestClient, body: Any, path: str) -> None:
    response = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code in (200, 422)


@settings(max_examples=50)
@given(user_id=st.text(min_size=1, max_size=40), item_ids=st.lists(st.text(min_size=1, max_size=9), min_size=1))
def test_ids_of_any_text_are_scored(client: TestClient, user_id: str, item_ids: list[str]) -> None:
    response = client.post("/v1/score", json={"user_id": user_id, "item_ids": item_ids})
    assert response.status_code == 200
    assert [one["item_id"] for one in response.json()["scores"]] == item_ids


@pytest.mark.parametrize(
    ("host", "is_own"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)]
    + [("10.0.0.1", False), ("example.org", False), ("", False)],
)
def test_a_host_that_others_reach_needs_a_token(host: str, is_own: bool) -> None:
    assert is_loopback(host) is is_own
    for empty in (None, ""):
        if is_own:
            assert open_token(host, environment=empty) is None
        else:
            with pytest.raises(ConfigError, match="LIBER_SERVING_TOKEN"):
                open_token(host, environment=empty)
    assert open_token(host, environment=TOKEN) == TOKEN


@pytest.mark.parametrize("token", ["two words", "schlüssel", "line\n"])
def test_a_token_that_no_header_can_hold_is_refused(token: str) -> None:
    with pytest.raises(ConfigError, match="printable ASCII"):
        open_token("127.0.0.1", environment=token)
