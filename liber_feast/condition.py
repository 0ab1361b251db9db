"""The partition conditions (LIBER, equation 1) and how the engine block's `partition` says which.

A condition looks at the short-term cache and the next behavior alone; `partition.py` applies it.
"""

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

from liber_feast.errors import ConfigError

DRIFT_MAXIMUM = 10_000
"""The longest drift partition: up to here squared norms of sums stay below 2**53, so float64 holds them exactly."""

FARTHEST = 2
"""The largest 1 - cosine."""

MICROSECOND = timedelta(microseconds=1)
UNITS = {"d": 86_400_000_000, "h": 3_600_000_000, "m": 60_000_000, "s": 1_000_000}


@dataclass(frozen=True, slots=True)
class CountCondition:
    """Seal the cache once it holds `size` behaviors (the paper's K)."""

    size: int = 20

    def __post_init__(self) -> None:
        _check_count("size", self.size)

    def describe(self) -> str:
        return f"count({self.size})"


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeCondition:
    """Seal the cache once it spans `span`, the behavior that reaches it included, or has been idle for `idle`."""

    span: timedelta | None = None
    idle: timedelta | None = None

    def __post_init__(self) -> None:
        if self.span is None and self.idle is None:
            raise ConfigError("partition: condition time needs a span, an idle time or both (span_s, idle_s).")
        for name, length in (("span", self.span), ("idle", self.idle)):
            if length is not None and length <= timedelta(0):
                raise ConfigError(f"partition: {name} must be longer than zero, not {length.total_seconds():g} s.")

    def describe(self) -> str:
        parts = (("span", self.span), ("idle", self.idle))
        return f"time({', '.join(f'{name}={_describe_duration(length)}' for name, length in parts if length)})"


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftCondition:
    """Seal the cache before an item that is farther than `threshold` from the mean of the cached items.

    The drift is 1 - cosine of the two vectors, 0 where either is zero or missing. It is looked at once the cache holds
    `minimum` behaviors; at `maximum` the cache is sealed anyway.
    """

    threshold: float
    minimum: int
    maximum: int

    def __post_init__(self) -> None:
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, int | float):
            raise ConfigError(f"partition: threshold must be a number from 0 to 2, not {self.threshold!r}.")
        if not 0 <= self.threshold <= FARTHEST:
            raise ConfigError(f"partition: threshold must lie within 0 to 2 (1 - cosine), not {self.threshold:g}.")
        _check_count("minimum", self.minimum)
        _check_count("maximum", self.maximum)
        if self.minimum > self.maximum:
            raise ConfigError(f"partition: minimum {self.minimum} is above maximum {self.maximum}.")
        if self.maximum > DRIFT_MAXIMUM:
            raise ConfigError(f"partition: maximum must be at most {DRIFT_MAXIMUM}, not {self.maximum}.")

    def describe(self) -> str:
        return f"drift(threshold={float(self.threshold)!r}, minimum={self.minimum}, maximum={self.maximum})"


Condition = CountCondition | TimeCondition | DriftCondition

KEYS = {"count": ("size",), "time": ("span_s", "idle_s"), "drift": ("threshold", "minimum", "maximum")}


def condition_from(config: Mapping[str, Any]) -> Condition:
    """Return the condition of the engine block's `partition`, for example `{condition: time, idle_s: 12h}`.

    Durations are seconds as numbers, or texts of a number and a unit: s, m, h or d.

    Raises:
        ConfigError: an unknown, missing or unusable key or value.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"partition: expected keys such as {{condition: count, size: 20}}, not {config!r}.")
    kind = config.get("condition")
    if not isinstance(kind, str) or kind not in KEYS:
        found = f"unknown condition {kind!r}" if kind is not None else f"no key 'condition' among {[*config]}"
        raise ConfigError(f"partition: {found}; condition is one of {', '.join(KEYS)}.")
    allowed = ("condition", *KEYS[kind])
    for key in config:
        if key not in allowed:
            close = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"partition: unknown key {key!r} for condition {kind}; allowed: {', '.join(allowed)}.{hint}"
            )
    values = {key: config[key] for key in KEYS[kind] if config.get(key) is not None}
    if kind == "count":
        return CountCondition(**values)
    if kind == "time":
        return TimeCondition(**{key.removesuffix("_s"): _duration(key, value) for key, value in values.items()})
    missing = [key for key in KEYS[kind] if key not in values]
    if missing:
        raise ConfigError(f"partition: condition drift needs {', '.join(missing)}.")
    return DriftCondition(**values)


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"partition: {name} must be a whole number, not {value!r}.")
    if value < 1:
        raise ConfigError(f"partition: {name} must be at least 1, not {value}.")


def _duration(key: str, value: object) -> timedelta:
    number, unit = value, "s"
    if isinstance(value, str) and (match := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([smhd])", value)):
        number, unit = Decimal(match[1]), match[2]
    if isinstance(number, bool) or not isinstance(number, int | float | Decimal):
        raise ConfigError(f"partition: {key} must be seconds or a text such as '7d', '12h' or '30m', not {value!r}.")
    if isinstance(number, float) and not math.isfinite(number):
        raise ConfigError(f"partition: {key} must be finite, not {value!r}.")
    try:
        return timedelta(microseconds=round(Decimal(number) * UNITS[unit]))
    except OverflowError as error:
        raise ConfigError(f"partition: {key} is too long: {value!r}.") from error


def _describe_duration(length: timedelta) -> str:
    micros = length // MICROSECOND
    for unit, size in UNITS.items():
        if micros % size == 0:
            return f"{micros // size}{unit}"
    return f"{Decimal(micros) / UNITS['s']:f}s"
