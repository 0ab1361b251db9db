"""A Delta table takes each number once, and every row of others stays, whoever writes at once and whatever fails."""

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError

from liber_feast import delta
from liber_feast.delta import DeltaSink
from liber_feast.errors import MemoryFailure, RetryableError, StoreFailure

NUMBERS = range(1, 7)


def rows_of(user: str) -> pa.Table:
    return pa.table({"user_id": [user]})


def users_in(sink: DeltaSink) -> list[str]:
    return sorted(DeltaTable(str(sink.path)).to_pyarrow_table()["user_id"].to_pylist())


@pytest.fixture
def sink(tmp_path: Path) -> DeltaSink:
    return DeltaSink(path=tmp_path / "deep" / "table")


def test_a_table_takes_each_number_of_a_memory_once(sink: DeltaSink) -> None:
    rows = rows_of("ann")
    assert sink.append(rows, app_id="one", version=1)
    assert not sink.append(rows, app_id="one", version=1)
    assert sink.append(rows, app_id="another", version=1)
    assert sink.append(rows, app_id="one", version=5)
    assert not sink.append(rows, app_id="one", version=3)
    assert users_in(sink) == ["ann"] * 3
    assert (sink.last_number("one"), sink.last_number("nobody")) == (5, None)


def test_a_table_is_opened_without_reading_more_than_a_few_commits(sink: DeltaSink) -> None:
    for number in range(1, 25):
        sink.append(rows_of("ann"), app_id="one", version=number)
    assert len(list((sink.path / "_delta_log").glob("*.checkpoint.parquet"))) == 2
    assert not sink.append(rows_of("ann"), app_id="one", version=5)
    assert len(users_in(sink)) == 24


def test_a_folder_without_a_commit_is_no_table(sink: DeltaSink) -> None:
    (sink.path / "_delta_log").mkdir(parents=True)
    assert not sink.is_made()
    assert sink.append(rows_of("ann"), app_id="one", version=1)
    assert sink.is_made()


def at_once(*works: Callable[[], None]) -> None:
    """Run the works in threads that start together."""
    start, errors = threading.Barrier(len(works)), []

    def run(work: Callable[[], None]) -> None:
        start.wait()
        try:
            work()
        except BaseException as error:  # noqa: BLE001 (it is raised again)
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_of_writers_at_once_one_brings_each_number(sink: DeltaSink) -> None:
    sink.make(rows_of("ann"))
    brought: list[int] = []

    def bring() -> None:
        for number in NUMBERS:
            if sink.append(rows_of(str(number)), app_id="one", version=number):
                brought.append(number)

    at_once(*[bring] * 4)
    assert sorted(brought) == list(NUMBERS)
    assert users_in(sink) == [str(number) for number in NUMBERS]


def test_writers_at_once_make_one_table(sink: DeltaSink) -> None:
    at_once(*[lambda: sink.make(rows_of("nobody"))] * 4)
    assert users_in(sink) == []
    assert sink.append(rows_of("ann"), app_id="one", version=1)


def compact(path: str) -> None:
    DeltaTable(path).optimize.compact()


def append_blindly(path: str) -> None:
    write_deltalake(path, rows_of("blind"), mode="append")


def delete_one(path: str) -> None:
    DeltaTable(path).delete("user_id = 'gone'")
    write_deltalake(path, rows_of("gone"), mode="append")


@pytest.mark.parametrize("disturb", [compact, append_blindly, delete_one])
def test_no_row_is_lost_or_doubled_while_others_change_the_table(
    sink: DeltaSink, disturb: Callable[[str], None]
) -> None:
    sink.append(rows_of("gone"), app_id="one", version=0)

    def bring() -> None:
        for number in NUMBERS:
            assert sink.append(rows_of("ann"), app_id="one", version=number)

    def disturb_often() -> None:
        for _ in NUMBERS:
            disturb(str(sink.path))

    at_once(bring, disturb_often)
    counts = Counter(users_in(sink))
    assert (counts["ann"], counts["gone"]) == (len(NUMBERS), 1)
    assert counts["blind"] in (0, len(NUMBERS))
    assert sink.last_number("one") == NUMBERS[-1]


@dataclass(frozen=True, kw_only=True, slots=True)
class ContendedTable(DeltaSink):
    """A real table whose first commits conflict with those of others."""

    conflict_count: int
    reason: str = "Concurrent transaction failed."
    tries: list[int] = field(default_factory=list)

    def _append(self, rows: pa.Table, *, app_id: str, version: int) -> bool:
        self.tries.append(version)
        if len(self.tries) <= self.conflict_count:
            raise CommitFailedError(f"Failed to commit transaction: {self.reason}")
        return DeltaSink._append(self, rows, app_id=app_id, version=version)


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "PAUSE_S", 0)


@pytest.mark.usefixtures("no_pauses")
def test_a_conflict_is_tried_again_and_after_many_the_caller_is_told_in_one_line(tmp_path: Path) -> None:
    contended = ContendedTable(path=tmp_path / "table", conflict_count=delta.TRIES - 1)
    assert contended.append(rows_of("ann"), app_id="one", version=1)
    assert users_in(contended) == ["ann"]
    busy = ContendedTable(path=tmp_path / "table", conflict_count=delta.TRIES)
    with pytest.raises(RetryableError, match="changed by others 10 times") as caught:
        busy.append(rows_of("bob"), app_id="one", version=2)
    assert "\n" not in str(caught.value)
    assert users_in(busy) == ["ann"]


@pytest.mark.usefixtures("no_pauses")
def test_a_commit_that_fails_for_the_disk_is_no_conflict(tmp_path: Path) -> None:
    reason = "Generic LocalFileSystem error: No space left on device (os error 28)"
    full = ContendedTable(path=tmp_path / "table", conflict_count=delta.TRIES, reason=reason)
    with pytest.raises(StoreFailure, match="No space left on device"):
        full.append(rows_of("ann"), app_id="one", version=1)
    assert len(full.tries) == 1


def test_a_folder_that_cannot_be_written_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for path in (tmp_path / "file" / "table", tmp_path / "file" / "deep" / "table"):
        with pytest.raises(StoreFailure, match="cannot be written") as caught:
            DeltaSink(path=path).append(rows_of("ann"), app_id="one", version=1)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import pyarrow as pa
from liber_feast.delta import DeltaSink
from liber_feast.errors import StoreFailure
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sink, rows = DeltaSink(path=Path(sys.argv[1])), pa.table({"user_id": ["bob"]})
try:
    sink.append(rows, app_id="one", version=2)
except StoreFailure as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(sink.append(rows, app_id="one", version=2))
"""


def test_a_full_disk_is_said_in_one_line_and_the_number_is_taken_once_there_is_room(sink: DeltaSink) -> None:
    sink.append(rows_of("ann"), app_id="one", version=1)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(sink.path)], check=True, timeout=60, text=True, capture_output=True
    )
    said, taken = done.stdout.splitlines()
    assert said.startswith(f"The Delta table {sink.path} cannot be written: ")
    assert "File too large" in said
    assert taken == "True"
    assert users_in(sink) == ["ann", "bob"]


def test_a_memory_that_is_older_than_its_table_is_told_what_to_run(sink: DeltaSink) -> None:
    sink.check_number(0, app_id="one")  # there is no table yet
    sink.append(rows_of("ann"), app_id="one", version=7)
    DeltaSink(path=sink.path).check_number(7, app_id="one")
    DeltaSink(path=sink.path).check_number(0, app_id="another")
    with pytest.raises(MemoryFailure, match="run `liber republish`") as caught:
        DeltaSink(path=sink.path).check_number(6, app_id="one")
    assert "\n" not in str(caught.value)
