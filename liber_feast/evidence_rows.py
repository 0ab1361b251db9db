"""Item vectors and a memory's evidence, in the columns of feature rows or in tables that rows share, and their scales.

Shapes: V rows of a table, E width of an item's vector.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from liber_feast.errors import ConfigError
from liber_feast.fields import NUMBER_LIMIT, Floats, column, floats
from liber_feast.partition_vectors import check_finite, check_width
from liber_feast.ragged import Ragged, list_values

Match = Literal["mean", "decay", "attention", "projected"]
"""How partitions count in the match of the memory: by their behaviors, or with weights that the backbone learns."""
ITEM_VECTOR = "vector"
MEMORY_EVIDENCE, MEMORY_LIKE_RATE, MEMORY_COUNT = "memory_evidence", "memory_like_rate", "memory_behavior_count"
LIKE_PRIOR = 2.0
"""Behaviors' worth of the training like rate that a window's like rate is smoothed with."""
MEMORY_PRIOR = 20.0
"""Behaviors' worth of an average user, whose match is 0, that a memory's like rate and match are smoothed with."""
MEMORY_NUMBERS = 2
"""Numbers of a memory alone, without an item: its like rate and its count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MatchScales:
    """Which evidence is compared with the candidate, and in what units."""

    width: int
    """E, the width of an item's vector."""
    window_deviation: float = 1.0
    """Of the dot product of the window's evidence and the candidate."""
    memory: bool = False
    """Whether the evidence of the long-term memory is compared, too."""
    match: Match = "mean"
    memory_deviation: float = 1.0
    memory_count_mean: float = 0.0
    """Mean over training rows with a memory of log(1 + memory_behavior_count)."""
    memory_count_deviation: float = 1.0

    @property
    def dense_count(self) -> int:
        """How many numbers a sample gets."""
        return 2 + MEMORY_NUMBERS if self.memory else 1

    @property
    def shape(self) -> dict[str, Any]:
        """What a backbone must know to learn the match."""
        if not self.memory or self.match == "mean":
            return {}
        return {"match": self.match, "item_width": self.width, "match_deviation": self.memory_deviation}

    @property
    def deviations(self) -> Floats:
        """Return the units of the dot products."""
        used = [self.window_deviation, self.memory_deviation] if self.memory else [self.window_deviation]
        return np.array(used, np.float32)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TableRows:
    """Row r is `values[rows[r]]`, zeros where `rows[r]` is -1; rows may share values."""

    values: Floats
    """(V, E)."""
    rows: npt.NDArray[np.int64]

    def take(self, rows: npt.NDArray[Any]) -> Floats:
        """Return (len(rows), E)."""
        places = self.rows[rows]
        if not len(self.values):
            return np.zeros((len(places), self.values.shape[1]), np.float32)
        taken: Floats = self.values[places]
        taken[places < 0] = 0
        return taken


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class UserEvidence:
    """The evidence over a user's sealed partitions, for each row; rows may share it."""

    evidence: TableRows
    like_rates: npt.NDArray[np.float64]
    """(V,)."""
    behavior_counts: npt.NDArray[np.float64]
    """(V,)."""
    partitions: Ragged[np.float32] | None = None
    """For each row over (V, E + 1): the evidence of its partitions, oldest first, and the log of their behaviors."""

    def numbers(self, *, like_rate: float, scales: MatchScales) -> Floats:
        """Return (rows, 2): the smoothed like rate about `like_rate`, and the standardized log of the count.

        A memory without partitions says nothing: both are 0, as its match is.
        """
        there = self.evidence.rows >= 0
        places = np.where(there, self.evidence.rows, 0)
        counts = self.counts()
        likes = np.where(there, self.like_rates[places], 0.0) * counts if len(self.like_rates) else counts
        rate = (likes + MEMORY_PRIOR * like_rate) / (counts + MEMORY_PRIOR) - like_rate
        standard = np.where(there, np.log1p(counts) - scales.memory_count_mean, 0.0) / scales.memory_count_deviation
        return np.stack([rate, np.clip(standard, -NUMBER_LIMIT, NUMBER_LIMIT)], axis=1).astype(np.float32)

    def smoothed(self, rows: npt.NDArray[Any]) -> Floats:
        """Return (len(rows), E): the evidence of the memories of `rows`, drawn towards 0 where behaviors are few."""
        counts = self.counts(rows)
        found: Floats = self.evidence.take(rows) * (counts / (counts + MEMORY_PRIOR)).astype(np.float32)[:, None]
        return found

    def counts(self, rows: npt.NDArray[Any] | None = None) -> npt.NDArray[np.float64]:
        """Return the behaviors in the memories of `rows`; None: of every row."""
        places = self.evidence.rows if rows is None else self.evidence.rows[rows]
        if not len(self.behavior_counts):
            return np.zeros(len(places))
        return np.where(places >= 0, self.behavior_counts[np.maximum(places, 0)], 0.0)


def read_item_vectors(rows: pa.Table, *, width: int) -> TableRows:
    """Return the column `vector` of item rows; a null is the zero vector.

    Raises:
        ConfigError: a vector of another width.
        DataSetError: a value that is not finite.
    """
    return read_rows(rows, ITEM_VECTOR, width=width)


def read_user_evidence(rows: pa.Table, *, width: int) -> UserEvidence:
    """Return the memory's evidence from the columns of user rows; a null is a memory without partitions.

    Raises:
        ConfigError: a column is missing, or evidence is of another width.
        DataSetError: a value that is not finite.
    """
    for name in (MEMORY_EVIDENCE, MEMORY_LIKE_RATE, MEMORY_COUNT):
        if name not in rows.column_names:
            raise ConfigError(f"evidence features need the column {name!r}; found none in the rows.")
    evidence = read_rows(rows, MEMORY_EVIDENCE, width=width)
    there = evidence.rows >= 0
    like_rates, counts = (
        np.nan_to_num(floats(column(rows, name, kind=pa.float64())))[there] for name in (MEMORY_LIKE_RATE, MEMORY_COUNT)
    )
    return UserEvidence(evidence=evidence, like_rates=like_rates, behavior_counts=counts)


def newer_vectors(known: Floats, *, item_ids: pa.Array, rows: npt.NDArray[Any], newer: Mapping[str, Floats]) -> Floats:
    """Return the vectors (N, E) of `item_ids`: those of `known` at `rows`, and of unknown ones (row 0) from `newer`."""
    found: Floats = known[rows].copy()
    for place in np.flatnonzero(rows == 0):
        vector = newer.get(item_ids[int(place)].as_py())
        if vector is not None:
            found[place] = vector
    return found


def read_rows(rows: pa.Table, name: str, *, width: int) -> TableRows:
    """Return a column of lists of `width` floats; a null and an empty list are -1.

    Raises:
        ConfigError: a list of another length.
        DataSetError: a value that is not finite.
    """
    lists = list_values(rows, name, kind=pa.float32(), last=None)
    values = check_finite(lists, name=name)
    advice = "Was the width of the evidence changed after the fit? Then fit again."
    check_width(lists, name=name, width=width, advice=advice)
    there = lists.lengths > 0
    return TableRows(values=values.reshape(-1, width), rows=np.where(there, np.cumsum(there) - 1, -1))
