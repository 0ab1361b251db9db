"""A slice of the small data set replayed through push: what is online equals what a point-in-time join rebuilds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from feast import FeatureStore
from rich.console import Console

from liber_feast.artifact import Artifact, load_artifact
from liber_feast.behavior import EVENT_TIME, TIMESTAMP
from liber_feast.errors import DataSetError
from liber_feast.repo import open_applied_store, use_run
from serving.online import OnlineFeatures
from serving.ranker import Ranker
from serving.replay import Asked, compare, replay
from serving.replay_repo import Day, find_day, make_repo
from tests import feature_repo_kit as kit
from tests.test_training_fit import OPTIONS
from training.run import run_fit

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True, kw_only=True)
class Replayed:
    store: FeatureStore
    artifact: Artifact
    asked: Sequence[Asked]


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Replayed:
    folder = tmp_path_factory.mktemp("parity")
    repo, run = kit.materialized_repo(folder / "repo"), folder / "run"
    run_fit(repo, features="liber+evidence", folder=run, options=OPTIONS, console=Console(quiet=True))
    made = make_repo(folder / "made", repo=repo, day=most_of(repo), run=feast)
    use_run(run, repo=made)
    store, artifact = open_applied_store(made), load_artifact(run)
    features = OnlineFeatures(store, service=artifact.feature_service)
    ranker = Ranker(artifact, features=features)
    known = artifact.spec.items.ids[:7]

    def choose(_: str, own: Sequence[str]) -> list[str]:
        return list(dict.fromkeys([*own, *known]))

    asked = list(replay(store, most_of(repo).behaviors, features=features, ranker=ranker, choose=choose))
    return Replayed(store=store, artifact=artifact, asked=asked)


def most_of(repo: Path) -> Day:
    """Return all that came after the first quarter of the log, though it is more than a day."""
    log = kit.log_of(repo)
    times = log[EVENT_TIME].cast(TIMESTAMP)
    start = times.take(pa.array([len(log) // 4]))[0].as_py().astimezone(UTC)
    return Day(
        start=start,
        behaviors=log.filter(pc.greater_equal(times, start)),
        earlier=log.filter(pc.less(times, start)),
    )


def feast(arguments: Sequence[str], folder: Path) -> None:
    result = kit.feast(folder, *arguments)
    assert result.exit_code == 0, result.output


def test_online_equals_offline_bit_for_bit_and_scores_within_a_hundred_thousandth(replayed: Replayed) -> None:
    parity = compare(replayed.store, replayed.asked, artifact=replayed.artifact)
    assert parity.feature_differences == ()
    assert parity.requests > 10
    assert parity.with_interests > 5
    assert parity.worst_score < 1e-5


def test_the_fused_vector_gives_the_score_of_the_partition_vectors(replayed: Replayed) -> None:
    assert compare(replayed.store, replayed.asked, artifact=replayed.artifact).worst_raw_score < 1e-5


def test_a_difference_is_found_and_named(replayed: Replayed) -> None:
    first, *others = replayed.asked
    name = "behavior_sequence__behavior_count"
    wrong = replace(first, features={**first.features, name: -1}, scores=(first.scores[0] + 0.01, *first.scores[1:]))
    parity = compare(replayed.store, [wrong, *others], artifact=replayed.artifact)
    (difference,) = parity.feature_differences
    assert name in difference
    assert parity.worst_score == pytest.approx(0.01, abs=1e-4)


def test_a_day_is_found_with_its_users_and_what_they_did_before(tmp_path: Path) -> None:
    repo = kit.loaded_repo(tmp_path / "repo")
    log = kit.log_of(repo)
    times = log[EVENT_TIME].cast(TIMESTAMP)
    day = find_day(repo, day=None, user_limit=1)
    assert day.start.date() == pc.max(times).as_py().date()
    assert len(day.user_ids) == 1
    assert set(day.earlier["user_id"].to_pylist()) <= set(day.user_ids)
    with pytest.raises(DataSetError, match="no behavior on 1999-01-01"):
        find_day(repo, day=day.start.replace(year=1999, month=1, day=1).date(), user_limit=None)
