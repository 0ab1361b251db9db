"""A store that is slow or away: reads end in time, scores are made without it, and the replies say so."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from liber_feast.artifact import load_artifact
from liber_feast.errors import OnlineStoreAway
from liber_feast.service_schema import Schema
from serving.app import create_app
from serving.guard import CircuitBreaker, GuardedFeatures, StoreGuard
from serving.interests import InterestReader
from serving.online import OnlineFeatures, OnlineRow, open_features
from serving.ranker import Ranker
from serving.service import Served, Service
from tests.serving_parts import PATIENT, make_run, make_store

pytestmark = pytest.mark.usefixtures("one_thread")


TIMEOUT_S = 0.2


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FragileFeatures:
    """Online features that hang or fail while they are told to; counts the reads that reach it."""

    def __init__(self, features: OnlineFeatures) -> None:
        self.features = features
        self.answers, self.fails, self.read_count = threading.Event(), False, 0
        self.answers.set()

    @property
    def service(self) -> str:
        return self.features.service

    @property
    def user_features(self) -> frozenset[str]:
        return self.features.user_features

    @property
    def item_features(self) -> frozenset[str]:
        return self.features.item_features

    def users(self, user_ids: Sequence[str]) -> list[OnlineRow]:
        self._suffer()
        return self.features.users(user_ids)

    def items(self, item_ids: Sequence[str]) -> list[OnlineRow]:
        self._suffer()
        return self.features.items(item_ids)

    def published_versions(self, view_name: str, feature: str) -> frozenset[str]:
        return self.features.published_versions(view_name, feature)

    def current_schema(self) -> Schema:
        return self.features.current_schema()

    def _suffer(self) -> None:
        self.read_count += 1
        self.answers.wait(30)
        if self.fails:
            raise OnlineStoreAway("connection refused")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "din-liber")


@pytest.fixture(scope="module")
def repo(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("repo"), run=run)


@pytest.fixture
def fragile(repo: Path) -> FragileFeatures:
    return FragileFeatures(open_features(repo, service="ctr_serving"))


def guarded_ranker(fragile: FragileFeatures, *, run: Path, clock: Clock) -> tuple[Ranker, StoreGuard]:
    """Return a ranker whose reads have all the time there is."""
    guard = StoreGuard(timeout_s=60, breaker=CircuitBreaker(clock=clock))
    return Ranker(load_artifact(run), features=GuardedFeatures(fragile, guard=guard)), guard


def test_a_store_that_hangs_costs_a_bounded_wait_and_then_none(fragile: FragileFeatures, run: Path) -> None:
    clock = Clock()
    ranker, guard = guarded_ranker(fragile, run=run, clock=clock)
    known = ranker.score("u1", item_ids=["i1", "i2"])
    fragile.answers.clear()
    guard.timeout_s = TIMEOUT_S
    started = time.monotonic()
    for _ in range(5):
        away = ranker.score("u1", item_ids=["i1", "i2"])
        assert (away.missing.store, away.degraded) == (True, True)
    assert time.monotonic() - started >= 5 * TIMEOUT_S
    assert guard.breaker.is_open
    reads = fragile.read_count
    for _ in range(20):
        ranker.score("u1", item_ids=["i1", "i2"])
    clock.now += 1
    ranker.score("u1", item_ids=["i1"])
    assert fragile.read_count == reads  # nobody waits for a store that is known to be away
    unknown = [item.score for item in away.scores]
    fragile.answers.set()
    guard.timeout_s = 60
    clock.now += 60
    back = ranker.score("u1", item_ids=["i1", "i2"])
    assert (back.missing, back.degraded) == (known.missing, False)
    assert [item.score for item in back.scores] == pytest.approx([item.score for item in known.scores], abs=1e-6)
    nobody = ranker.score("nobody", item_ids=["i1", "i2"])
    assert unknown == pytest.approx([item.score for item in nobody.scores], abs=1e-6)


def test_titles_that_were_read_before_are_told_while_the_store_is_away(fragile: FragileFeatures, run: Path) -> None:
    ranker, _ = guarded_ranker(fragile, run=run, clock=Clock())
    ranker.score("u1", item_ids=["i1"])
    fragile.fails = True
    away = ranker.score("u1", item_ids=["i1", "i2"])
    assert [item.title for item in away.scores] == ["Title of i1", None]
    fragile.fails = False
    assert ranker.score("u1", item_ids=["i2"]).scores[0].title == "Title of i2"


def test_readiness_says_that_the_store_is_away_and_that_it_is_back(fragile: FragileFeatures, run: Path) -> None:
    clock = Clock()
    ranker, guard = guarded_ranker(fragile, run=run, clock=clock)
    served = Served(ranker=ranker, interests=InterestReader(fragile.features, fuser=None))
    with TestClient(create_app(Service(served, guard=guard, limits=PATIENT))) as client:
        assert client.get("/readyz").json() == {"ready": True, "model": None, "store": None, "versions": None}
        fragile.fails = True
        response = client.get("/readyz")
        assert response.status_code == 503
        assert "connection refused" in response.json()["store"]
        body = client.post("/v1/score", json={"user_id": "u1", "item_ids": ["i1"]}).json()
        assert (body["degraded"], body["missing"]["store"]) == (True, True)
        assert 'liber_serving_degraded_total{missing="store"}' in client.get("/metrics").text
        fragile.fails = False
        clock.now += 60
        assert client.get("/readyz").status_code == 200


def test_an_open_breaker_lets_one_attempt_through_each_time() -> None:
    clock = Clock()
    breaker = CircuitBreaker(failures=2, rest_s=5, clock=clock)
    for _ in range(2):
        assert breaker.allows()
        breaker.record(is_answered=False)
    assert breaker.is_open
    assert not breaker.allows()
    clock.now = 5
    assert [breaker.allows() for _ in range(3)] == [True, False, False]
    breaker.record(is_answered=False)
    assert not breaker.allows()
    clock.now = 10
    assert breaker.allows()
    breaker.record(is_answered=True)
    assert [breaker.allows() for _ in range(3)] == [True] * 3


def test_an_answer_between_failures_keeps_the_breaker_closed() -> None:
    breaker = CircuitBreaker(failures=2, clock=Clock())
    for is_answered in (False, True, False, True, False):
        breaker.record(is_answered=is_answered)
    assert not breaker.is_open
