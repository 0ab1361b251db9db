"""`liber forget USER`: remove a user from the memory, the Delta tables, the behavior log and the online store.

Every step can be repeated, and is, whatever an earlier run left undone: a run that ends has removed everything.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from liber_feast import delta_maintenance as maintenance
from liber_feast.delta_maintenance import Place
from liber_feast.engine import ID_TYPES
from liber_feast.errors import ConfigError, StoreNotReady
from liber_feast.evidence import ITEM_TEXT
from liber_feast.job import liber_views, open_job
from liber_feast.memory.forgetting import Removed, erase_deleted, forget_user
from liber_feast.offline_read import Location, locate, open_snapshot
from liber_feast.offline_write import save
from liber_feast.online import FeastOnlineSink
from liber_feast.publish import Publisher
from liber_feast.repo import open_engine
from liber_feast.republish import OnlineRowsOfUsers, own_turn
from liber_feast.sequences import BEHAVIORS

if TYPE_CHECKING:
    from feast import FeatureView, RepoConfig

LEFT = ("user_profile",)
"""What the source of the feature repo says of users, which is not the plugin's to delete."""
LARGEST_ID = 2**63 - 1


class ErasableOnline(OnlineRowsOfUsers, Protocol):
    """An online store from which users can be deleted, so that nothing of them stays."""

    def erase(self) -> None:
        """Remove what was deleted from the files of the store, too."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class BehaviorLog:
    """The source of the behaviors, and its own name for users."""

    location: Location
    user_column: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Forgotten:
    """What one run removed."""

    memory: Removed = field(default_factory=Removed)
    rows: dict[str, int] = field(default_factory=dict)
    """Of the Delta tables and the behavior log, by name."""
    online_rows: int = 0
    files_removed: int = 0

    def facts(self) -> dict[str, Any]:
        """Return the counts by name."""
        found = {"rows": self.rows, "online_rows": self.online_rows, "files_removed": self.files_removed}
        return {**asdict(self.memory), **found}


@dataclass(frozen=True, kw_only=True, slots=True)
class Forgetting:
    """One user who is being forgotten, step by step."""

    publisher: Publisher
    online: ErasableOnline
    user_id: str | int
    log: BehaviorLog | None = None
    """None: it is left as it is."""
    say: Callable[[str], object] = lambda _line: None

    def run(self) -> Forgotten:
        """Remove everything; return what there was.

        Raises:
            RetryableError, StoreFailure, MemoryFailure: something could not be removed; it is to be run again.
        """
        self.say("from the memory ...")
        removed = self.from_memory()
        self.say("from the Delta tables ...")
        rows, files = self.from_delta()
        if self.log is not None:
            self.say("from the behavior log ...")
            in_log, of_log = self.from_log(self.log)
            rows, files = {**rows, BEHAVIORS: in_log}, files + of_log
        self.say("from the online store ...")
        online_rows = self.from_online()
        self.say("from the files of the databases ...")
        self.erase()
        online_rows += self.from_online()  # a push that was under way when the memory forgot may have written since
        return Forgotten(memory=removed, rows=rows, online_rows=online_rows, files_removed=files)

    def from_memory(self) -> Removed:
        """Remove the user from the memory and write the tombstone, in one transaction."""
        with self.publisher.memory.writing("forget") as connection:
            return forget_user(connection, str(self.user_id))

    def from_delta(self) -> tuple[dict[str, int], int]:
        """Delete the rows of the published tables; return how many by table, and how many files are gone."""
        rows, files = {}, 0
        with own_turn(self.publisher, "forget") as numbered:
            for stage, table in self.publisher.tables.items():
                if stage == ITEM_TEXT:  # which says nothing of users
                    continue
                place = Place(path=str(table.path))
                if place.is_made():
                    rows[table.path.name] = maintenance.delete_users(place, [self.user_id], numbered=numbered)
                    files += maintenance.purge(place, is_alone=True)
        return rows, files

    def from_log(self, log: BehaviorLog) -> tuple[int, int]:
        """Delete the behaviors of the log; return how many there were, and how many files are gone."""
        location = log.location
        if location.is_delta:
            place = Place(path=location.path, options=location.storage_options)
            if not place.is_made():
                return 0, 0
            count = maintenance.delete_users(place, [self.user_id], column=log.user_column)
            return count, maintenance.purge(place, is_alone=False)
        try:
            snapshot = open_snapshot(location)
        except StoreNotReady:  # there is none
            return 0, 0
        table = snapshot.read(snapshot.dataset.schema.names)
        users = table[log.user_column]
        kept = table.filter(pc.not_equal(users, pa.scalar(self.user_id).cast(users.type)))
        if len(kept) < len(table):
            save(kept, location=location, overwrite=True)
        return len(table) - len(kept), 0

    def from_online(self) -> int:
        """Delete the rows of every view that is the plugin's; return how many there were."""
        return self.online.delete([self.user_id])

    def erase(self) -> None:
        """Remove what was deleted from the files of the databases, too."""
        erase_deleted(self.publisher.memory)
        self.online.erase()


def forget(repo: Path, user_id: str, *, keep_log: bool, say: Callable[[str], object]) -> dict[str, Any]:
    """Forget a user of a feature repo; return what was removed, and what is left to others.

    Raises:
        StoreNotReady: there is no feature repo, or one that was never applied.
        ConfigError: the id is none that a user can have.
        RetryableError, StoreFailure, MemoryFailure: something could not be removed; it is to be run again.
    """
    store, engine = open_engine(repo)
    config = store.config
    views = liber_views(store.registry, project=store.project)
    typed = typed_id(user_id, view=views[BEHAVIORS])
    job = open_job(config, registry=store.registry, online_store=engine.online_store, with_llm=False)
    online = FeastOnlineSink(store=engine.online_store, config=config, views=views)
    try:
        forgotten = Forgetting(
            publisher=replace(job.publisher(), online=online),
            online=online,
            user_id=typed,
            log=None if keep_log else behavior_log(views[BEHAVIORS], config=config),
            say=say,
        ).run()
    finally:
        online.close()
        job.memory.close()
    left = (*LEFT, BEHAVIORS) if keep_log else LEFT
    return {**forgotten.facts(), "left": ", ".join(left)}


def typed_id(user_id: str, *, view: "FeatureView") -> str | int:
    """Return a user's id as the repo has it.

    Raises:
        ConfigError: the id is none that a user can have.
    """
    if not user_id or "\0" in user_id:
        raise ConfigError("The id of the user is empty. Name one user.")
    (column,) = view.entity_columns
    if pa.types.is_string(ID_TYPES.get(column.dtype, pa.string())):
        return user_id
    try:
        number = int(user_id)
    except ValueError:
        number = LARGEST_ID + 1
    if not -LARGEST_ID - 1 <= number <= LARGEST_ID:
        raise ConfigError(f"user {user_id[:80]!r}: ids of users are whole numbers in this feature repo.")
    return number


def behavior_log(view: "FeatureView", *, config: "RepoConfig") -> BehaviorLog:
    """Return where behaviors are logged."""
    location = locate(view.batch_source, config=config, view=view)
    own = {new: old for old, new in (location.source.field_mapping or {}).items()}
    return BehaviorLog(location=location, user_column=own.get(view.join_keys[0], view.join_keys[0]))
