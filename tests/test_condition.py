"""The partition conditions and how they are read from the engine block."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liber_feast.condition import Condition, CountCondition, DriftCondition, TimeCondition, condition_from
from liber_feast.errors import ConfigError


@pytest.mark.parametrize(
    ("config", "condition"),
    [
        ({"condition": "count"}, CountCondition(size=20)),
        ({"condition": "count", "size": 7}, CountCondition(size=7)),
        ({"condition": "time", "span_s": 3600}, TimeCondition(span=timedelta(hours=1))),
        ({"condition": "time", "span_s": "7d", "idle_s": "12h"}, TimeCondition(span=timedelta(7), idle=timedelta(0.5))),
        ({"condition": "time", "span_s": None, "idle_s": "1.5m"}, TimeCondition(idle=timedelta(seconds=90))),
        ({"condition": "time", "idle_s": "45 s"}, TimeCondition(idle=timedelta(seconds=45))),
        ({"condition": "time", "idle_s": 0.3}, TimeCondition(idle=timedelta(microseconds=300_000))),
        (
            {"condition": "drift", "threshold": 0.3, "minimum": 5, "maximum": 50},
            DriftCondition(threshold=0.3, minimum=5, maximum=50),
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_the_engine_block_names_a_condition_and_its_values(config: dict[str, Any], condition: Condition) -> None:
    assert condition_from(config) == condition


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("count", "expected keys such as {condition: count, size: 20}, not 'count'"),
        ({}, "no key 'condition' among []; condition is one of count, time, drift"),
        ({"conditon": "count"}, "no key 'condition' among ['conditon']; condition is one of"),
        ({"condition": "counts"}, "unknown condition 'counts'; condition is one of count, time, drift"),
        ({"condition": ["count"]}, "unknown condition ['count']"),
        (
            {"condition": "count", "sice": 20},
            "unknown key 'sice' for condition count; allowed: condition, size. Did you mean 'size'?",
        ),
        (
            {"condition": "time", "size": 20},
            "unknown key 'size' for condition time; allowed: condition, span_s, idle_s.",
        ),
        ({"condition": "count", 3: 20}, "unknown key 3 for condition count; allowed: condition, size."),
        ({"condition": "count", "size": 0}, "size must be at least 1, not 0"),
        ({"condition": "count", "size": "20"}, "size must be a whole number, not '20'"),
        ({"condition": "count", "size": True}, "size must be a whole number, not True"),
        ({"condition": "time"}, "needs a span, an idle time or both"),
        ({"condition": "time", "span_s": 0}, "span must be longer than zero, not 0 s"),
        ({"condition": "time", "idle_s": -5}, "idle must be longer than zero, not -5 s"),
        ({"condition": "time", "idle_s": 1e-9}, "idle must be longer than zero"),
        ({"condition": "time", "idle_s": "7 days"}, "idle_s must be seconds or a text such as '7d', '12h' or '30m'"),
        ({"condition": "time", "idle_s": "-7d"}, "idle_s must be seconds or a text"),
        ({"condition": "time", "idle_s": True}, "idle_s must be seconds or a text"),
        ({"condition": "time", "idle_s": [7]}, "idle_s must be seconds or a text"),
        ({"condition": "time", "span_s": float("nan")}, "span_s must be finite, not nan"),
        ({"condition": "time", "span_s": float("inf")}, "span_s must be finite, not inf"),
        ({"condition": "time", "span_s": 10**400}, "span_s is too long"),
        ({"condition": "time", "span_s": "9999999999d"}, "span_s is too long: '9999999999d'"),
        ({"condition": "drift", "minimum": 5}, "condition drift needs threshold, maximum"),
        ({"condition": "drift", "threshold": 2.5, "minimum": 1, "maximum": 2}, "threshold must lie within 0 to 2"),
        ({"condition": "drift", "threshold": -0.1, "minimum": 1, "maximum": 2}, "threshold must lie within 0 to 2"),
        ({"condition": "drift", "threshold": float("nan"), "minimum": 1, "maximum": 2}, "threshold must lie within"),
        ({"condition": "drift", "threshold": "0.3", "minimum": 1, "maximum": 2}, "threshold must be a number from 0"),
        ({"condition": "drift", "threshold": True, "minimum": 1, "maximum": 2}, "threshold must be a number from 0"),
        ({"condition": "drift", "threshold": 0.3, "minimum": 0, "maximum": 2}, "minimum must be at least 1, not 0"),
        ({"condition": "drift", "threshold": 0.3, "minimum": 1, "maximum": 1.5}, "maximum must be a whole number"),
        ({"condition": "drift", "threshold": 0.3, "minimum": 3, "maximum": 2}, "minimum 3 is above maximum 2"),
        ({"condition": "drift", "threshold": 0.3, "minimum": 3, "maximum": 10_001}, "maximum must be at most 10000"),
    ],
    ids=str,
)
def test_a_block_that_cannot_be_used_is_refused_in_one_line(config: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        condition_from(config)
    assert caught.value.message.startswith("partition: ")
    assert message in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        (CountCondition(), "count(20)"),
        (TimeCondition(span=timedelta(days=7)), "time(span=7d)"),
        (TimeCondition(span=timedelta(hours=36), idle=timedelta(minutes=90)), "time(span=36h, idle=90m)"),
        (TimeCondition(idle=timedelta(microseconds=1)), "time(idle=0.000001s)"),
        (DriftCondition(threshold=1, minimum=2, maximum=3), "drift(threshold=1.0, minimum=2, maximum=3)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_condition_describes_itself(condition: Condition, text: str) -> None:
    assert condition.describe() == text


@given(st.timedeltas(min_value=timedelta(microseconds=1)))
def test_a_described_duration_reads_back_as_itself(idle: timedelta) -> None:
    text = TimeCondition(idle=idle).describe().removeprefix("time(idle=").removesuffix(")")
    assert condition_from({"condition": "time", "idle_s": text}) == TimeCondition(idle=idle)
