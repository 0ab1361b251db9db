"""What `liber_feast.inputs` makes of feature rows: shapes, the item table, and users and items as arrays."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from liber_feast.evidence_rows import Match, TableRows, UserEvidence
from liber_feast.fields import Floats, Ints
from liber_feast.ragged import Ragged

MemoryKind = Literal["partitions", "knowledge"]
"""Whose vectors a memory has: those of partitions, which LIBER fuses, or that of one text over the history (KAR)."""
DENSE_COUNT = 3
"""Dense numbers of a sample without item texts."""
MEMORY_COLUMNS = (DENSE_COUNT, DENSE_COUNT + 1, -1)
"""Where the like rate, the count and the match of a memory with evidence stand among the dense numbers."""
PLACES = "history_places"
"""(B, N): where each behavior's item stands among the batch's distinct ones, if these are there."""
DISTINCT = ("distinct_codes", "distinct_numbers")
"""The items that a batch's behaviors are of, each once, (I, T) and (I, V, 2); padding is one of them, all zeros."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputShape:
    """What a backbone must know of its inputs to build its layers."""

    user_slots: tuple[int, ...]
    """Code slots of each categorical user field, in the order of `user_codes`."""
    user_code_count: int
    """Codes over all user fields, 0 among them."""
    user_number_count: int
    item_slots: tuple[int, ...]
    item_code_count: int
    item_number_count: int
    sequence_length: int
    dense_count: int = DENSE_COUNT
    memory_width: int = 0
    """D, the width of a partition's vector; 0 without LIBER."""
    fused_width: int = 0
    """F, the width of the fused vector; 0 without LIBER."""
    memory_kind: MemoryKind = "partitions"
    match: Match = "mean"
    """What is learned of the memory's match; the batch brings `item_vector` and `partitions` unless it is a mean."""
    item_width: int = 0
    """E, the width of an item's vector, where the match is learned."""
    match_deviation: float = 1.0
    """Of the match that is not learned."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ItemTable:
    """The encoded fields of every item known at training; row 0 is the unknown item, row i + 1 is `ids[i]`.

    An item whose attributes changed has a row for each of its versions, oldest first.
    """

    ids: tuple[str, ...]
    times: npt.NDArray[np.int64]
    """(R,) from when on row i + 1 holds, microseconds since 1970 UTC."""
    codes: Ints
    numbers: Floats
    vectors: Floats | None = None
    """(R + 1, E) vectors of the items' texts; zeros where there is none."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EncodedItems:
    """Candidate items, encoded: codes (R, T) and numbers (R, V, 2)."""

    codes: Ints
    numbers: Floats
    vectors: TableRows | None = None
    """With item texts, the vector of each."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EncodedUsers:
    """User rows, encoded; sequences and memories stay ragged and are padded batch by batch."""

    codes: Ints
    numbers: Floats
    dense: Floats
    history: Ragged[np.int32]
    """Rows of the item table."""
    ratings: Ragged[np.float32]
    vectors: Ragged[np.float32] | None = None
    """Over (U, D) partition vectors."""
    fused: Floats | None = None
    history_vectors: Floats | None = None
    """(N, E) vectors of the behaviors' items where they are not those of the item table."""
    evidence: UserEvidence | None = None


def distinct_items(
    table: ItemTable, *, users: EncodedUsers, user_rows: npt.NDArray[Any], length: int
) -> dict[str, npt.NDArray[Any]]:
    """Return for samples of the users (`user_rows[b]`) the items of their windows as `DISTINCT` and `PLACES`."""
    users_U, place_B = np.unique(user_rows, return_inverse=True)
    rows_UN, _ = users.history.pad(users_U, width=length)
    rows_I, places = np.unique(rows_UN, return_inverse=True)
    found = (table.codes[rows_I], table.numbers[rows_I], places.reshape(rows_UN.shape)[place_B])
    return dict(zip((*DISTINCT, PLACES), found, strict=True))
