"""Texts over a user's whole history, or over the last behaviors, anew every so many behaviors.

The paper's ablation asks the LLM for one text over everything (no partitions), and for one over the last 100 or 20
behaviors at every sample. A sample sees a text only of behaviors strictly before its time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from liber_feast.behavior import BEHAVIOR_ID, ITEM, RATING, USER, moment_at
from liber_feast.interest import DescribedBehavior, InterestLearner, LearnedText, SummaryRequest
from liber_feast.ragged import Ragged
from liber_feast.waves import Catalog
from training.data import Samples
from training.knowledge_texts import TextFile, text_key

Ints = npt.NDArray[np.int64]
REQUESTS_AT_ONCE = 256
"""Requests whose items are looked up together."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TextPlan:
    """T texts over Q samples: text t is of the samples `order[starts[t]:stops[t]]`, all of one user, oldest first."""

    order: Ints
    """(Q,) the samples by user, time and behavior id."""
    starts: Ints
    """(T,)"""
    stops: Ints
    """(T,)"""
    text_of: Ints
    """(Q,) the text that a sample sees, -1 where there is none yet."""


def plan_texts(samples: Samples, *, every: int, last: int | None) -> TextPlan:
    """Return which texts samples see, where each user gets a new one after `every` behaviors, over the `last` ones.

    `last` of None is the whole history.
    """
    users = np.unique(samples.table[USER].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)[1]
    ids = samples.table[BEHAVIOR_ID].to_numpy(zero_copy_only=False).astype(str)
    order = np.lexsort((ids, samples.times, users))
    of_user, times = users[order], samples.times[order]
    first = np.searchsorted(of_user, of_user, side="left")
    is_new_time = np.r_[True, (np.diff(of_user) != 0) | (np.diff(times) != 0)] if len(order) else np.empty(0, bool)
    before = np.maximum.accumulate(np.where(is_new_time, np.arange(len(order)), 0)) - first
    stops = first + before // every * every
    starts = first if last is None else np.maximum(first, stops - last)
    seen = np.flatnonzero(stops > first)
    ranges, text_of_seen = np.unique(np.stack([starts[seen], stops[seen]], 1), axis=0, return_inverse=True)
    text_of = np.full(len(order), -1, np.int64)
    text_of[order[seen]] = text_of_seen.reshape(-1)
    return TextPlan(order=order, starts=ranges[:, 0], stops=ranges[:, 1], text_of=text_of)


def requests(plan: TextPlan, samples: Samples, *, catalog: Catalog) -> Iterator[SummaryRequest]:
    """Yield the request of each text; its `partition_index` is the number of the text."""
    names, items = (samples.table[name].cast(pa.string()).to_pylist() for name in (USER, ITEM))
    ratings, times = samples.table[RATING].to_pylist(), samples.times
    for left in range(0, len(plan.starts), REQUESTS_AT_ONCE):
        some = range(left, min(left + REQUESTS_AT_ONCE, len(plan.starts)))
        rows = {text: plan.order[plan.starts[text] : plan.stops[text]].tolist() for text in some}
        known = catalog.items_at({(items[row], int(times[row])) for of_text in rows.values() for row in of_text})
        ends = {text: (names[of_text[-1]], int(times[of_text[-1]])) for text, of_text in rows.items()}
        profiles = catalog.profiles_at(ends.values())
        for text, of_text in rows.items():
            yield SummaryRequest(
                user_id=names[of_text[-1]],
                partition_index=text,
                profile=profiles[ends[text]],
                behaviors=tuple(
                    DescribedBehavior(
                        item=known[items[row], int(times[row])],
                        rating=ratings[row],
                        liked=ratings[row] > samples.like_above,
                        event_time=moment_at(int(times[row])),
                    )
                    for row in of_text
                ),
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """The texts of a plan by number, and what they took; a text that could not be had is missing."""

    texts: Mapping[int, str]
    call_count: int


def write_texts(
    asked: Iterator[SummaryRequest],
    *,
    learner: InterestLearner,
    file: TextFile,
    progress: Callable[[int], object] = lambda _: None,
) -> Written:
    """Have `learner` write every text that `file` lacks, and keep it there; `progress` gets how many there are more.

    A text that is kept counts as one call, whatever it took then.

    Raises:
        BudgetExhausted, BackendRefused, BackendUnreachable: see `InterestLearner`; what came before is kept.
        StoreFailure: the file cannot be used.
    """
    known, texts, calls = file.read(), dict[int, str](), 0

    def missing() -> Iterator[SummaryRequest]:
        nonlocal calls
        for request in asked:
            if (text := known.get(text_key(request))) is None:
                yield request
            else:
                texts[request.partition_index] = text
                calls += 1
                progress(1)

    for answers in learner.summarize(missing()):
        calls += sum(outcome.attempt_count for _, outcome in answers)
        arrived = [(request, outcome.text) for request, outcome in answers if isinstance(outcome, LearnedText)]
        file.add([(text_key(request), text) for request, text in arrived])
        texts |= {request.partition_index: text for request, text in arrived}
        progress(len(answers))
    return Written(texts=texts, call_count=calls)


Encode = Callable[[Sequence[str]], npt.NDArray[np.float32]]
"""Returns the vectors (T, D) of T texts."""


def with_texts(samples: Samples, *, plan: TextPlan, written: Written, encode: Encode) -> Samples:
    """Return the samples with one vector each, that of the text they see, in place of the partition vectors."""
    distinct = sorted(set(written.texts.values()), key=lambda text: (len(text), text))
    place = {text: number for number, text in enumerate(distinct)}
    vector_of = np.full(len(plan.starts) + 1, -1, np.int64)  # the last is that of no text
    for text, words in written.texts.items():
        vector_of[text] = place[words]
    found = vector_of[plan.text_of]
    vectors = Ragged(starts=np.maximum(found, 0), lengths=(found >= 0).astype(np.int64), values=encode(distinct))
    return replace(samples, vectors=vectors)
