"""A memory on PostgreSQL that is dumped and brought back as docs/operations.md says."""

import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from liber_feast.backup import backup, restore
from liber_feast.forget import forget
from liber_feast.repo import repo_status
from tests import services
from tests.feature_repo_kit import (
    LIBER_VIEWS,
    PUBLISHED_TABLES,
    close,
    log_of,
    materialized_repo,
    online,
    open_store,
    published,
    repo_to_push_to,
    users_of,
)
from tests.test_backup import push, quietly

postgres_cluster = services.postgres_cluster
PAGE = Path(__file__).resolve().parents[1] / "docs" / "operations.md"


def features_of(repo: Path) -> tuple[Mapping[str, Any], dict[str, list[Any]]]:
    """Return what training and serving read, times of creation aside."""
    store = open_store(repo)
    found = online(store, users_of(repo), "behaviors", *LIBER_VIEWS)
    close(store)
    return {name: published(repo, name) for name in PUBLISHED_TABLES}, found


def line_of_the_page(program: str, **words: str) -> list[str]:
    """Return a line of the page with its places replaced."""
    (line,) = re.findall(rf"^{program} .*$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for old, new in words.items():
        assert old in line
        line = line.replace(old, new)
    found, *rest = shlex.split(line)
    return [str(services.program(found)), *rest]


def test_a_memory_that_was_dumped_and_restored_serves_what_it_did_and_goes_on_as_if_nothing_had_happened(
    postgres_cluster: services.PostgresCluster, tmp_path: Path
) -> None:
    if services.program("pg_dump") is None or services.program("pg_restore") is None:
        pytest.skip("pg_dump and pg_restore of PostgreSQL are not installed")
    repo = repo_to_push_to(tmp_path / "repo", memory=postgres_cluster.url)
    log, address = log_of(repo), postgres_cluster.url.replace("+psycopg", "")
    push(repo, log.slice(0, 30))
    at_backup, folder = features_of(repo), tmp_path / "a backup"
    facts = backup(repo, folder, say=quietly)
    program, *words = shlex.split(facts["run"])
    assert [program, *words] == [
        *("pg_dump", "--format=custom", f"--file={folder / 'memory.dump'}", sa.make_url(address).render_as_string())
    ]
    subprocess.run([str(services.program(program)), *words], check=True)
    push(repo, log.slice(30, 20))
    forget(repo, "u0001", keep_log=True, say=quietly)
    assert features_of(repo) != at_backup

    command = line_of_the_page("pg_restore", **{"postgresql://liber@db/liber": address})
    subprocess.run([*command[:-1], str(folder / "memory.dump")], check=True)
    said = restore(repo, folder, say=quietly)
    assert said["forgotten_again"] == 0  # whom it was asked to forget since the backup, it does not know
    assert features_of(repo) == at_backup
    push(repo, log.slice(30))
    whole = materialized_repo(tmp_path / "whole")
    assert features_of(repo) == features_of(whole)
    assert repo_status(repo)["duplicate_behaviors"] == 0
    forget(repo, "u0001", keep_log=True, say=quietly)
    push(repo, log)
    assert "u0001" not in {row["user_id"] for row in published(repo, "partition_summary")}
