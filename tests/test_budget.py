"""Prices, limits and what a call costs."""

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liber_feast.budget import (
    Amount,
    Budget,
    CallCost,
    CallOutcome,
    Limits,
    PlannedCall,
    Prices,
    SettledCall,
    cost_of,
    dollars_in_words,
)

PRICES = Prices(input=2.5, cached_input=1.25, output=10.0)
TOKENS = st.integers(0, 1_000_000)
RATES = st.decimals(0, 1_000, places=4).map(float)
RESERVED = CallCost(input_tokens=80, output_tokens=20, nanodollars=400_000)


@pytest.mark.parametrize(
    ("prices", "tokens", "nanodollars"),
    [
        pytest.param(PRICES, (1_000_000, 0, 0), 2_500_000_000, id="input"),
        pytest.param(PRICES, (1_000_000, 0, 1_000_000), 1_250_000_000, id="cached input"),
        pytest.param(Prices(input=2.5), (1_000_000, 0, 1_000_000), 2_500_000_000, id="cached input without a price"),
        pytest.param(PRICES, (0, 1_000_000, 0), 10_000_000_000, id="output"),
        pytest.param(PRICES, (100, 10, 40), 60 * 2_500 + 40 * 1_250 + 10 * 10_000, id="all"),
        pytest.param(PRICES, (10, 0, 40), 10 * 1_250, id="more cached than there are"),
        pytest.param(Prices(input=0.0001), (1, 0, 0), 1, id="rounded up"),
        pytest.param(Prices(input=0.1), (30, 0, 0), 3_000, id="whole, though not in binary"),
        pytest.param(Prices(), (10**9, 10**9, 0), 0, id="free"),
    ],
)
def test_a_call_has_a_price(prices: Prices, tokens: tuple[int, int, int], nanodollars: int) -> None:
    found = prices.nanodollars(input_tokens=tokens[0], output_tokens=tokens[1], cached_tokens=tokens[2])
    assert found == nanodollars


@given(
    st.builds(Prices, input=RATES, cached_input=st.none() | RATES, output=RATES), TOKENS, TOKENS, TOKENS, TOKENS, TOKENS
)
def test_no_call_within_its_tokens_costs_more_than_the_most(
    prices: Prices, input_tokens: int, output_tokens: int, fewer_input: int, fewer_output: int, cached: int
) -> None:
    most = prices.most(input_tokens=input_tokens, output_tokens=output_tokens)
    cost = prices.nanodollars(
        input_tokens=min(fewer_input, input_tokens),
        output_tokens=min(fewer_output, output_tokens),
        cached_tokens=cached,
    )
    assert 0 <= cost <= most


@pytest.mark.parametrize(
    ("limits", "amount", "exceeded"),
    [
        pytest.param(Limits(), Amount(calls=10**9, tokens=10**12, nanodollars=10**18), None, id="no limit"),
        pytest.param(Limits(calls=100), Amount(calls=100), None, id="as many calls"),
        pytest.param(Limits(calls=100), Amount(calls=101), "100 calls", id="calls"),
        pytest.param(Limits(calls=1), Amount(calls=2), "1 call", id="one call"),
        pytest.param(Limits(calls=0), Amount(calls=1), "0 calls", id="none allowed"),
        pytest.param(Limits(tokens=1_000_000), Amount(tokens=1_000_000), None, id="as many tokens"),
        pytest.param(Limits(tokens=1_000_000), Amount(tokens=1_000_001), "1,000,000 tokens", id="tokens"),
        pytest.param(Limits(dollars=0.29), Amount(nanodollars=290_000_000), None, id="as many dollars"),
        pytest.param(Limits(dollars=0.29), Amount(nanodollars=290_000_001), "0.29 dollars", id="dollars"),
        pytest.param(Limits(dollars=0), Amount(calls=5), None, id="free calls within no dollars"),
        pytest.param(Limits(calls=1, tokens=1), Amount(calls=2, tokens=2), "1 call", id="the first of two"),
    ],
)
def test_a_limit_is_exceeded_by_more_than_it_says(limits: Limits, amount: Amount, exceeded: str | None) -> None:
    assert limits.exceeded_by(amount) == exceeded


@given(st.decimals(0, 1_000_000, places=9))
def test_no_more_is_spent_than_the_dollars_as_written(dollars: Decimal) -> None:
    limit = Limits(dollars=float(dollars)).nanodollars
    assert limit is not None
    assert limit <= Decimal(str(float(dollars))) * 10**9 < limit + 1


@pytest.mark.parametrize(
    ("dollars", "words"),
    [
        (2, "2.00"),
        (2.0, "2.00"),
        (2.5, "2.50"),
        (1234.5, "1,234.50"),
        (0.125, "0.125"),
        (1e-7, "0.0000001"),
        (0, "0.00"),
    ],
)
def test_dollars_are_said_with_all_their_decimals(dollars: float, words: str) -> None:
    assert dollars_in_words(dollars) == words


@pytest.mark.parametrize(
    ("run", "day", "limit"),
    [
        pytest.param(100, 900, None, id="neither"),
        pytest.param(101, 900, "the 100 calls of this run", id="the run"),
        pytest.param(100, 901, "the 900 calls of 2026-11-20 (UTC)", id="the day"),
        pytest.param(101, 901, "the 100 calls of this run", id="both"),
    ],
)
def test_the_limits_of_a_run_and_of_a_day_hold_beside_each_other(run: int, day: int, limit: str | None) -> None:
    budget = Budget(run=Limits(calls=100), day=Limits(calls=900))
    assert budget.exceeded_by(run=Amount(calls=run), day=Amount(calls=day), date="2026-11-20") == limit


def test_a_planned_call_is_reserved_at_the_most() -> None:
    call = PlannedCall(stage="shift", user_id=7, partition_index=1, input_tokens=80, max_output_tokens=20)
    assert call.most(PRICES) == RESERVED
    assert RESERVED.amount == Amount(calls=1, tokens=100, nanodollars=400_000)


@pytest.mark.parametrize(
    ("outcome", "tokens", "cost"),
    [
        pytest.param(
            CallOutcome.ANSWERED,
            (70, 10, 40),
            CallCost(input_tokens=70, output_tokens=10, cached_tokens=40, nanodollars=225_000),
            id="answered",
        ),
        pytest.param(
            CallOutcome.REJECTED,
            (70, 20, 0),
            CallCost(input_tokens=70, output_tokens=20, nanodollars=375_000),
            id="rejected",
        ),
        pytest.param(CallOutcome.REFUSED, (70, 10, 40), CallCost(), id="refused"),
        pytest.param(CallOutcome.LOST, (70, 10, 40), RESERVED, id="lost"),
        pytest.param(CallOutcome.ANSWERED, (0, 0, 0), RESERVED, id="the server does not count"),
        pytest.param(CallOutcome.REJECTED, (-5, 10, 0), RESERVED, id="the server counts wrongly"),
        pytest.param(
            CallOutcome.ANSWERED,
            (200, 30, 0),
            CallCost(input_tokens=200, output_tokens=30, nanodollars=800_000),
            id="more than was reserved",
        ),
        pytest.param(
            CallOutcome.ANSWERED,
            (70, -10, 90),
            CallCost(input_tokens=70, cached_tokens=70, nanodollars=87_500),
            id="impossible counts",
        ),
    ],
)
def test_a_call_costs_what_the_server_counted_or_the_most(
    outcome: CallOutcome, tokens: tuple[int, int, int], cost: CallCost
) -> None:
    settled = SettledCall(
        call_id=1, outcome=outcome, input_tokens=tokens[0], output_tokens=tokens[1], cached_tokens=tokens[2]
    )
    assert cost_of(settled, reserved=RESERVED, prices=PRICES) == cost


@given(st.lists(st.builds(Amount, calls=TOKENS, tokens=TOKENS, nanodollars=TOKENS), min_size=1))
def test_amounts_add_up_and_back(amounts: list[Amount]) -> None:
    total = sum(amounts[1:], amounts[0])
    assert total.tokens == math.fsum(one.tokens for one in amounts)
    for one in amounts:
        total -= one
    assert total == Amount()
