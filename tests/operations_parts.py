"""A published memory in a folder, with a behavior log and an online store, for the tests of what operators do."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from deltalake import DeltaTable, write_deltalake
from feast import FileSource
from feast.data_format import DeltaFormat

from liber_feast.behavior import Behavior
from liber_feast.delta import DeltaSink
from liber_feast.forget import BehaviorLog, Forgetting
from liber_feast.fuser import mean_fuser
from liber_feast.memory import Memory
from liber_feast.memory.schema import users
from liber_feast.offline_read import Location
from liber_feast.publish import VIEWS, Publisher
from tests.memory_parts import OnlineRows, TickingClock, append_all, behavior, encode_all, learn_all, table_of

ANN = "ann-of-o'hara"
"""Who is forgotten; her id needs quoting, and no text of the others has it."""


@dataclass(kw_only=True)
class OnlineUsers(OnlineRows):
    """An online store from which users can be deleted; it may crash before or after that, too."""

    def delete(self, user_ids: Sequence[str | int]) -> int:
        self.faults.reach()
        gone = sum(view.pop(user, None) is not None for view in self.rows.values() for user in user_ids)
        self.faults.reach()
        return gone

    def erase(self) -> None:
        pass


def stream_of(seconds: Sequence[float]) -> list[Behavior]:
    """Return behaviors of both users, one of each a second."""
    return [behavior(second, user=user, item=f"{user[0]}{second}") for second in seconds for user in (ANN, "bob")]


def publisher_of(folder: Path, memory: Memory, online: OnlineRows, *, version: str) -> Publisher:
    return Publisher(
        memory=memory,
        tables={stage: DeltaSink(path=folder / view) for stage, view in VIEWS.items()},
        online=online,
        fuser=lambda _encoder_version: replace(mean_fuser(width=4), version="mean"),
        encoder_version=version,
        vector_width=2,
        memory_window=2,
        sequence_length=3,
        clock=TickingClock(),
    )


def send(publisher: Publisher, stream: Sequence[Behavior], *, folder: Path, with_log: bool = True) -> None:
    """Log behaviors, append them, and publish everything that follows."""
    if with_log:
        write_deltalake(str(folder / "log"), table_of(stream), mode="append")
    append_all(publisher.memory, stream)
    learn_all(publisher.memory)
    encode_all(publisher.memory, folder=folder / "encoder")
    publisher.publish()


def published_folder(folder: Path, online: OnlineRows, *, url: str = "sqlite:///memory.db") -> Publisher:
    """Return the publisher of a new memory with two users, several partitions each, all published in two goes."""
    memory = Memory.open(url, base=folder)
    stream = stream_of(range(7))
    append_all(memory, stream[:8])
    learn_all(memory)
    version = encode_all(memory, folder=folder / "encoder")
    publisher = publisher_of(folder, memory, online, version=version)
    write_deltalake(str(folder / "log"), table_of(stream[:8]), mode="append")
    publisher.publish()
    send(publisher, stream[8:], folder=folder)
    return publisher


def forgetting(publisher: Publisher, online: OnlineUsers, *, folder: Path, user_id: str = ANN) -> Forgetting:
    source = FileSource(path=str(folder / "log"), file_format=DeltaFormat(), timestamp_field="event_timestamp")
    location = Location(source=source, path=str(folder / "log"), owner="the test")
    log = BehaviorLog(location=location, user_column="user_id")
    return Forgetting(publisher=publisher, online=online, user_id=user_id, log=log)


def tables_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of every Delta table in one order."""
    found = {}
    for path in sorted(one.parent for one in folder.glob("*/_delta_log")):
        rows = DeltaTable(str(path)).to_pyarrow_table().to_pylist()
        order = lambda row: (row["user_id"], row["event_timestamp"], row.get("created_timestamp"))  # noqa: E731
        found[path.name] = sorted(rows, key=order)
    return found


def of_bob(rows: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    return {name: [row for row in some if row["user_id"] == "bob"] for name, some in rows.items()}


def files_with(folder: Path, text: str) -> list[str]:
    """Return the files below a folder that have a text anywhere in their bytes."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and text.encode() in path.read_bytes()
    )


def known_users(memory: Memory) -> list[str]:
    with memory.reading() as connection:
        return list(connection.scalars(sa.select(users.c.user_id).where(users.c.forgotten_time.is_(None))))
