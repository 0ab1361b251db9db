"""Small memories and the doubles that fill them, for the tests of everything that stands on the memory."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import sqlalchemy as sa

from liber_feast.behavior import BEHAVIOR_ID, CREATED_TIME, EVENT_TIME, ITEM, RATING, TIMESTAMP, USER, Behavior
from liber_feast.condition import Condition, CountCondition
from liber_feast.encoding import Encoding
from liber_feast.interest import Answers, Item, LearnedText, ShiftRequest, SummaryRequest, learn
from liber_feast.memory import Memory
from liber_feast.memory.schema import behaviors, partitions, users
from liber_feast.parts import PLAIN
from liber_feast.waves import MemoryWaves

START = datetime(2020, 1, 1, tzinfo=UTC)
START_US = 1_577_836_800_000_000
SECOND_US = 1_000_000
TWO = CountCondition(2)


def new_memory(folder: Path | None = None) -> Memory:
    """Return a fresh memory: a file in `folder`, or one that lives in this thread alone."""
    return Memory.open("sqlite://" if folder is None else "sqlite:///memory.db", base=folder or Path())


def behavior(
    second: float, *, user: str | int = "ann", name: str = "", item: str | int = "a", rating: float = 4.0
) -> Behavior:
    time = START + timedelta(seconds=second)
    return Behavior(user_id=user, item_id=item, rating=rating, event_time=time, behavior_id=name or f"{second:09}")


def table_of(stream: Sequence[Behavior]) -> pa.Table:
    """Return behaviors as a canonical table, in the order of `check_behaviors`."""
    rows = sorted(stream, key=lambda one: (one.event_time, one.behavior_id))
    kind = pa.int64() if rows and isinstance(rows[0].user_id, int) else pa.string()
    item_kind = pa.int64() if rows and isinstance(rows[0].item_id, int) else pa.string()
    return pa.table(
        {
            USER: pa.array([one.user_id for one in rows], kind),
            ITEM: pa.array([one.item_id for one in rows], item_kind),
            RATING: pa.array([one.rating for one in rows], pa.float64()),
            EVENT_TIME: pa.array([one.event_time for one in rows], TIMESTAMP),
            BEHAVIOR_ID: pa.array([one.behavior_id for one in rows], pa.string()),
        }
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sealed:
    """What the memory says of one partition."""

    behavior_ids: tuple[str, ...]
    partition_hash: str
    first_time: int
    last_time: int
    seal_time: int
    condition: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """Partitions by user and index, and caches by user, behavior ids in the order of the cache."""

    partitions: Mapping[str, tuple[Sealed, ...]]
    caches: Mapping[str, tuple[str, ...]]

    def behavior_ids(self, user: str) -> list[str]:
        """Return every behavior the memory has of a user, as often as it has it."""
        sealed = [name for one in self.partitions.get(user, ()) for name in one.behavior_ids]
        return [*sealed, *self.caches.get(user, ())]


def contents(memory: Memory) -> Contents:
    with memory.reading() as connection:
        names = {row.user_key: row.user_id for row in connection.execute(sa.select(users))}
        placed: dict[tuple[str, int | None], list[str]] = defaultdict(list)
        in_order = (
            behaviors.c.user_key,
            behaviors.c.order_time,
            behaviors.c.order_time > behaviors.c.event_time,
            behaviors.c.behavior_id,
        )
        for row in connection.execute(sa.select(behaviors).order_by(*in_order)):
            placed[names[row.user_key], row.partition_index].append(row.behavior_id)
        found: dict[str, list[Sealed]] = defaultdict(list)
        for row in connection.execute(
            sa.select(partitions).order_by(partitions.c.user_key, partitions.c.partition_index)
        ):
            user = names[row.user_key]
            assert row.partition_index == len(found[user])
            sealed = tuple(placed.pop((user, row.partition_index)))
            assert row.behavior_count == len(sealed)
            found[user].append(
                Sealed(
                    behavior_ids=sealed,
                    partition_hash=row.partition_hash,
                    first_time=row.first_time,
                    last_time=row.last_time,
                    seal_time=row.seal_time,
                    condition=row.condition,
                )
            )
        for row in connection.execute(sa.select(users)):
            assert row.partition_count == len(found[row.user_id])
    assert {index for _, index in placed} <= {None}
    return Contents(
        partitions={user: tuple(some) for user, some in found.items() if some},
        caches={user: tuple(some) for (user, _), some in placed.items()},
    )


def everything(memory: Memory) -> dict[str, list[tuple[object, ...]]]:
    """Return every row of every table of a memory."""
    with memory.reading() as connection:
        names = sa.inspect(connection).get_table_names()
        return {name: [tuple(row) for row in connection.execute(sa.text(f"SELECT * FROM {name}"))] for name in names}


class SmallCatalog:
    """A catalog in which an item has its id as its title, and a user a profile made of their id."""

    def items(self, item_ids: Iterable[str]) -> Mapping[str, Item]:
        return {item_id: Item(item_id=item_id, title=f"the {item_id}") for item_id in item_ids}

    def items_at(self, wanted: Iterable[tuple[str, int]]) -> Mapping[tuple[str, int], Item]:
        return {(item_id, time): self.items([item_id])[item_id] for item_id, time in wanted}

    def profiles_at(self, wanted: Iterable[tuple[str, int]]) -> Mapping[tuple[str, int], str]:
        return {(user_id, time): f"profile of {user_id}" for user_id, time in wanted}


@dataclass(kw_only=True)
class EchoLearner:
    """Answers with what it was asked, and keeps every request; `says` replaces every answer."""

    model: str = "echo-1"
    prompt_version: str = "test-1"
    counts_behaviors: bool = True
    says: str | None = None
    summaries: list[SummaryRequest] = field(default_factory=list)
    shifts: list[ShiftRequest] = field(default_factory=list)
    waves: list[str] = field(default_factory=list)

    def summarize(self, requests: Iterable[SummaryRequest]) -> Iterator[Answers[SummaryRequest]]:
        self.waves.append("summaries")
        for one in reversed(list(requests)):  # answers come in any order
            self.summaries.append(one)
            titles = ", ".join(str(behavior.item.title) for behavior in one.behaviors)
            yield [(one, self._answer(f"{one.user_id} likes {titles}"))]

    def learn_shifts(self, requests: Iterable[ShiftRequest]) -> Iterator[Answers[ShiftRequest]]:
        self.waves.append("shifts")
        for one in requests:
            self.shifts.append(one)
            yield [(one, self._answer(f"{one.user_id} moved from ({one.previous_summary}) to ({one.summary})"))]

    def _answer(self, text: str) -> LearnedText:
        return LearnedText(text=text if self.says is None else self.says, input_tokens=3, output_tokens=2)


@dataclass(kw_only=True)
class TickingClock:
    """A clock that moves on by a second whenever it is read, from `time`, microseconds."""

    time: int = START_US + 10**9 * SECOND_US

    def __call__(self) -> int:
        self.time += SECOND_US
        return self.time


def no_progress(stage: str, count: int, total: int | None) -> None:
    pass


def waves_of(memory: Memory, learner: EchoLearner, *, user_keys: Sequence[int] | None = None) -> MemoryWaves:
    return MemoryWaves(
        memory=memory,
        catalog=SmallCatalog(),
        learner=learner,
        like_above=3.0,
        clock=TickingClock(),
        user_keys=user_keys,
    )


def learn_all(memory: Memory, learner: EchoLearner | None = None) -> EchoLearner:
    """Write every missing text; return the learner."""
    used = learner or EchoLearner()
    learn(used, waves_of(memory, used), progress=no_progress)
    return used


def append_all(memory: Memory, stream: Sequence[Behavior], *, condition: Condition = TWO) -> None:
    memory.append(table_of(stream), condition=condition)


@dataclass(kw_only=True)
class TinyBert:
    """Encodes a text as eight numbers that depend on it alone, and keeps what it was asked."""

    name: str = "tiny"
    model_hash: str = "0123456789abcdef"
    width: int = 8
    seed: int = 0
    asked: list[str] = field(default_factory=list)

    def for_short_texts(self) -> "TinyBert":
        return self

    def encode(
        self, texts: Sequence[str], *, progress: Callable[[int], object] | None = None
    ) -> npt.NDArray[np.float32]:
        self.asked += texts
        if progress is not None:
            progress(len(texts))
        seeds = [int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) for text in texts]
        rows = [np.random.default_rng(seed + self.seed).normal(size=self.width) for seed in seeds]
        return np.array(rows, np.float32).reshape(len(texts), self.width)


class TinyEncoding(Encoding):
    """The encoder stage with `TinyBert` in the place of BERT."""

    def __init__(self, *, folder: Path, width: int = 2, bert: TinyBert | None = None, form: str = PLAIN) -> None:
        super().__init__(folder=folder, model="tiny", width=width, form=form)
        self.tiny = bert or TinyBert()

    def bert(self) -> Any:
        return self.tiny


def encode_all(memory: Memory, *, folder: Path, width: int = 2, seed: int = 0) -> str:
    """Give every text its vector; return the encoder version."""
    encoding = TinyEncoding(folder=folder, width=width, bert=TinyBert(seed=seed))
    encoding.run(memory, progress=no_progress)
    pca = encoding.pca()
    assert pca is not None
    return pca.version


class Crash(Exception):
    """The process ends here."""


@dataclass(kw_only=True)
class Faults:
    """Crashes once, when `reach` was called `steps` times; None: never."""

    steps: int | None = None
    reached: int = 0

    def reach(self) -> None:
        self.reached += 1
        if self.steps is not None and self.reached == self.steps + 1:
            raise Crash


class OneAfterTheOther(Executor):
    """Does what it is given at once, in the thread that gives it, and lets a crash through."""

    def __init__(self, max_workers: int) -> None:
        del max_workers

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


@dataclass(kw_only=True)
class OnlineRows:
    """An online store: the newest row of each view and user; may crash before or after a write."""

    faults: Faults = field(default_factory=Faults)
    rows: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    numbers: dict[tuple[str, str], int] = field(default_factory=dict)
    """What the rows were written with: of equal times the higher one is newer."""
    write_count: int = 0

    def write(
        self, view: str, rows: pa.Table, *, number: int | Sequence[int] | None = None, force: bool = False
    ) -> None:
        self.faults.reach()
        self.write_count += 1
        numbers = number if isinstance(number, Sequence) else [number or 0] * len(rows)
        for row, one in zip(rows.to_pylist(), numbers, strict=True):
            key, stored = (view, row[USER]), self.rows.get(view, {}).get(row[USER])
            if force or stored is None or (row[EVENT_TIME], one) >= (stored[EVENT_TIME], self.numbers[key]):
                self.rows.setdefault(view, {})[row[USER]] = row
                self.numbers[key] = one
        self.faults.reach()

    def write_together(self, rows: Mapping[str, pa.Table]) -> None:
        for view, some in rows.items():
            self.write(view, some, number=some[CREATED_TIME].cast(pa.int64()).to_pylist())

    def delete(self, user_ids: Sequence[str | int]) -> int:
        return sum(rows.pop(str(one), None) is not None for rows in self.rows.values() for one in user_ids)
