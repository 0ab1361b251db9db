"""What KAR knows of a user: one text over the history at a cut in time (Xi et al., RecSys 2024, section 3.2).

A text at a cut is made of the user's behaviors strictly before the cut, and a sample sees the text at the latest cut at
or before its own time. So no sample sees a text that knows its label, or anything later. The cuts stand at every tenth
of all behaviors, so that training samples have texts as well. Validation and test samples see no text of a later cut
than the end of the training part: those are the texts that a run made at that time could have had.

Shape suffixes: Q samples, U users, C cuts, T texts, D width of a text's vector.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from liber_feast.behavior import EVENT_TIME, ITEM, RATING, TIMESTAMP, USER
from liber_feast.catalog import described_item
from liber_feast.interest import DescribedBehavior, SummaryRequest
from liber_feast.pit import Ints
from liber_feast.ragged import Ragged

CUT_PARTS = 10
"""The cuts part the behaviors, in order of time, into so many parts."""
PROFILE = "profile"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class KnowledgePlan:
    """Which texts are to be made, and who has which of them when."""

    cuts: Ints
    """(C,) microseconds since 1970 UTC, ascending."""
    users: Ints
    """(Q,) the user of each sample, 0 to U - 1."""
    texts: Ints
    """(U, C) the text that a user has at a cut, -1 before the first."""
    requests: tuple[SummaryRequest, ...]
    """(T,) what each text is made of; its `partition_index` is the number of its cut."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Knowledge:
    """The texts of a plan, encoded."""

    plan: KnowledgePlan
    vectors: npt.NDArray[np.float32]
    """(T, D)."""
    encoder: str
    """The model of the vectors."""

    def seen(self, times: Ints, *, until: int) -> Ragged[np.float32]:
        """Return the text of each sample, none or one, by the samples' times (Q,); no cut is later than `until`."""
        plan = self.plan
        cut = np.searchsorted(plan.cuts, np.minimum(times, until), side="right") - 1
        text = np.where(cut < 0, -1, plan.texts[plan.users, np.maximum(cut, 0)] if len(plan.cuts) else -1)
        return Ragged(starts=np.maximum(text, 0), lengths=(text >= 0).astype(np.int64), values=self.vectors)


def cut_times(times: Ints, *, parts: int = CUT_PARTS) -> Ints:
    """Return when each of `parts` equal parts of the behaviors begins, but for the first: parts - 1 times or fewer."""
    ordered = np.sort(times)
    places = [int(len(ordered) * (part / parts)) for part in range(1, parts)]
    return np.unique(ordered[[place for place in places if place < len(ordered)]])


def plan_knowledge(samples: pa.Table, *, cuts: Ints, like_above: float, item_columns: Sequence[str]) -> KnowledgePlan:
    """Return the texts to be made of `samples`, rows of behaviors with the columns of their users and items.

    A user without behaviors since the cut before has the same text still.
    """
    wanted = [USER, ITEM, RATING, EVENT_TIME, *item_columns, *([PROFILE] if PROFILE in samples.column_names else [])]
    rows_of = samples.select(wanted)
    encoded = samples[USER].combine_chunks().dictionary_encode()
    users = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    times = samples[EVENT_TIME].cast(TIMESTAMP).cast(pa.int64()).to_numpy()
    order = np.lexsort((times, users))
    bounds = np.searchsorted(users[order], np.arange(len(encoded.dictionary) + 1))
    texts = np.full((len(encoded.dictionary), len(cuts)), -1, np.int64)
    requests: list[SummaryRequest] = []
    for user, (left, right) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        rows = order[left:right]
        counts = np.searchsorted(times[rows], cuts, side="left")
        if not counts.any():
            continue
        known = rows_of.take(pa.array(rows[: counts[-1]])).to_pylist()
        behaviors = tuple(_described(row, like_above=like_above, item_columns=item_columns) for row in known)
        for cut, count in enumerate(counts):
            if count and (cut == 0 or count > counts[cut - 1]):
                requests.append(_request(known[count - 1], cut=cut, behaviors=behaviors[:count]))
            texts[user, cut] = len(requests) - 1 if count else -1
    return KnowledgePlan(cuts=cuts, users=users, texts=texts, requests=tuple(requests))


def _request(row: Mapping[str, Any], *, cut: int, behaviors: tuple[DescribedBehavior, ...]) -> SummaryRequest:
    profile = str(row.get(PROFILE) or "")
    return SummaryRequest(user_id=row[USER], partition_index=cut, profile=profile, behaviors=behaviors)


def _described(row: Mapping[str, Any], *, like_above: float, item_columns: Sequence[str]) -> DescribedBehavior:
    return DescribedBehavior(
        item=described_item(row[ITEM], {name: row[name] for name in item_columns}),
        rating=row[RATING],
        liked=row[RATING] > like_above,
        event_time=row[EVENT_TIME],
    )
