"""Other weights are taken without a restart, or refused with a line that says why while the old ones go on."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from fastapi.testclient import TestClient
from feast import FeatureStore

from liber_feast.errors import ArtifactError
from liber_feast.repo import service_schema
from liber_feast.service_schema import Schema
from serving.app import create_app
from serving.ranker import open_ranker
from serving.service import Service, open_served, open_service
from serving.watch import REST_LOOKS, Watcher
from tests.serving_parts import OTHER_ENCODER, OTHER_VERSION, PATIENT, make_run, make_store, publish_fused

ITEMS = ["i1", "i2", "ghost"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, seed in (("first", 1), ("second", 2)):
        make_run(folder / name, features="baseline", seed=seed)
    make_run(folder / "liber", seed=3)
    return folder


@pytest.fixture(scope="module")
def whole_repo(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("repo"), run=runs / "liber")


@pytest.fixture
def repo(whole_repo: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole_repo, tmp_path / "repo"))


@pytest.fixture
def current(runs: Path, tmp_path: Path) -> Path:
    """A link to the first run, beside which the others lie."""
    shutil.copytree(runs, tmp_path / "runs")
    return point(tmp_path / "runs" / "current", to="first")


def point(link: Path, *, to: str) -> Path:
    """Point the link elsewhere at once, as `ln -sfn` does."""
    (link.parent / "new").symlink_to(link.parent / to, target_is_directory=True)
    (link.parent / "new").rename(link)
    return link


def watched(repo: Path, *, run: Path) -> tuple[Service, Watcher]:
    service = open_service(repo, run=run, limits=PATIENT)
    return service, Watcher(service, run=run, reopen=partial(open_served, repo, run=run, guard=service.guard))


def scores(repo: Path, *, run: Path) -> list[float]:
    return [item.score for item in open_ranker(repo, run=run).score("u1", item_ids=ITEMS).scores]


def ask(client: TestClient) -> tuple[str, list[float]]:
    response = client.post("/v1/score", json={"user_id": "u1", "item_ids": ITEMS})
    assert response.status_code == 200
    body = response.json()
    return body["model"]["run"], [item["score"] for item in body["scores"]]


def test_weights_are_swapped_where_the_link_is_pointed_and_back_again(repo: Path, current: Path) -> None:
    service, watcher = watched(repo, run=current)
    expected = {name: scores(repo, run=current.parent / name) for name in ("first", "second")}
    assert expected["first"] != pytest.approx(expected["second"], abs=1e-3)
    with TestClient(create_app(service)) as client:
        for name in ("first", "second", "first"):
            point(current, to=name)
            watcher.look()
            assert ask(client) == (name, pytest.approx(expected[name], abs=1e-6))
            assert client.get("/healthz").json()["model"]["run"] == name


def test_a_run_folder_that_is_replaced_is_served(repo: Path, current: Path) -> None:
    service, watcher = watched(repo, run=current.parent / "first")
    with TestClient(create_app(service)) as client:
        before = ask(client)[1]
        shutil.rmtree(current.parent / "first")
        watcher.look()
        assert ask(client)[1] == before
        assert "cannot be read" in client.get("/readyz").json()["model"]
        (current.parent / "second").rename(current.parent / "first")
        for _ in range(REST_LOOKS + 1):
            watcher.look()
        assert ask(client)[1] != pytest.approx(before, abs=1e-3)
        assert client.get("/readyz").json()["model"] is None


def test_weights_that_do_not_fit_are_refused_until_the_store_is_republished(repo: Path, current: Path) -> None:
    make_run(current.parent / "other", fusion_version=OTHER_VERSION)
    publish_fused(repo, user_ids=["u1"])
    service, watcher = watched(repo, run=current)
    with TestClient(create_app(service)) as client:
        point(current, to="other")
        watcher.look()
        assert ask(client)[0] == "first"
        ready = client.get("/readyz")
        assert ready.status_code == 200  # the weights that are served are as good as before
        assert OTHER_VERSION in ready.json()["model"]
        publish_fused(repo, user_ids=["of other weights"])
        for _ in range(REST_LOOKS):
            watcher.look()
        assert ask(client)[0] == "first"
        watcher.look()
        assert ask(client)[0] == "other"
        assert client.get("/readyz").json()["model"] is None


def test_altered_weights_are_refused(repo: Path, current: Path) -> None:
    (current.parent / "second" / "model.safetensors").write_bytes(b"torn")
    service, watcher = watched(repo, run=current)
    with TestClient(create_app(service)) as client:
        point(current, to="second")
        watcher.look()
        assert ask(client)[0] == "first"
        assert "was altered" in client.get("/readyz").json()["model"]


def test_requests_under_load_are_each_answered_by_one_run_whole(repo: Path, current: Path) -> None:
    service, watcher = watched(repo, run=current)
    expected = {name: scores(repo, run=current.parent / name) for name in ("first", "second")}
    done = threading.Event()

    def keep_swapping() -> None:
        names = ["second", "first"] * 50
        while not done.wait(0.02) and names:
            point(current, to=names.pop())
            watcher.look()

    with TestClient(create_app(service)) as client, ThreadPoolExecutor(9) as pool:
        swapping = pool.submit(keep_swapping)
        found = list(pool.map(lambda _: ask(client), range(200)))
        done.set()
        swapping.result()
    for name, got in found:
        assert got == pytest.approx(expected[name], abs=1e-6)
    assert {name for name, _ in found} == {"first", "second"}


def schema_of(repo: Path) -> Schema:
    return service_schema(FeatureStore(repo_path=str(repo)), "ctr_serving")


def test_a_service_as_it_was_at_training_is_served_though_features_came_since(repo: Path, tmp_path: Path) -> None:
    schema = dict(schema_of(repo))
    del schema["behavior_sequence:times"]
    assert open_ranker(repo, run=make_run(tmp_path / "run", schema=schema)).model.run == "run"


@pytest.mark.parametrize(
    ("trained", "line"),
    [
        ({"user_profile:gone": "String"}, "the feature 'user_profile:gone' is gone"),
        (
            {"behavior_sequence:times": "Array(Float64)"},
            "'behavior_sequence:times' is Array(Int64), it was Array(Float64)",
        ),
    ],
    ids=["gone", "another type"],
)
def test_a_service_that_changed_is_refused_with_the_feature(
    repo: Path, tmp_path: Path, trained: Schema, line: str
) -> None:
    run = make_run(tmp_path / "run", schema={**schema_of(repo), **trained})
    with pytest.raises(ArtifactError) as refused:
        open_ranker(repo, run=run)
    assert line in refused.value.message


def test_a_service_that_changes_under_a_running_server_is_noticed(repo: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", schema=schema_of(repo))
    with TestClient(create_app(open_service(repo, run=run, limits=PATIENT))) as client:
        assert client.get("/readyz").status_code == 200
        store = FeatureStore(repo_path=str(repo))
        service = store.get_feature_service("ctr_serving")
        view = store.get_feature_view("user_profile")
        service.feature_view_projections[0] = view[["profile"]].projection
        store.apply([service])
        response = client.get("/readyz")
        assert response.status_code == 503
        assert "'user_profile:age_group' is gone" in response.json()["versions"]


def test_items_of_another_encoder_are_refused(repo: Path, tmp_path: Path) -> None:
    write_deltalake(repo / "data" / "item_text", pa.table({"item_id": ["i1", "i2"]}))
    run = make_run(tmp_path / "run", features="evidence", item_encoder=OTHER_ENCODER)
    with pytest.raises(ArtifactError) as refused:
        open_ranker(repo, run=run)
    assert f"{OTHER_ENCODER}, the store has those of items-1" in refused.value.message
