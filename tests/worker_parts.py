"""Jobs that real worker processes open by themselves, and a learner that writes down what it is asked."""

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from liber_feast.fuser import mean_fuser
from liber_feast.interest import SHIFT, SUMMARY, Answers, LearnedText, ShiftRequest, SummaryRequest
from liber_feast.materialize import Job
from liber_feast.memory import Memory
from liber_feast.memory.schema import texts, users, waiting
from liber_feast.pace import Pace
from liber_feast.pca import FrozenPca
from liber_feast.publish import VIEWS, DeltaSink
from liber_feast.title_vectors import TitleVectors
from tests.memory_parts import (
    TWO,
    EchoLearner,
    OnlineRows,
    SmallCatalog,
    TinyBert,
    TinyEncoding,
    append_all,
    behavior,
)

CALLS = "calls"

_R = TypeVar("_R", SummaryRequest, ShiftRequest)


@dataclass(kw_only=True)
class WrittenLearner(EchoLearner):
    """Takes `seconds` for each text and writes down who asked for it, and that it was kept once the next is asked for.

    It kills its process at the texts of the user `deadly`, and lets it stand still at the first one of `stopping`.
    """

    path: Path
    seconds: float = 0.0
    deadly: str | None = None
    stopping: str | None = None

    def summarize(self, requests: Iterable[SummaryRequest]) -> Iterator[Answers[SummaryRequest]]:
        for one in requests:
            yield from self._written(one, stage=SUMMARY)

    def learn_shifts(self, requests: Iterable[ShiftRequest]) -> Iterator[Answers[ShiftRequest]]:
        for one in requests:
            yield from self._written(one, stage=SHIFT)

    def _written(self, one: _R, *, stage: str) -> Iterator[Answers[_R]]:
        key = f"{os.getpid()} {stage} {one.user_id} {one.partition_index}"
        self._write(f"asked {key}")
        if one.user_id == self.deadly:
            os.abort()
        if one.user_id == self.stopping:
            self.stopping = None
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(self.seconds)
        yield [(one, LearnedText(text=f"{stage} {one.user_id} {one.partition_index}"))]
        self._write(f"kept {key}")

    def _write(self, line: str) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{line}\n".encode())
        os.close(descriptor)


@dataclass(frozen=True, kw_only=True)
class Call:
    """A line of what a `WrittenLearner` wrote."""

    what: str
    pid: int
    stage: str
    user: str
    index: int

    @property
    def text(self) -> tuple[str, str, int]:
        return self.stage, self.user, self.index


def calls(folder: Path) -> list[Call]:
    """Return what was written, in order."""
    path = folder / CALLS
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [
        Call(what=what, pid=int(pid), stage=stage, user=user, index=int(index))
        for what, pid, stage, user, index in lines
    ]


def asked(folder: Path) -> list[tuple[str, str, int]]:
    """Return the texts that were asked for, each as often as it was."""
    return [one.text for one in calls(folder) if one.what == "asked"]


@dataclass(frozen=True, kw_only=True)
class TinyEncoder:
    """What `TextEncoder` does, without loading torch in every process."""

    bert: TinyBert
    pca: FrozenPca

    def encode(
        self, texts: Sequence[str], *, progress: Callable[[int], object] | None = None
    ) -> npt.NDArray[np.float32]:
        return self.pca.transform(self.bert.encode(texts, progress=progress))


class LightEncoding(TinyEncoding):
    """The encoder stage without torch."""

    def _encoder(self, pca: FrozenPca) -> Any:
        return TinyEncoder(bert=self.tiny, pca=pca)


def small_job(
    folder: Path,
    url: str,
    *,
    seconds: float = 0.0,
    deadly: str | None = None,
    stopping: str | None = None,
    pace: Pace | None = None,
    width: int = 2,
) -> Job:
    """Return a job without an LLM or BERT; a process can open it."""
    encoding, catalog = LightEncoding(folder=folder / "encoder", width=width), SmallCatalog()
    return Job(
        memory=Memory.open(url, base=folder),
        condition=TWO,
        learner=WrittenLearner(path=folder / CALLS, seconds=seconds, deadly=deadly, stopping=stopping),
        catalog=catalog,
        like_above=3.0,
        encoding=encoding,
        title_vectors=TitleVectors(encoding=encoding, catalog=catalog),
        fuser=lambda _encoder_version: mean_fuser(width=2 * width),
        tables={stage: DeltaSink(path=folder / view) for stage, view in VIEWS.items()},
        online=OnlineRows(),
        memory_window=50,
        sequence_length=50,
        pace=pace or Pace(wait_ms=0, poll_ms=20, lease_s=1.0),
    )


def seal(memory: Memory, user_ids: Sequence[str], *, partitions: int = 1, start: int = 0) -> None:
    """Let users wait: give each so many partitions of two behaviors."""
    seconds = range(start, start + 2 * partitions)
    append_all(memory, [behavior(one, user=user, item=f"{user}{one}") for user in user_ids for one in seconds])


def keys_of(memory: Memory) -> dict[str, int]:
    with memory.reading() as connection:
        return {row.user_id: row.user_key for row in connection.execute(sa.select(users))}


def waiting_rows(memory: Memory) -> dict[str, sa.Row[tuple[object, ...]]]:
    """Return the rows of `waiting` by user."""
    with memory.reading() as connection:
        found = connection.execute(sa.select(waiting, users.c.user_id).join(users)).all()
    return {row.user_id: row for row in found}


def kept_texts(memory: Memory) -> list[tuple[str, str, int]]:
    """Return the texts that are there."""
    query = sa.select(texts, users.c.user_id).select_from(texts.join(users, users.c.user_key == texts.c.user_key))
    with memory.reading() as connection:
        return sorted((row.stage, row.user_id, row.partition_index) for row in connection.execute(query))


def let_claims_end(memory: Memory) -> None:
    """Do to every claim what time does to that of a dead process."""
    with memory.writing() as connection:
        connection.execute(waiting.update().where(waiting.c.lease_owner.is_not(None)).values(lease_until=0))
