"""Data that no backbone can be fitted on: one clear line each, and no run folder."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from tests.feature_repo_kit import materialized_repo
from training import (
    command,
    compare_command,  # noqa: F401 (makes the command known)
)

BOTH = ("--features", "liber+evidence")


def rewrite(repo: Path, table: str, change: Callable[[pa.Table], pa.Table]) -> None:
    path = str(repo / "data" / table)
    rows = DeltaTable(path).to_pyarrow_table()
    write_deltalake(path, change(rows), mode="overwrite", schema_mode="overwrite")


def without_ratings(repo: Path) -> None:
    rewrite(repo, "behaviors", lambda rows: rows.drop_columns(["rating"]))


def with_ratings(value: float, *, after: float) -> Callable[[Path], None]:
    """Return what gives every behavior after a share of them, in order of time, the same rating."""

    def change(rows: pa.Table) -> pa.Table:
        rows = rows.sort_by("event_timestamp")
        ratings = rows["rating"].to_numpy().copy()
        ratings[int(len(ratings) * after) :] = value
        return rows.set_column(rows.column_names.index("rating"), "rating", pa.array(ratings))

    return lambda repo: rewrite(repo, "behaviors", change)


def with_nan_in(column: str, *, table: str) -> Callable[[Path], None]:
    """Return what puts a NaN into one of the vectors of a published table."""

    def change(rows: pa.Table) -> pa.Table:
        field = rows.schema.field(column)
        vectors = rows[column].to_pylist()
        vectors[1][0] = float(np.nan)
        return rows.set_column(rows.column_names.index(column), field, pa.array(vectors, field.type))

    return lambda repo: rewrite(repo, table, change)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_ratings, "view 'behaviors': column 'rating' is missing"),
        (with_ratings(5.0, after=0), "the train part has one class only"),
        (with_ratings(1.0, after=0.9), "the test part has one class only: 0 likes among"),
        (with_nan_in("vector", table="partition_vector"), "not finite"),
        (with_nan_in("vector", table="item_text"), "not finite"),
        (with_nan_in("memory_evidence", table="partition_evidence"), "not finite"),
    ],
    ids=[
        "no labels",
        "likes alone",
        "dislikes alone in the test part",
        "NaN in a vector",
        "NaN in an item's vector",
        "NaN in evidence",
    ],
)
def test_samples_that_no_fit_can_use_are_refused_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], None],
    message: str,
) -> None:
    spoil(materialized_repo(tmp_path / "feature_repo"))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()  # of `feast apply`
    compare = ["compare", "--backbones", "din", "--folds", "1"]
    for arguments in (["fit", *BOTH], ["search", *BOTH], compare):
        monkeypatch.setattr(sys, "argv", ["training", *arguments])
        with pytest.raises(SystemExit) as ended:
            command.main()
        assert ended.value.code == 1
        shown = capsys.readouterr()
        line = next(line for line in shown.err.splitlines() if line.startswith("Error: "))
        assert message in line.replace(" of fold 1", "").replace(" of the final block", "")  # which `compare` has
        assert shown.err.rstrip().endswith(line)
        assert shown.out == ""
        assert not (tmp_path / "runs").exists()
