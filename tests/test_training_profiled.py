"""Profiles that were written of `u1.base` and are judged on `u1.test`: who sees what, and who is judged by whom."""

import csv
import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from liber_feast.behavior import EVENT_TIME, ITEM, RATING, USER
from liber_feast.datasets.profiles import MODEL, Profiled, read_profiled
from liber_feast.errors import ConfigError, DataSetError
from liber_feast.recent_behaviors import RecentBehaviors
from tests import feature_repo_kit as kit
from tests.test_datasets_movielens import small_100k
from tests.test_datasets_profiles import HEADER, NOW, START, row
from training.command import cli
from training.data import Samples, load_samples
from training.fit import fit, prepare
from training.options import FitOptions
from training.profiled import judged_samples, judged_time, profiled_repo, user_folds
from training.profiled_command import facts, feature_sets, markdown
from training.profiled_fits import judge

JUDGED_AT = 2_000_000
USERS = 24


def samples(users: list[int], *, judged: list[bool]) -> Samples:
    """Return samples of which some are asked for at `JUDGED_AT`."""
    count = len(users)
    times = pa.array(
        [JUDGED_AT if is_judged else row for row, is_judged in enumerate(judged)], pa.timestamp("us", "UTC")
    )
    table = pa.table(
        {
            USER: pa.array([f"u{user}" for user in users], pa.string()),
            ITEM: pa.array(["i"] * count),
            RATING: pa.array([4.0, 2.0] * (count // 2) + [4.0] * (count % 2)),
            EVENT_TIME: times,
        }
    )
    nothing = np.zeros(count, np.int64)
    recent = RecentBehaviors(
        starts=nothing,
        lengths=nothing,
        item_ids=pa.array([], pa.large_string()),
        ratings=pa.array([], pa.float64()),
        times=np.zeros(0, np.int64),
    )
    return Samples(table=table, recent=recent, like_above=3.0, user_columns=(), item_columns=(), catalog=None)


@given(st.lists(st.tuples(st.integers(0, USERS - 1), st.booleans()), max_size=40), st.integers(0, 3))
def test_every_judged_sample_is_tested_once_by_a_model_that_saw_none_of_its_users(
    more: list[tuple[int, bool]], seed: int
) -> None:
    rows = [*((user, True) for user in range(USERS)), *more]
    found = samples([user for user, _ in rows], judged=[is_judged for _, is_judged in rows])
    users, is_judged = np.array([user for user, _ in rows]), np.array([one for _, one in rows])
    splits = user_folds(found, judged_at=JUDGED_AT, folds=2, seed=seed)
    tested = np.concatenate([split.test for split in splits])
    assert sorted(tested.tolist()) == np.flatnonzero(is_judged).tolist()
    for split in splits:
        every = np.concatenate([split.train, split.validation, split.test])
        assert sorted(every.tolist()) == list(range(len(rows)))
        trained = split.train[is_judged[split.train]]
        assert is_judged[split.validation].all()
        assert set(np.flatnonzero(~is_judged).tolist()) <= set(split.train.tolist())
        of_parts = [set(users[part].tolist()) for part in (trained, split.validation, split.test)]
        assert all(of_parts)
        assert not (of_parts[0] & of_parts[1] or of_parts[0] & of_parts[2] or of_parts[1] & of_parts[2])


def test_too_few_users_or_folds_are_one_line() -> None:
    found = samples(list(range(19)), judged=[True] * 19)
    with pytest.raises(DataSetError, match="^19 users have a profile and ratings to judge; 2 folds need more of them"):
        user_folds(found, judged_at=JUDGED_AT, folds=2)
    with pytest.raises(ConfigError, match="^1 folds: there must be 2 or more"):
        user_folds(found, judged_at=JUDGED_AT, folds=1)


def test_more_samples_stand_beside_those_of_the_log_and_in_nobodys_history(tmp_path: Path) -> None:
    repo = kit.materialized_repo(tmp_path / "repo")
    alone = load_samples(repo, features="liber")
    last = max(kit.log_of(repo)[EVENT_TIME].to_pylist())
    more = pa.table(
        {USER: ["u0001", "u0001"], ITEM: ["i0001", "i0002"], RATING: [5.0, 1.0], EVENT_TIME: pa.array([last] * 2)}
    )
    both = load_samples(repo, features="liber", more=more)
    assert len(both.labels) == len(alone.labels) + 2
    kept = both.table.filter(pa.array(~_rows_of(both, more)))
    assert kept.select([USER, ITEM, RATING, "behavior_count"]).equals(
        alone.table.select([USER, ITEM, RATING, "behavior_count"])
    )


def _rows_of(found: Samples, more: pa.Table) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    wanted = {tuple(row.values()) for row in more.to_pylist()}
    names = more.column_names
    return np.array([tuple(row[name] for name in names) in wanted for row in found.table.select(names).to_pylist()])


def small_profiled(folder: Path, *, users: int) -> tuple[Path, Path]:
    """Return a data set whose users rate 30 films and are judged on four, and profiles of all but the last user."""
    data = small_100k(folder / "ml-100k")
    films = "".join(f"{film}|Film {film} (1990)|01-Jan-1990||http://x|0|{film % 2}|1\n" for film in range(1, 35))
    (data / "u.item").write_bytes(films.encode("latin-1"))
    (data / "u.user").write_text("".join(f"{user}|24|M|other|08571\n" for user in range(1, users + 1)))
    base, test = [], []
    for user in range(1, users + 1):
        for film in range(1, 35):
            into = base if (film + user) % 8 else test
            into.append(f"{user}\t{film}\t{5 if film % 3 else 2}\t{START + 40 * user + film}\n")
    (data / "u1.base").write_text("".join(base))
    (data / "u1.test").write_text("".join(test))
    path = folder / "profiles.csv.gz"
    with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
        rows = [
            row(str(user), [f"User {user} likes {word}." for word in ("drama", "crime")]) for user in range(1, users)
        ]
        csv.writer(file).writerows([HEADER, *rows])
    return data, path


def small_repo(folder: Path, *, users: int = 3) -> tuple[Path, Profiled]:
    data, path = small_profiled(folder, users=users)
    template = kit.copy_feature_repo(folder / "template")
    profiled = read_profiled(data, path, now=NOW, expected=None)
    profiled_repo(template, profiled=profiled, folder=folder / "repo")
    return folder / "repo", profiled


def test_profiles_are_seen_by_the_judged_samples_alone(tmp_path: Path) -> None:
    repo, profiled = small_repo(tmp_path)
    assert {row["model"] for row in kit.published(repo, "partition_summary")} == {MODEL}
    found = judged_samples(repo, profiled=profiled, features="liber")
    assert found.vectors is not None
    is_judged = found.times == judged_time(profiled)
    users = found.table[USER].to_numpy(zero_copy_only=False)
    assert found.vectors.lengths[is_judged].tolist() == [2] * int(is_judged.sum())
    assert set(found.vectors.lengths[~is_judged].tolist()) == {0}
    assert set(users[is_judged]) == {"1", "2"}  # user 3 has no profile
    assert int((~is_judged).sum()) == len(profiled.data_set.behaviors)
    histories = found.table["behavior_count"].to_numpy()
    assert histories[is_judged].tolist() == [
        sum(one == user for one in profiled.data_set.behaviors[USER].to_pylist()) for user in users[is_judged]
    ]


def test_every_feature_set_judges_every_rating_and_the_table_says_what_was_gained(tmp_path: Path) -> None:
    repo, profiled = small_repo(tmp_path, users=22)
    sets = feature_sets(judged_samples(repo, profiled=profiled, features="liber+evidence"))
    liber = sets["liber"]
    for name, own in sets.items():
        alone = judged_samples(repo, profiled=profiled, features=name)
        assert (own.features, own.fingerprint) == (name, alone.fingerprint)
        assert own.item_width == alone.item_width > 0
        assert (own.vectors is None, own.evidence is None) == (alone.vectors is None, alone.evidence is None)
    folds = user_folds(liber, judged_at=judged_time(profiled), folds=2)
    options = FitOptions(epochs=1)
    found = judge(sets, folds=folds, options=options, seeds=2)
    judged = np.flatnonzero(liber.times == judged_time(profiled))
    assert found.labels_J.tolist() == liber.labels[judged].tolist()
    alone = fit(prepare(liber, options=options, split=folds[1]), options=replace(options, seed=1))
    assert alone.test_logits is not None
    rows = np.searchsorted(judged, folds[1].test)
    assert found.logits_SJ["liber"][1, rows].tolist() == alone.test_logits.tolist()
    figures = facts(found, backbone=options.backbone, folds=2, seeds=2)
    assert (figures["judged_users"], figures["judged_samples"]) == (21, len(judged))
    one = figures["features"]["liber"]
    gain = np.mean(one["auc_by_seed"]) - np.mean(figures["features"]["baseline"]["auc_by_seed"])
    assert one["auc_gain"] == pytest.approx(gain)
    assert 0 < one["user_p_value"] <= 1
    table = markdown(figures).splitlines()
    assert [line.split(" | ")[0] for line in table[-4:]] == [f"| {name}" for name in sets]


def test_files_that_are_not_the_original_ones_are_one_line(tmp_path: Path) -> None:
    data, path = small_profiled(tmp_path, users=3)
    done = CliRunner().invoke(cli, ["profiles", str(data), str(path), "--out", str(tmp_path / "out")])
    assert str(done.exception).startswith(f"{data / 'u1.base'}: found ")
    assert "expected 80,000: the file is truncated or edited" in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_exists_is_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["profiles", str(tmp_path), str(tmp_path), "--out", str(tmp_path)])
    assert str(done.exception) == f"{tmp_path} exists. Name another folder with --out, or remove it."
