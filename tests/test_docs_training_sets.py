"""The examples of docs/training_sets.md, run in their order beside a materialized feature repo."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.feature_repo_kit import WIDTH, materialized_repo

PAGE = Path(__file__).resolve().parents[1] / "docs" / "training_sets.md"


def test_the_examples_run_and_give_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    materialized_repo(tmp_path / "feature_repo")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)  # noqa: S102  # the page's own code
    training_set, memory, first = names["training_set"], names["memory"], names["first"]
    assert training_set["user_id"].to_pylist() == ["u0001", "u0001"]
    assert memory.lengths[1] > 0
    assert first.shape == (memory.lengths[0], 2 * WIDTH)
    vectors, sealed = names["vectors"], names["sealed"]
    assert vectors.shape == (2, 50, 2 * WIDTH)
    assert sealed.sum(1).tolist() == memory.lengths.tolist()
    assert vectors[1][sealed[1]].flatten().tolist() == training_set["vectors"][1].as_py()
