import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from liber_feast.errors import ArtifactError, ConfigError
from tests.test_training_fit import OPTIONS, samples_of
from tests.training_parts import sample_table
from training.fit import Prepared, fit, prepare
from training.options import FitConfig, read_config
from training.search import (
    Outcome,
    Point,
    SearchFile,
    best,
    fit_at,
    grid,
    search,
    search_identity,
    without_test,
)

SHORT = replace(OPTIONS, epochs=1)
POINTS = grid(batch_sizes=[32, 64], learning_rates=[0.01, 0.001])


pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def prepared() -> Prepared:
    return prepare(samples_of(sample_table(count=300)), options=SHORT)


@cache
def outcomes() -> tuple[Outcome, ...]:
    return tuple(search(prepared(), options=SHORT, points=POINTS, jobs=1))


def figures(found: Sequence[Outcome]) -> list[Outcome]:
    """Return the outcomes without the time they took."""
    return [replace(outcome, seconds=None) for outcome in found]


def file_at(path: Path, *, base: FitConfig | None = None) -> SearchFile:
    base = FitConfig(features="liber", options=SHORT) if base is None else base
    return SearchFile(path=path, base=base, identity=search_identity(prepared(), base=base))


def test_the_grid_of_the_paper_has_ten_points() -> None:
    assert len(grid()) == 10
    assert {point.batch_size for point in grid()} == {512, 1024}
    assert [point.learning_rate for point in grid()[:5]] == [1e-3, 7.5e-4, 5e-4, 2.5e-4, 1e-4]
    assert grid(batch_sizes=[8, 8], learning_rates=[0.1]) == [Point(batch_size=8, learning_rate=0.1)]


def test_each_point_is_the_fit_of_its_options() -> None:
    assert [outcome.point for outcome in outcomes()] == POINTS
    expected = fit(prepared(), options=replace(SHORT, batch_size=64, learning_rate=0.01))
    found = outcomes()[2]
    assert found.validation_auc == expected.validation.auc
    assert found.validation_log_loss == expected.validation.log_loss
    assert found.epochs == expected.epochs
    assert len({outcome.validation_auc for outcome in outcomes()}) > 1


def test_a_search_has_no_test_part() -> None:
    assert len(prepared().split.test) == 30
    assert len(without_test(prepared()).split.test) == 0
    labels = prepared().labels.copy()
    labels[prepared().split.test] ^= True
    other = search(replace(prepared(), labels=labels), options=SHORT, points=POINTS[:2], jobs=1)
    assert figures(other) == figures(outcomes()[:2]), "what the test part says changes nothing"


def test_the_best_is_that_of_the_highest_auc_then_of_the_lowest_log_loss() -> None:
    def outcome(auc: float | None, log_loss: float | None, rate: float) -> Outcome:
        point = Point(batch_size=8, learning_rate=rate)
        return Outcome(point=point, validation_auc=auc, validation_log_loss=log_loss, failure=None if auc else "why")

    found = [outcome(None, None, 1), outcome(0.7, 0.6, 2), outcome(0.8, 0.6, 3), outcome(0.8, 0.5, 4)]
    assert best(found).point.learning_rate == 4
    assert best(reversed(found)).point.learning_rate == 4
    with pytest.raises(ConfigError, match="every fit of the search failed; the first one: why"):
        best(found[:1])


def test_a_point_whose_loss_is_not_finite_is_one_that_failed() -> None:
    options = replace(SHORT, backbone="tests.test_training_fit:Diverging", backbone_config={})
    found = fit_at(without_test(prepared()), options=options, point=POINTS[0])
    assert found.validation_auc is None
    assert found.failure is not None
    assert "not finite" in found.failure


def test_a_search_that_was_cut_off_fits_what_is_left(tmp_path: Path) -> None:
    file = file_at(tmp_path / "din.search.json")
    file.write(outcomes()[:3], complete=False)
    done = file.read()
    assert done == list(outcomes()[:3])
    with pytest.raises(ConfigError, match="nor the search.json of a search that ended"):
        read_config(file.path)
    seen: list[int] = []
    found = search(
        prepared(),
        options=SHORT,
        points=POINTS,
        jobs=2,
        done=done,
        on_outcome=lambda so_far: seen.append(len(so_far)),
    )
    assert seen == [4]
    assert figures(found) == figures(outcomes())


def test_the_best_options_are_those_that_fit_reads(tmp_path: Path) -> None:
    file = file_at(tmp_path / "din.search.json")
    file.write(outcomes(), complete=True)
    config = read_config(file.path)
    point = best(outcomes()).point
    expected = replace(SHORT, batch_size=point.batch_size, learning_rate=point.learning_rate)
    assert config.features == "liber"
    assert config.options.to_json() == expected.to_json()
    assert fit(prepared(), options=config.options).validation.auc == best(outcomes()).validation_auc


def test_a_search_is_of_one_set_of_options_and_samples(tmp_path: Path) -> None:
    path = tmp_path / "din.search.json"
    file_at(path).write(outcomes(), complete=True)
    same = FitConfig(features="liber", options=replace(SHORT, batch_size=7, learning_rate=0.5))
    assert file_at(path, base=same).read() == list(outcomes()), "these two are what is searched"
    other = FitConfig(features="liber", options=replace(SHORT, epochs=3))
    with pytest.raises(ArtifactError, match="is of another fit: epochs was 1 and is 3 now"):
        file_at(path, base=other).read()
    labels = prepared().labels.copy()
    labels[0] ^= True
    identity = search_identity(replace(prepared(), labels=labels), base=same)
    with pytest.raises(ArtifactError, match="is of another fit: inputs was"):
        replace(file_at(path), identity=identity).read()


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"format_version": 1, "fits": [{"point": 1}]})])
def test_a_file_that_is_no_search_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "din.search.json"
    path.write_text(content)
    with pytest.raises(ArtifactError, match="is no search") as error:
        file_at(path).read()
    assert "\n" not in error.value.message


def test_a_search_is_told_from_its_points_alone() -> None:
    identity = search_identity(prepared(), base=FitConfig(features="liber", options=SHORT))
    assert not {"batch_size", "learning_rate"} & identity.keys()
    assert {"seed", "backbone", "inputs"} <= identity.keys()
