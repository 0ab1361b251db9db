"""Claims: nobody works on a user beside another one, and whoever dies leaves nothing for good."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from liber_feast.errors import BackendUnreachable
from liber_feast.memory import Memory
from liber_feast.memory.claims import (
    PUT_ASIDE_S,
    Claim,
    claim,
    enqueue,
    is_anyone_waiting,
    kept,
    renew,
    settle,
    waiting_keys,
)
from liber_feast.memory.clock import now_us
from liber_feast.memory.schema import partitions, waiting
from tests import services
from tests.memory_parts import learn_all, new_memory
from tests.worker_parts import keys_of, seal, waiting_rows

memory_url = services.memory_url
NAMES = ("ann", "bob", "cid", "dora")


@pytest.fixture
def memory(memory_url: str, tmp_path: Path) -> Iterator[Memory]:
    """A memory of four users who wait, ann the longest."""
    opened = Memory.open(memory_url, base=tmp_path)
    seal(opened, NAMES)
    with opened.writing() as connection:
        for place, key in enumerate(keys_of(opened)[name] for name in NAMES):
            row = waiting.update().where(waiting.c.user_key == key)
            connection.execute(row.values(since=waiting.c.since - 10**9 + place))
    yield opened
    opened.close()


def names_of(memory: Memory, claimed: Claim) -> list[str]:
    return sorted(name for name, key in keys_of(memory).items() if key in claimed.numbers)


def end(memory: Memory, claimed: Claim, *, is_due: tuple[str, ...] = (), in_s: float = 0.0) -> dict[str, int]:
    """Settle a claim; users in `is_due` are put off for so many seconds."""
    keys = keys_of(memory)
    with memory.writing() as connection:
        not_before = now_us(connection) + int(in_s * 1e6)
        return settle(connection, claimed, is_due=[keys[name] for name in is_due], not_before=not_before)


def test_claims_share_no_user_and_take_the_longest_waiting_first(memory: Memory) -> None:
    first, second, third = (claim(memory, limit=limit) for limit in (1, 2, 9))
    assert [names_of(memory, one) for one in (first, second, third)] == [["ann"], ["bob", "cid"], ["dora"]]
    assert len({first.owner, second.owner, third.owner}) == 3
    assert claim(memory).numbers == {}
    assert min(first.waited_s, second.waited_s) >= 999


def test_a_user_who_is_readable_waits_no_more(memory: Memory) -> None:
    claimed = claim(memory, limit=3)
    assert end(memory, claimed) == {"done": 3, "released": 0, "lost": 0}
    assert set(waiting_rows(memory)) == {"dora"}


def test_a_user_who_sealed_a_partition_meanwhile_waits_on_and_is_free_at_once(memory: Memory) -> None:
    claimed = claim(memory)
    seal(memory, ["bob"], start=10)
    assert end(memory, claimed) == {"done": 3, "released": 1, "lost": 0}
    assert names_of(memory, claim(memory)) == ["bob"]


def test_who_is_put_off_is_claimed_later_or_by_name(memory: Memory) -> None:
    assert end(memory, claim(memory), is_due=("cid",), in_s=3_600) == {"done": 3, "released": 1, "lost": 0}
    with memory.reading() as connection:
        assert not is_anyone_waiting(connection)
        assert waiting_keys(connection) == [keys_of(memory)["cid"]]
    assert claim(memory).numbers == {}
    assert names_of(memory, claim(memory, user_keys=list(keys_of(memory).values()))) == ["cid"]
    assert waiting_rows(memory)["cid"].claim_count == 1


def test_a_push_brings_back_who_was_put_off(memory: Memory) -> None:
    end(memory, claim(memory), is_due=("cid",), in_s=3_600)
    seal(memory, ["cid"], start=10)
    assert names_of(memory, claim(memory)) == ["cid"]


def test_a_claim_that_ran_out_is_taken_and_its_owner_can_end_nothing(memory: Memory) -> None:
    dead = claim(memory, seconds=-1, limit=1)
    assert names_of(memory, dead) == ["ann"]
    taken = claim(memory)
    assert names_of(memory, taken) == ["ann"]
    assert renew(memory, dead).numbers == {}
    assert end(memory, dead) == {"done": 0, "released": 0, "lost": 1}
    assert waiting_rows(memory)["ann"].lease_owner == taken.owner
    assert end(memory, taken)["done"] == 1


def test_a_claim_that_is_renewed_stays(memory: Memory) -> None:
    claimed = claim(memory, seconds=1.5)
    with kept(memory, claimed, seconds=1.5) as beat:
        time.sleep(2.0)
        assert claim(memory).numbers == {}
        assert beat.claim == claimed


def test_a_row_that_another_transaction_holds_is_passed_over_and_not_waited_for(memory: Memory) -> None:
    if memory.engine.dialect.name != "postgresql":
        pytest.skip("SQLite has one writer at a time")
    ann = sa.select(waiting).where(waiting.c.user_key == keys_of(memory)["ann"]).with_for_update()
    with memory.writing() as connection:
        connection.execute(ann).one()
        assert names_of(memory, claim(memory)) == ["bob", "cid", "dora"]


def test_a_user_whose_claim_did_not_end_is_claimed_alone(memory: Memory) -> None:
    claim(memory, seconds=-1, limit=2)
    shares = [claim(memory) for _ in range(4)]
    assert [names_of(memory, one) for one in shares] == [["ann"], ["bob"], ["cid", "dora"], []]
    assert [one.is_alone for one in shares] == [True, True, False, False]


def test_users_join_a_claim_but_none_whose_claim_did_not_end(memory: Memory) -> None:
    claim(memory, seconds=-1, limit=1)
    with memory.writing() as connection:
        connection.execute(waiting.update().values(since=sa.case((waiting.c.lease_owner.is_(None), 1), else_=2)))
    first = claim(memory, limit=1)
    joined = claim(memory, limit=9, joining=first)
    assert (names_of(memory, first), names_of(memory, joined)) == (["bob"], ["bob", "cid", "dora"])
    assert claim(memory, joining=joined) == joined  # ann is left alone
    assert waiting_rows(memory)["ann"].claim_count == 1
    assert end(memory, joined)["done"] == 3


def test_a_text_that_no_worker_survives_fails_and_the_rest_of_its_user_goes_on(memory: Memory) -> None:
    learn_all(memory)
    seal(memory, ["ann"], partitions=2, start=10)
    ann = [keys_of(memory)["ann"]]
    for _ in range(3):
        claim(memory, seconds=-1, user_keys=ann, max_claims=3)
    assert failures(memory) == {}
    assert claim(memory, seconds=-1, user_keys=ann, max_claims=3).numbers.keys() == set(ann)
    assert failures(memory) == {1: "no worker survived it (3 claims)"}
    assert waiting_rows(memory)["ann"].claim_count == 1  # the next text has as many


def failures(memory: Memory) -> dict[int, str]:
    query = sa.select(partitions).where(partitions.c.failure.is_not(None))
    with memory.reading() as connection:
        return {row.partition_index: row.failure for row in connection.execute(query)}


def test_a_user_whom_no_worker_survives_though_no_text_is_missing_rests(memory: Memory) -> None:
    learn_all(memory)
    for _ in range(2):
        claim(memory, seconds=-1, limit=1, max_claims=2)
    assert claim(memory, limit=1, max_claims=2).numbers == {}
    with memory.reading() as connection:
        rests = waiting_rows(memory)["ann"].not_before - now_us(connection)
    assert rests / 1e6 == pytest.approx(PUT_ASIDE_S, abs=60)
    assert failures(memory) == {}


@pytest.mark.parametrize(
    ("error", "claim_count"),
    [(BackendUnreachable("away"), 0), (KeyboardInterrupt(), 0), (ValueError("a bug"), 1)],
    ids=["ours", "interrupt", "a bug"],
)
def test_work_that_raises_frees_its_users_and_only_a_bug_counts_against_them(
    memory: Memory, error: BaseException, claim_count: int
) -> None:
    claimed = claim(memory, limit=1)
    with pytest.raises(type(error)), kept(memory, claimed):
        raise error
    row = waiting_rows(memory)["ann"]
    assert (row.lease_owner, row.claim_count) == (None, claim_count)
    assert "ann" not in names_of(memory, claim(memory))
    assert names_of(memory, claim(memory, user_keys=[row.user_key])) == ["ann"]


def test_a_claim_that_was_ended_is_not_renewed_and_nobody_counts_as_lost(memory: Memory) -> None:
    claimed = claim(memory)
    before = lost_count()
    with kept(memory, claimed, seconds=0.03) as beat:
        time.sleep(0.05)
        held = beat.end()
        with memory.writing() as connection:
            settle(connection, held)
        time.sleep(0.1)  # until more than one renewal would be due
    assert held.numbers == claimed.numbers
    assert beat.claim == held
    assert lost_count() == before


def lost_count() -> float:
    return REGISTRY.get_sample_value("liber_claims_total", {"outcome": "lost"}) or 0.0


def test_who_waits_already_is_not_let_wait_anew(memory: Memory) -> None:
    end(memory, claim(memory, limit=1))
    before = waiting_rows(memory)
    with memory.writing() as connection:
        enqueue(connection, set(keys_of(memory).values()))
    after = waiting_rows(memory)
    assert set(after) == set(NAMES)
    assert {name: after[name] for name in before} == before


STEPS = st.one_of(
    st.tuples(st.just("seal"), st.sampled_from(NAMES)),
    st.tuples(st.just("claim"), st.integers(1, 3)),
    st.tuples(st.just("die"), st.integers(1, 3)),
    st.tuples(st.just("settle"), st.integers(0, 3)),
)


@settings(max_examples=40)
@given(st.lists(STEPS, max_size=14))
def test_no_two_live_claims_share_a_user_and_nobody_is_done_who_sealed_since(steps: list[tuple[str, object]]) -> None:
    memory, live, due, second = new_memory(), list[Claim](), set[str](), 0
    for kind, value in steps:
        if kind == "seal":
            second += 10
            seal(memory, [str(value)], start=second)
            due.add(str(value))
        elif kind == "claim":
            live.append(claim(memory, limit=int(str(value)), max_claims=99))
            due -= set(names_of(memory, live[-1]))
        elif kind == "die":
            due |= set(names_of(memory, claim(memory, seconds=-1, limit=int(str(value)), max_claims=99)))
        elif live:
            end(memory, live.pop(int(str(value)) % len(live)))
        held = [key for one in live for key in one.numbers]
        assert len(held) == len(set(held))
        assert due <= set(waiting_rows(memory))
    memory.close()
