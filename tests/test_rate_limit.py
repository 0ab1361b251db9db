"""Requests and tokens per minute, and how long to wait before a call is made once more."""

from hypothesis import given
from hypothesis import strategies as st

from liber_feast.llm.backoff import CAP_S, wait_s
from liber_feast.llm.rate_limit import MINUTE_S, RateLimiter, RateLimits

# Times in quarters of a second are exact, so that a call may go at the very end of a minute.
steps = st.lists(st.tuples(st.integers(0, 200).map(lambda quarters: quarters / 4), st.integers(1, 300)), max_size=60)


def send_all(calls: list[tuple[float, int]], *, limits: RateLimits) -> list[tuple[float, int]]:
    """Return when calls go that come so long after each other, each waiting for as long as the limiter says."""
    limiter, now, sent = RateLimiter(limits), 0.0, []
    for pause, size in calls:
        now += pause
        while limiter.admitted([size], now=now) == 0:
            free = limiter.free_time(size, now=now)
            assert free > now
            now = free
        limiter.note([size], now=now)
        sent.append((now, size))
    return sent


@given(calls=steps, most=st.integers(1, 10))
def test_no_minute_holds_more_requests_than_allowed(calls: list[tuple[float, int]], most: int) -> None:
    sent = [time for time, _ in send_all(calls, limits=RateLimits(requests_per_minute=most))]
    assert all(sum(start <= time < start + MINUTE_S for time in sent) <= most for start in sent)


@given(calls=steps, most=st.integers(1, 1_000))
def test_no_minute_holds_more_tokens_than_allowed_unless_one_call_alone_does(
    calls: list[tuple[float, int]], most: int
) -> None:
    sent = send_all(calls, limits=RateLimits(tokens_per_minute=most))
    for start, _ in sent:
        minute = [size for time, size in sent if start <= time < start + MINUTE_S]
        assert sum(minute) <= most or len(minute) == 1


@given(calls=steps, most=st.integers(1, 10))
def test_a_call_waits_no_longer_than_it_must(calls: list[tuple[float, int]], most: int) -> None:
    sent = [time for time, _ in send_all(calls, limits=RateLimits(requests_per_minute=most))]
    came = 0.0
    for position, (pause, _) in enumerate(calls):
        came = (sent[position - 1] if position else 0.0) + pause
        assert sent[position] == max(came, sent[position - most] + MINUTE_S if position >= most else came)


@given(sizes=st.lists(st.integers(1, 300), max_size=30), tokens=st.integers(1, 1_000), requests=st.integers(1, 10))
def test_calls_admitted_together_are_those_admitted_one_by_one(sizes: list[int], tokens: int, requests: int) -> None:
    limits = RateLimits(requests_per_minute=requests, tokens_per_minute=tokens)
    together, one_by_one, count = RateLimiter(limits).admitted(sizes, now=5.0), RateLimiter(limits), 0
    for size in sizes:
        if not one_by_one.admitted([size], now=5.0):
            break
        one_by_one.note([size], now=5.0)
        count += 1
    assert together == count


def test_without_limits_everything_goes_at_once() -> None:
    limiter = RateLimiter(RateLimits())
    assert limiter.admitted([10**9] * 1_000, now=0.0) == 1_000
    limiter.note([10**9] * 1_000, now=0.0)
    assert (limiter.admitted([1], now=0.0), limiter.free_time(1, now=0.0)) == (1, 0.0)


def test_a_call_larger_than_a_minute_goes_alone() -> None:
    limiter = RateLimiter(RateLimits(tokens_per_minute=100))
    assert limiter.admitted([60, 500, 10], now=0.0) == 1
    limiter.note([60], now=0.0)
    assert (limiter.admitted([500], now=59.0), limiter.free_time(500, now=59.0)) == (0, 60.0)
    assert limiter.admitted([500, 1], now=60.0) == 1
    limiter.note([500], now=60.0)
    assert (limiter.admitted([1], now=119.0), limiter.admitted([1], now=120.0)) == (0, 1)


@given(
    attempt_count=st.integers(1, 10_000),
    chance=st.floats(0, 1, exclude_max=True),
    retry_after_s=st.none() | st.floats(-1e9, 1e9),
)
def test_a_wait_is_at_least_what_the_server_asks_and_at_most_a_cap_more(
    attempt_count: int, chance: float, retry_after_s: float | None
) -> None:
    asked = max(retry_after_s or 0.0, 0.0)
    assert asked <= wait_s(attempt_count, chance=chance, retry_after_s=retry_after_s) <= asked + CAP_S


def test_the_longest_wait_doubles_up_to_a_cap() -> None:
    assert [wait_s(count, chance=1.0) for count in range(1, 10)] == [1, 2, 4, 8, 16, 30, 30, 30, 30]
    assert wait_s(5, chance=0.0) == 0.0
