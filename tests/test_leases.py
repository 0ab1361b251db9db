"""One owner at a time has a lease, on both databases, and whoever lost it marks nothing."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from liber_feast.errors import RetryableError
from liber_feast.memory import Memory, leases, schema
from liber_feast.memory.leases import PUBLISH, Lease, LeaseLost, acquire, held, release, renew
from tests import services
from tests.memory_parts import TinyBert, TinyEncoding, append_all, behavior, learn_all, no_progress

memory_url = services.memory_url

EXPIRED_S = 0.001


@pytest.fixture
def memory(memory_url: str) -> Iterator[Memory]:
    made = Memory.open(memory_url, base=Path())
    yield made
    made.close()


def taken(memory: Memory, owner: str, *, seconds: float = 60.0) -> Lease:
    lease = acquire(memory, PUBLISH, owner=owner, seconds=seconds)
    assert lease is not None
    return lease


def renewed(memory: Memory, lease: Lease) -> None:
    with memory.writing() as connection:
        renew(connection, lease)


def test_a_lease_has_one_owner_until_it_is_given_back(memory: Memory) -> None:
    first = taken(memory, "first")
    assert acquire(memory, PUBLISH, owner="second") is None
    renewed(memory, first)
    release(memory, first)
    assert taken(memory, "second").number == first.number + 1


def test_a_lease_of_another_name_is_free(memory: Memory) -> None:
    taken(memory, "first")
    assert acquire(memory, leases.FIT_PCA, owner="second") is not None


def test_an_expired_lease_is_taken_and_its_zombie_marks_nothing(memory: Memory) -> None:
    zombie = taken(memory, "zombie", seconds=EXPIRED_S)
    time.sleep(0.01)
    heir = taken(memory, "heir")
    with pytest.raises(LeaseLost), memory.writing() as connection:
        connection.execute(schema.settings.insert().values(name="done", value="by a zombie"))
        renew(connection, zombie)
    assert memory.setting("done") is None
    release(memory, zombie)
    renewed(memory, heir)


def test_an_expired_lease_that_nobody_took_can_still_be_renewed(memory: Memory) -> None:
    lease = taken(memory, "slow", seconds=EXPIRED_S)
    time.sleep(0.01)
    renewed(memory, lease)


def test_an_owner_who_takes_a_lease_again_does_not_bring_back_the_one_before(memory: Memory) -> None:
    before = taken(memory, "same", seconds=EXPIRED_S)
    time.sleep(0.01)
    taken(memory, "same")
    with pytest.raises(LeaseLost):
        renewed(memory, before)


def test_owners_in_many_threads_never_overlap(memory: Memory) -> None:
    inside, overlaps, start = [], [], threading.Barrier(4)

    def work() -> None:
        start.wait()
        for _ in range(3):
            with held(memory, PUBLISH):
                inside.append(threading.get_ident())
                time.sleep(0.003)
                overlaps.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == [1] * 12


def test_a_lease_is_renewed_for_as_long_as_it_is_held(memory: Memory) -> None:
    with held(memory, PUBLISH, seconds=0.3) as lease:
        time.sleep(0.7)
        assert acquire(memory, PUBLISH, owner="other") is None
        renewed(memory, lease)
    assert acquire(memory, PUBLISH, owner="other") is not None


def test_waiting_for_a_lease_ends_by_patience_or_when_told(memory: Memory) -> None:
    taken(memory, "other")
    with (
        pytest.raises(RetryableError, match="'publish' is held by another process"),
        held(memory, PUBLISH, patience_s=0),
    ):
        pass
    with pytest.raises(RetryableError), held(memory, PUBLISH, stop=lambda: True):
        pass


def test_a_lease_is_given_back_when_its_work_fails(memory: Memory) -> None:
    with pytest.raises(ZeroDivisionError), held(memory, PUBLISH):
        raise ZeroDivisionError
    assert acquire(memory, PUBLISH, owner="next") is not None


STEPS = st.lists(
    st.tuples(st.sampled_from(["acquire", "expire", "renew", "release"]), st.sampled_from(["a", "b", "c"])), max_size=12
)


@given(steps=STEPS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_after_any_steps_at_most_one_owner_can_mark(memory: Memory, steps: list[tuple[str, str]]) -> None:
    with memory.writing() as connection:
        connection.execute(schema.leases.delete())
    last: dict[str, Lease] = {}
    for action, owner in steps:
        if action == "acquire" and (lease := acquire(memory, PUBLISH, owner=owner)) is not None:
            last[owner] = lease
        elif action == "expire":
            with memory.writing() as connection:
                connection.execute(schema.leases.update().values(until=0))
        elif owner in last and action == "release":
            release(memory, last[owner])
        elif owner in last:
            with memory.reading() as connection:
                row = connection.execute(sa.select(schema.leases)).one()
            if (row.owner, row.number) == (owner, last[owner].number):
                renewed(memory, last[owner])
            else:
                with pytest.raises(LeaseLost):
                    renewed(memory, last[owner])
    able = 0
    for lease in last.values():
        try:
            renewed(memory, lease)
        except LeaseLost:
            continue
        able += 1
    assert able <= 1


class SlowBert(TinyBert):
    """Takes a moment, so that others come while it encodes."""

    def encode(self, texts, *, progress=None):  # type: ignore[no-untyped-def]
        time.sleep(0.1)
        return super().encode(texts, progress=progress)


def test_of_several_that_would_fit_the_pca_one_fits_it_and_the_others_wait(memory: Memory, tmp_path: Path) -> None:
    append_all(memory, [behavior(second) for second in range(8)])
    learn_all(memory)
    start, berts = threading.Barrier(3), [SlowBert(seed=seed) for seed in range(3)]
    encodings = [TinyEncoding(folder=tmp_path / "encoder", bert=bert) for bert in berts]

    def run(encoding: TinyEncoding) -> None:
        start.wait()
        encoding.run(memory, progress=no_progress)

    threads = [threading.Thread(target=run, args=(one,)) for one in encodings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([bert for bert in berts if bert.asked]) == 1
    assert len({one.pca().version for one in encodings if one.pca()}) == 1  # type: ignore[union-attr]
    with memory.reading() as connection:
        versions = connection.scalars(sa.select(schema.text_vectors.c.encoder_version).distinct()).all()
    assert len(versions) == 1
