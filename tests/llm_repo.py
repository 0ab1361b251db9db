"""Small feature repos whose texts a stub server writes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import yaml
from click.testing import Result
from feast import FeatureStore

from benchmarks._llm_server import LLMServer
from liber_feast.interest import SHIFT, SUMMARY
from liber_feast.memory.schema import metadata, partitions, texts
from tests import feature_repo_kit as kit

KEY, KEY_ENV = "sk-a-key-that-nobody-may-see", "STUB_API_KEY"
CALL_COUNT = kit.SEALED_COUNT + kit.SHIFT_COUNT
"""Calls that the small data set takes where nothing goes wrong."""
WINDOW = (kit.START.isoformat(), kit.END.isoformat())


def interest(server: LLMServer, **keys: Any) -> dict[str, Any]:
    """Return an interest block; its timeout and attempts are short, so that faults cost no time."""
    block = {"backend": "openai", "model": "stub", "base_url": server.base_url, "max_concurrency": 4}
    return {**block, "timeout_s": 5, "max_attempts": 2, **keys}


def repo_of(target: Path, server: LLMServer, **keys: Any) -> Path:
    """Return a loaded repo that is not materialized, with the PCA of another one; `keys` are of the interest block."""
    return kit.repo_to_push_to(target, interest=interest(server, **keys))


def set_interest(repo: Path, block: dict[str, Any], **engine: Any) -> None:
    """Replace the interest block, and keys of the engine block beside it."""
    path = repo / "feature_store.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["batch_engine"] |= {"interest": block, **engine}
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


@contextmanager
def opened(repo: Path) -> Iterator[FeatureStore]:
    store = kit.open_store(repo)
    try:
        yield store
    finally:
        engine = store._get_provider().batch_engine  # type: ignore[attr-defined]  # Feast has no public way to it
        if engine._job is not None:
            engine._job.close_llm()
        kit.close(store)


def materialize(repo: Path) -> None:
    with opened(repo) as store:
        store.materialize(kit.START, kit.END)


def rows(repo: Path, query: sa.Select[Any]) -> list[tuple[Any, ...]]:
    """Return what a query finds in the memory."""
    engine = sa.create_engine(f"sqlite:///{repo / 'data' / 'memory.db'}")
    with engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(query)]
    engine.dispose()
    return found


def text_keys(repo: Path) -> list[tuple[int, int, str, int]]:
    """Return every text by user, partition, stage and revision."""
    columns = (texts.c.user_key, texts.c.partition_index, texts.c.stage, texts.c.revision)
    return [(user, index, stage, revision) for user, index, stage, revision in rows(repo, sa.select(*columns))]


def failures(repo: Path) -> dict[tuple[int, int], tuple[str, int]]:
    """Return reason and attempts of every failed partition."""
    columns = (partitions.c.user_key, partitions.c.partition_index, partitions.c.failure, partitions.c.attempts)
    found = rows(repo, sa.select(*columns).where(partitions.c.failure.is_not(None)))
    return {(user, index): (reason, attempts) for user, index, reason, attempts in found}


def calls(repo: Path) -> list[dict[str, Any]]:
    """Return every row of the ledger."""
    table = metadata.tables["calls"]
    names = [column.name for column in table.columns]
    return [dict(zip(names, row, strict=True)) for row in rows(repo, sa.select(table).order_by(table.c.call_id))]


def assert_whole(repo: Path) -> None:
    """Assert that every partition has its texts once, and that all of them are published."""
    keys = text_keys(repo)
    assert len(set(keys)) == len(keys) == CALL_COUNT
    assert {stage: sum(key[2] == stage for key in keys) for stage in (SUMMARY, SHIFT)} == {
        SUMMARY: kit.SEALED_COUNT,
        SHIFT: kit.SHIFT_COUNT,
    }
    assert not failures(repo)
    published = {table: len(kit.published(repo, table)) for table in ("partition_summary", "partition_shift")}
    assert published == {"partition_summary": kit.SEALED_COUNT, "partition_shift": kit.SHIFT_COUNT}
    vectors = {(row["user_id"], row["partition_index"]) for row in kit.published(repo, "partition_vector")}
    assert len(vectors) == kit.SEALED_COUNT


def program(name: str, repo: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `feast` or `liber` in the repo, as a user does."""
    return subprocess.run(
        [Path(sys.executable).with_name(name), *arguments],
        cwd=repo,
        env=environment_of(**environment),
        capture_output=True,
        text=True,
        check=False,
    )


def environment_of(**more: str) -> dict[str, str]:
    paths = [str(kit.FEATURE_REPO.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200", **more}


def errors_of(done: subprocess.CompletedProcess[str] | Result) -> list[str]:
    """Return the lines of stderr that are an error, after asserting that none is a traceback."""
    assert "Traceback" not in done.stderr, done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("Error: ")]


def everything_written(repo: Path) -> bytes:
    """Return the bytes of every file of the repo."""
    return b"".join(path.read_bytes() for path in sorted(repo.rglob("*")) if path.is_file())
