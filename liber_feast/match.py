"""Compare a user's evidence with a candidate item: numbers that every backbone gets beside its other dense ones.

Evidence (`liber_feast.evidence`) and the vectors of items lie in one space, so what they say of each other is one dot
product. Nothing is learned here.

Shape suffixes: B samples, N behaviors of a window, E width of an item's vector.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from liber_feast.encoded import EncodedItems, EncodedUsers
from liber_feast.fields import Floats
from liber_feast.ragged import Ragged

SAMPLES_AT_ONCE = 8_192
"""Samples whose windows are compared at once; bounds the memory."""


def matches(
    users: EncodedUsers,
    *,
    items: EncodedItems,
    user_rows: npt.NDArray[Any],
    item_rows: npt.NDArray[Any],
    liked: npt.NDArray[np.bool_],
    table: Floats,
    length: int,
) -> Floats:
    """Return the dot products of evidence and candidate of the samples (`user_rows[b]`, `item_rows[b]`).

    (B, 1): with the evidence of the window, the last `length` behaviors; or, where users have evidence of their memory,
    (B, 2): with that, too. `liked` says it of each behavior of the windows; `table` has the vectors of the item table.
    """
    assert items.vectors is not None, "candidates that are compared have vectors"
    parts = [np.zeros((0, 1 if users.evidence is None else 2), np.float32)]
    for start in range(0, len(user_rows), SAMPLES_AT_ONCE):
        of_users = user_rows[start : start + SAMPLES_AT_ONCE]
        vectors_BE = items.vectors.take(item_rows[start : start + SAMPLES_AT_ONCE])
        distinct, place_B = np.unique(of_users, return_inverse=True)  # of a request, one user
        window_BE = _windows(users, rows=distinct, liked=liked, table=table, length=length)[place_B]
        found = [np.einsum("be,be->b", window_BE, vectors_BE)]
        if users.evidence is not None:
            found.append(np.einsum("be,be->b", users.evidence.smoothed(of_users), vectors_BE))
        parts.append(np.stack(found, axis=1))
    return np.concatenate(parts)


def window_evidence(liked_BN: npt.NDArray[np.bool_], *, vectors_BNE: Floats, there_BN: npt.NDArray[np.bool_]) -> Floats:
    """Return the evidence (B, E) of windows of behaviors, as `liber_feast.evidence` defines that of a partition.

    An item without a vector has zeros: it says nothing, and still counts.
    """
    count_B = np.maximum(there_BN.sum(axis=1), 1).astype(np.float32)
    rate_B = (liked_BN & there_BN).sum(axis=1) / count_B
    signs_BN = np.where(there_BN, liked_BN - rate_B[:, None], 0.0).astype(np.float32)
    total: Floats = np.einsum("bn,bne->be", signs_BN, vectors_BNE) / count_B[:, None]
    return total


def _windows(
    users: EncodedUsers, *, rows: npt.NDArray[Any], liked: npt.NDArray[np.bool_], table: Floats, length: int
) -> Floats:
    """Return the evidence (B, E) of the windows of `rows`."""
    history = users.history
    places_BN, there_BN = Ragged(
        starts=history.starts, lengths=history.lengths, values=np.arange(len(history.values))
    ).pad(rows, width=length)
    if not len(history.values):
        return np.zeros((len(rows), table.shape[1]), np.float32)
    own = users.history_vectors
    vectors_BNE = table[history.values[places_BN]] if own is None else own[places_BN]
    return window_evidence(liked[places_BN], vectors_BNE=vectors_BNE, there_BN=there_BN)
