"""The shell examples of docs/operations.md, run in their order beside a materialized feature repo."""

import re
import shlex
from pathlib import Path

import pytest

from liber_feast.cli import app
from tests.feature_repo_kit import materialized_repo, published

PAGE = Path(__file__).resolve().parents[1] / "docs" / "operations.md"


def test_the_examples_run_and_leave_the_features_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = materialized_repo(tmp_path / "feature_repo")
    before = [row for row in published(repo, "partition_summary") if row["user_id"] != "u0003"]
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert [line[1] for line in lines] == [
        *("forget", "republish", "republish", "republish", "encode", "compact", "backup", "restore")
    ]
    for program, *words in lines:
        assert program == "liber"
        app(words, standalone_mode=False)
    assert published(repo, "partition_summary") == before
    assert (tmp_path / "backups" / "monday" / "memory.db").is_file()
