"""The ledger of calls: limits, outcomes, days and runs, and what was spent."""

from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from liber_feast.budget import NANODOLLARS, Amount, CallOutcome, Limits, PlannedCall, Prices, SettledCall, cost_of
from liber_feast.errors import RetryableError
from liber_feast.memory import Memory
from liber_feast.memory.call_tables import calls
from liber_feast.memory.ledger import IDS_PER_QUERY, MemoryLedger, Remaining
from liber_feast.memory.spending import Spent, SpentBy, TypicalCall, run_spent, spent, typical_call
from tests.ledger_parts import MOST, NOON, PRICES, TODAY, SetClock, answered, counters, ledger_of, planned, sums
from tests.memory_parts import everything, new_memory

SCOPES = [pytest.param("run", "of this run", id="run"), pytest.param("day", f"of {TODAY} (UTC)", id="day")]
MIDNIGHT = NOON.replace(hour=0) + timedelta(days=1)


@dataclass(kw_only=True, eq=False)
class Begun:
    """Counts the transactions of a memory."""

    count: int = 0

    def of(self, memory: Memory) -> "Begun":
        sa.event.listen(memory.engine, "begin", self)
        return self

    def __call__(self, connection: sa.Connection) -> None:
        self.count += 1


def settle(ledger: MemoryLedger, *settled: SettledCall) -> None:
    assert ledger.exchange(settled=settled, wanted=()).call_ids == ()


def row_of(memory: Memory, call_id: int) -> sa.Row[tuple[object, ...]]:
    with memory.reading() as connection:
        return connection.execute(sa.select(calls).where(calls.c.call_id == call_id)).one()


@pytest.mark.parametrize(("scope", "of_scope"), SCOPES)
@pytest.mark.parametrize(
    ("limits", "words"),
    [
        pytest.param(Limits(calls=3), "the 3 calls", id="calls"),
        pytest.param(Limits(tokens=300), "the 300 tokens", id="just the tokens"),
        pytest.param(Limits(tokens=399), "the 399 tokens", id="a token too few"),
        pytest.param(Limits(dollars=3 * MOST / NANODOLLARS), "the 0.00036 dollars", id="just the dollars"),
        pytest.param(Limits(dollars=0.000479), "the 0.000479 dollars", id="dollars too few"),
    ],
)
def test_a_limit_lets_as_many_calls_through_as_fit_at_the_most(
    limits: Limits, words: str, scope: str, of_scope: str
) -> None:
    memory = new_memory()
    ledger = ledger_of(memory, run=limits) if scope == "run" else ledger_of(memory, day=limits)
    grant = ledger.exchange(settled=(), wanted=planned(5))
    assert len(grant.call_ids) == 3
    assert grant.limit == f"{words} {of_scope}"
    assert (
        counters(memory)
        == sums(memory)
        == dict.fromkeys(counters(memory), Amount(calls=3, tokens=300, nanodollars=3 * MOST))
    )


def test_without_limits_every_call_is_granted_and_written_down() -> None:
    memory = new_memory()
    ledger = ledger_of(memory)
    grant = ledger.exchange(settled=(), wanted=[*planned(2, user_id=7), *planned(1, stage="shift")])
    assert grant.limit is None
    with memory.reading() as connection:
        rows = [row._asdict() for row in connection.execute(sa.select(calls).order_by(calls.c.call_id))]
    assert [row.pop("call_id") for row in rows] == list(grant.call_ids)
    same = {
        "run_id": ledger.run_id,
        "day": TODAY,
        "model": "tiny-1",
        "prompt_version": "test-1",
        "outcome": None,
        "input_tokens": 80,
        "output_tokens": 20,
        "cached_tokens": 0,
        "nanodollars": MOST,
        "seconds": 0.0,
        "reserved_time": SetClock()(),
        "settled_time": None,
    }
    assert rows == [
        {**same, "user_id": "7", "partition_index": 0, "stage": "summary"},
        {**same, "user_id": "7", "partition_index": 1, "stage": "summary"},
        {**same, "user_id": "ann", "partition_index": 0, "stage": "shift"},
    ]


def test_a_call_that_does_not_fit_stands_before_a_smaller_one_that_would() -> None:
    big, small = replace(planned(1)[0], input_tokens=980), planned(1)[0]
    grant = ledger_of(new_memory(), run=Limits(tokens=1_000)).exchange(settled=(), wanted=[small, big, small])
    assert len(grant.call_ids) == 1
    assert grant.limit == "the 1,000 tokens of this run"


@pytest.mark.parametrize(
    ("settled", "row", "tokens", "nanodollars"),
    [
        pytest.param(answered(1, cached_tokens=40), ("answered", 80, 10, 40), 90, 80_000, id="answered"),
        pytest.param(
            replace(answered(1), outcome=CallOutcome.REJECTED), ("rejected", 80, 10, 0), 90, 100_000, id="rejected"
        ),
        pytest.param(
            SettledCall(call_id=1, outcome=CallOutcome.REFUSED, seconds=0.5), ("refused", 0, 0, 0), 0, 0, id="refused"
        ),
        pytest.param(
            SettledCall(call_id=1, outcome=CallOutcome.LOST, seconds=0.5), ("lost", 80, 20, 0), 100, MOST, id="lost"
        ),
        pytest.param(
            SettledCall(call_id=1, outcome=CallOutcome.ANSWERED, seconds=0.5),
            ("answered", 80, 20, 0),
            100,
            MOST,
            id="not counted by the server",
        ),
        pytest.param(
            answered(1, input_tokens=200), ("answered", 200, 10, 0), 210, 220_000, id="more than was reserved"
        ),
    ],
)
def test_a_settled_call_is_booked_as_it_was(
    settled: SettledCall, row: tuple[object, ...], tokens: int, nanodollars: int
) -> None:
    memory, clock = new_memory(), SetClock()
    ledger = ledger_of(memory, clock=clock)
    assert ledger.exchange(settled=(), wanted=planned(1)).call_ids == [1]
    clock.now += timedelta(seconds=3)
    settle(ledger, settled)
    found = row_of(memory, 1)
    assert (found.outcome, found.input_tokens, found.output_tokens, found.cached_tokens) == row
    assert (found.nanodollars, found.seconds) == (nanodollars, 0.5)
    assert found.settled_time == found.reserved_time + 3_000_000
    expected = Amount(calls=1, tokens=tokens, nanodollars=nanodollars)
    assert counters(memory) == {f"run/{ledger.run_id}": expected, f"day/{TODAY}": expected} == sums(memory)


def test_what_a_call_did_not_use_is_there_for_the_next_in_the_same_exchange() -> None:
    ledger = ledger_of(new_memory(), run=Limits(tokens=200))
    first, second = ledger.exchange(settled=(), wanted=planned(3)).call_ids
    assert ledger.exchange(settled=(), wanted=planned(1)).call_ids == ()
    refused = [SettledCall(call_id=one, outcome=CallOutcome.REFUSED) for one in (first, second)]
    assert len(ledger.exchange(settled=refused, wanted=planned(3)).call_ids) == 2


def test_a_call_that_cost_more_than_reserved_is_the_only_overdraft() -> None:
    memory = new_memory()
    ledger = ledger_of(memory, run=Limits(tokens=200), day=Limits(calls=5))
    grant = ledger.exchange(settled=(), wanted=planned(2))
    grant = ledger.exchange(settled=[answered(one, input_tokens=150) for one in grant.call_ids], wanted=planned(1))
    assert grant.call_ids == ()
    assert grant.limit == "the 200 tokens of this run"
    with memory.reading() as connection:
        assert ledger.remaining(connection) == [
            Remaining(scope="run", unit="tokens", limit=200, left=0),
            Remaining(scope="day", unit="calls", limit=5, left=3),
        ]


@pytest.mark.parametrize("again", [answered(1), SettledCall(call_id=1, outcome=CallOutcome.REFUSED), answered(77)])
def test_a_call_settled_before_or_never_reserved_changes_nothing(again: SettledCall) -> None:
    memory = new_memory()
    ledger = ledger_of(memory)
    ledger.exchange(settled=(), wanted=planned(2))
    settle(ledger, answered(1), answered(1))
    before = everything(memory)
    settle(ledger, again)
    assert everything(memory) == before


def test_many_calls_are_settled_at_once() -> None:
    memory = new_memory()
    ledger = ledger_of(memory)
    grant = ledger.exchange(settled=(), wanted=planned(2 * IDS_PER_QUERY + 1))
    settle(ledger, *(answered(one) for one in grant.call_ids))
    with memory.reading() as connection:
        assert run_spent(connection, ledger.run_id).answered == 2 * IDS_PER_QUERY + 1
    assert counters(memory) == sums(memory)


def test_an_exchange_is_one_transaction_and_an_empty_one_none() -> None:
    memory = new_memory()
    ledger, begun = ledger_of(memory), Begun().of(memory)
    assert ledger.exchange(settled=(), wanted=()).call_ids == ()
    assert begun.count == 0
    grant = ledger.exchange(settled=(), wanted=planned(3))
    ledger.exchange(settled=[answered(one) for one in grant.call_ids], wanted=planned(3))
    assert begun.count == 2


def test_an_exchange_that_finds_the_memory_locked_reserves_nothing(tmp_path: Path) -> None:
    memory = Memory.open("sqlite:///memory.db?timeout=0.05", base=tmp_path)
    ledger = ledger_of(memory)
    before = everything(memory)
    with new_memory(tmp_path).writing(), pytest.raises(RetryableError):
        ledger.exchange(settled=(), wanted=planned(1))
    assert everything(memory) == before


def test_a_new_run_has_spent_nothing_and_the_calls_of_the_last_are_settled_on_theirs() -> None:
    memory = new_memory()
    ledger = ledger_of(memory, run=Limits(calls=2), day=Limits(tokens=500))
    first = ledger.run_id
    grant = ledger.exchange(settled=(), wanted=planned(3))
    second = ledger.begin_run()
    assert second == ledger.run_id != first
    grant = ledger.exchange(settled=[answered(grant.call_ids[0])], wanted=planned(3))
    assert len(grant.call_ids) == 2
    assert counters(memory) == sums(memory)
    assert counters(memory)[f"run/{first}"] == Amount(calls=2, tokens=190, nanodollars=100_000 + MOST)
    assert counters(memory)[f"run/{second}"] == Amount(calls=2, tokens=200, nanodollars=2 * MOST)


def test_runs_share_the_limit_of_a_day() -> None:
    memory = new_memory()
    one, other = (ledger_of(memory, run=Limits(calls=4), day=Limits(calls=5)) for _ in range(2))
    assert len(one.exchange(settled=(), wanted=planned(9)).call_ids) == 4
    grant = other.exchange(settled=(), wanted=planned(9))
    assert len(grant.call_ids) == 1
    assert grant.limit == f"the 5 calls of {TODAY} (UTC)"


def test_a_day_begins_at_midnight_utc_and_calls_are_settled_on_the_day_they_were_reserved() -> None:
    memory, clock = new_memory(), SetClock(now=MIDNIGHT - timedelta(seconds=1))
    ledger = ledger_of(memory, day=Limits(calls=2, tokens=200), clock=clock)
    old = ledger.exchange(settled=(), wanted=planned(3))
    assert old.limit == "the 2 calls of 2026-11-20 (UTC)"
    clock.now = MIDNIGHT
    new = ledger.exchange(settled=[answered(old.call_ids[0])], wanted=planned(3))
    assert len(new.call_ids) == 2
    assert new.limit == "the 2 calls of 2026-11-21 (UTC)"
    assert counters(memory) == sums(memory)
    assert counters(memory)["day/2026-11-20"].tokens == 190
    assert counters(memory)["day/2026-11-21"].tokens == 200


def test_what_remains_is_said_of_every_limit() -> None:
    memory = new_memory()
    ledger = ledger_of(memory, run=Limits(calls=10, dollars=2.0), day=Limits(tokens=1_000))
    ledger.exchange(settled=(), wanted=planned(4))
    with memory.reading() as connection:
        assert ledger.remaining(connection) == [
            Remaining(scope="run", unit="calls", limit=10, left=6),
            Remaining(scope="run", unit="dollars", limit=2.0, left=1.99952),
            Remaining(scope="day", unit="tokens", limit=1_000, left=600),
        ]
        assert ledger_of(memory).remaining(connection) == []


AMOUNTS = st.integers(0, 200)
OUTCOMES = st.sampled_from(CallOutcome)
LIMITS = st.builds(
    Limits,
    calls=st.none() | st.integers(0, 12),
    tokens=st.none() | st.integers(0, 1_500),
    dollars=st.none() | st.decimals(0, "0.003", places=6).map(float),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One exchange: of which worker, how much later, how many calls end, how, and which are wanted."""

    worker: int
    hours: int
    new_run: bool
    ended: list[tuple[int, CallOutcome, int, int, int]]
    wanted: list[tuple[int, int]]


STEPS = st.builds(
    Step,
    worker=st.integers(0, 1),
    hours=st.sampled_from([0, 0, 0, 7]),
    new_run=st.booleans(),
    ended=st.lists(st.tuples(AMOUNTS, OUTCOMES, AMOUNTS, AMOUNTS, AMOUNTS), max_size=4),
    wanted=st.lists(st.tuples(AMOUNTS, AMOUNTS), max_size=5),
)


@dataclass(kw_only=True)
class Drive:
    """Two workers on one memory, and what they may exceed their limits by."""

    run: Limits
    day: Limits
    honest: bool
    memory: Memory = field(default_factory=new_memory)
    clock: SetClock = field(default_factory=SetClock)
    open: dict[int, PlannedCall] = field(default_factory=dict)
    over: Amount = Amount()

    def __post_init__(self) -> None:
        self.ledgers = [ledger_of(self.memory, run=self.run, day=self.day, clock=self.clock) for _ in range(2)]

    def take(self, step: Step) -> None:
        ledger = self.ledgers[step.worker]
        self.clock.now += timedelta(hours=step.hours)
        if step.new_run:
            ledger.begin_run()
        wanted = [
            PlannedCall(stage="summary", user_id="ann", partition_index=0, input_tokens=one, max_output_tokens=other)
            for one, other in step.wanted
        ]
        grant = ledger.exchange(settled=[self._end(*one) for one in step.ended if self.open], wanted=wanted)
        assert (grant.limit is None) == (len(grant.call_ids) == len(wanted))
        self.open.update(zip(grant.call_ids, wanted, strict=False))
        self._check(ledger, wanted[len(grant.call_ids) :])

    def _end(self, which: int, outcome: CallOutcome, input_tokens: int, output_tokens: int, cached: int) -> SettledCall:
        call_id = sorted(self.open)[which % len(self.open)]
        call = self.open.pop(call_id)
        if self.honest:
            input_tokens, output_tokens = (
                input_tokens % (call.input_tokens + 1),
                output_tokens % (call.max_output_tokens + 1),
            )
        settled = SettledCall(
            call_id=call_id,
            outcome=outcome,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cached_tokens=cached,
        )
        reserved = call.most(PRICES)
        more = cost_of(settled, reserved=reserved, prices=PRICES).amount - reserved.amount
        self.over += Amount(tokens=max(more.tokens, 0), nanodollars=max(more.nanodollars, 0))
        return settled

    def _check(self, ledger: MemoryLedger, refused: list[PlannedCall]) -> None:
        found = sums(self.memory)
        assert {scope: amount for scope, amount in counters(self.memory).items() if amount != Amount()} == found
        for scope, amount in found.items():
            limits = self.run if scope.startswith("run/") else self.day
            assert limits.exceeded_by(amount - self.over) is None
        if refused:
            most = refused[0].most(PRICES).amount
            run = found.get(f"run/{ledger.run_id}", Amount()) + most
            day = found.get(f"day/{self.clock.now.date().isoformat()}", Amount()) + most
            assert self.run.exceeded_by(run) or self.day.exceeded_by(day)


@pytest.mark.parametrize("honest", [True, False], ids=["estimates are high", "estimates are low"])
@given(run=LIMITS, day=LIMITS, steps=st.lists(STEPS, max_size=12))
def test_no_limit_is_ever_exceeded_and_the_counters_are_the_sums_over_the_calls(
    honest: bool, run: Limits, day: Limits, steps: list[Step]
) -> None:
    drive = Drive(run=run, day=day, honest=honest)
    for step in steps:
        drive.take(step)
    if honest:
        assert drive.over == Amount()
    drive.memory.close()


def spend(memory: Memory) -> tuple[str, str]:
    """Make calls of two days, stages and users, and of every outcome; return the ids of the two runs."""
    clock = SetClock()
    ledger = ledger_of(memory, clock=clock)
    ids = ledger.exchange(settled=(), wanted=planned(4)).call_ids
    settle(ledger, answered(ids[0], cached_tokens=40), replace(answered(ids[1]), outcome=CallOutcome.REJECTED))
    settle(ledger, SettledCall(call_id=ids[2], outcome=CallOutcome.REFUSED, seconds=0.25))
    clock.now, first = MIDNIGHT, ledger.run_id
    ledger.begin_run()
    ids = ledger.exchange(settled=(), wanted=planned(3, stage="shift", user_id="bob")).call_ids
    settle(ledger, SettledCall(call_id=ids[0], outcome=CallOutcome.LOST, seconds=2), answered(ids[1]))
    settle(ledger, replace(answered(ids[2]), output_tokens=20, seconds=1.5, cached_tokens=60))
    return first, ledger.run_id


FIRST = Spent(
    key="",
    calls=4,
    answered=1,
    rejected=1,
    refused=1,
    lost=0,
    open=1,
    input_tokens=240,
    cached_tokens=40,
    output_tokens=40,
    dollars=0.0003,
    seconds=1.25,
)
SECOND = Spent(
    key="",
    calls=3,
    answered=2,
    rejected=0,
    refused=0,
    lost=1,
    open=0,
    input_tokens=240,
    cached_tokens=60,
    output_tokens=50,
    dollars=0.00031,
    seconds=4.0,
)


@pytest.mark.parametrize(
    ("by", "keys"),
    [("day", ["2026-11-20", "2026-11-21"]), ("stage", ["summary", "shift"]), ("user", ["ann", "bob"])],
)
def test_what_was_spent_is_said_by_day_stage_and_user_in_their_order(by: SpentBy, keys: list[str]) -> None:
    memory = new_memory()
    spend(memory)
    expected = [replace(one, key=key) for one, key in zip((FIRST, SECOND), keys, strict=True)]
    with memory.reading() as connection:
        assert spent(connection, by=by) == sorted(expected, key=lambda one: one.key)


def test_what_was_spent_is_said_by_model() -> None:
    memory = new_memory()
    spend(memory)
    with memory.reading() as connection:
        (found,) = spent(connection, by="model")
    assert (found.key, found.calls, found.input_tokens, found.output_tokens) == ("tiny-1", 7, 480, 90)
    assert found.dollars == pytest.approx(0.00061)


def test_a_memory_without_calls_has_spent_nothing() -> None:
    memory = new_memory()
    with memory.reading() as connection:
        assert spent(connection, by="day") == []
        assert run_spent(connection, "none").calls == 0
        assert run_spent(connection, "none").dollars == 0.0
        assert typical_call(connection, model="tiny-1", stage="summary") is None


def test_what_a_run_has_spent() -> None:
    memory = new_memory()
    first, second = spend(memory)
    with memory.reading() as connection:
        assert run_spent(connection, first) == replace(FIRST, key=first)
        assert run_spent(connection, second) == replace(SECOND, key=second)


def test_a_typical_call_is_the_mean_of_the_answered_ones() -> None:
    memory = new_memory()
    spend(memory)
    with memory.reading() as connection:
        assert typical_call(connection, model="tiny-1", stage="summary") == TypicalCall(
            calls=1, seconds=0.5, output_tokens=10.0, cached_share=0.5
        )
        assert typical_call(connection, model="tiny-1", stage="shift") == TypicalCall(
            calls=2, seconds=1.0, output_tokens=15.0, cached_share=0.375
        )
        assert typical_call(connection, model="another", stage="shift") is None


def test_free_calls_are_counted_though_they_cost_nothing() -> None:
    memory = new_memory()
    ledger = ledger_of(memory, run=Limits(dollars=0.0), prices=Prices())
    settle(ledger, *(answered(one) for one in ledger.exchange(settled=(), wanted=planned(3)).call_ids))
    with memory.reading() as connection:
        assert (run_spent(connection, ledger.run_id).calls, run_spent(connection, ledger.run_id).dollars) == (3, 0.0)
