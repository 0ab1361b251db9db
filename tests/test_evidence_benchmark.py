"""The numbers that `benchmarks.evidence` adds, against loops over all behaviors."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.evidence import WINDOW_ROWS, adjusted_numbers, before, item_numbers, main, measure, sets_of
from tests.test_training_evidence import dense, prepared, samples
from tests.training_parts import START

ROWS = [0, 1, 60, 500, 999]


@cache
def log() -> list[tuple[str, str, int, bool]]:
    """User, item, time and label of each sample."""
    table, made = samples("evidence").table, samples("evidence")
    return list(
        zip(
            table["user_id"].to_pylist(),
            table["item_id"].to_pylist(),
            made.times.tolist(),
            made.labels.tolist(),
            strict=True,
        )
    )


def like_rate_before(item: str, time: int) -> tuple[float, int]:
    liked = [label for _, name, when, label in log() if name == item and when < time]
    mean = float(np.mean([label for *_, label in log()]))
    return (sum(liked) + 5 * mean) / (len(liked) + 5), len(liked)


@pytest.mark.parametrize("row", ROWS)
def test_an_item_has_the_likes_that_came_strictly_before_the_sample(row: int) -> None:
    _, item, time, _ = log()[row]
    rate, count = like_rate_before(item, time)
    assert item_numbers(samples("evidence"))[row] == pytest.approx([rate, np.log1p(count)])


@pytest.mark.parametrize("row", ROWS)
def test_a_leaning_is_what_was_liked_more_than_before(row: int) -> None:
    user, _, time, _ = log()[row]
    own = [label - like_rate_before(item, when)[0] for name, item, when, label in log() if name == user and when < time]
    sealed = own[: len(own) // 4 * 4]  # partitions of four behaviors
    expected = [sum(own[-WINDOW_ROWS:]) / (len(own[-WINDOW_ROWS:]) + 2), sum(sealed) / (len(sealed) + 20)]
    assert adjusted_numbers(samples("evidence"))[row] == pytest.approx(expected)


def test_behaviors_of_one_time_do_not_see_each_other() -> None:
    made = samples("evidence")
    one_time = pa.array([START] * len(made.table), pa.timestamp("us", tz="UTC"))
    tied = made.table.set_column(made.table.column_names.index("event_timestamp"), "event_timestamp", one_time)
    rate, count = before(replace(made, table=tied))
    assert not count.any()
    assert rate == pytest.approx(np.full(len(made.table), made.labels.mean()))


def test_the_sets_begin_with_what_backbones_get() -> None:
    made = samples("evidence")
    found = sets_of(prepared("evidence"), items=item_numbers(made), adjusted=adjusted_numbers(made))
    np.testing.assert_allclose(found["baseline"], dense("baseline"), atol=1e-6)
    np.testing.assert_allclose(found["evidence"], dense("evidence"), atol=1e-6)
    assert [numbers.shape[1] for numbers in found.values()] == [4, 7, 6, 9, 7, 11]


def test_evidence_raises_what_a_regression_knows() -> None:
    found = measure(samples("evidence"), folds=1)
    assert {name: list(aucs) for name, aucs in found.items()}["baseline"] == ["fold 1", "final"]
    assert found["evidence"]["final"] > found["baseline"]["final"] + 0.01


def test_a_repo_that_is_none_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["evidence", "--repo", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^error: .*there is no feature_store.yaml"):
        main()
