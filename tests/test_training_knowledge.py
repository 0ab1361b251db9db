"""The texts of KAR: what they are made of, and that no sample sees one that knows its label or anything later."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from liber_feast.errors import DataSetError, StoreFailure
from liber_feast.interest import Answers, Failure, LearnedText, ShiftRequest, SummaryRequest
from liber_feast.pit import Ints
from training.knowledge import Knowledge, KnowledgePlan, cut_times, plan_knowledge
from training.knowledge_texts import TextFile, learn_texts

START = datetime(2020, 1, 1, tzinfo=UTC)
ITEM_COLUMNS = ("title", "categories", "period", "creator")


class Listing:
    """A learner whose text lists the items that it was shown; it fails where it is told to, and counts its calls."""

    model = "listing-1"
    prompt_version = "none"
    counts_behaviors = True

    def __init__(self, *, fails_for: str | None = None) -> None:
        self.asked: list[SummaryRequest] = []
        self.fails_for = fails_for

    def summarize(self, requests: Iterable[SummaryRequest]) -> Iterator[Answers[SummaryRequest]]:
        for request in sorted(requests, key=lambda one: -len(one.behaviors)):  # in another order than asked
            self.asked.append(request)
            if request.user_id == self.fails_for:
                yield [(request, Failure(reason="answer cut off at 256 tokens", attempt_count=1))]
            else:
                yield [(request, LearnedText(text=" ".join(str(one.item.item_id) for one in request.behaviors)))]

    def learn_shifts(self, requests: Iterable[ShiftRequest]) -> Iterator[Answers[ShiftRequest]]:
        raise AssertionError("KAR has no shifts")


def table(rows: Sequence[tuple[str, int]]) -> pa.Table:
    """Return behaviors of (user, minute) in the order of time, each with an item of its own: `i` and its row."""
    ordered = sorted(rows, key=lambda row: row[1])
    return pa.table(
        {
            "user_id": pa.array([user for user, _ in ordered], pa.string()),
            "item_id": pa.array([f"i{row}" for row in range(len(ordered))], pa.string()),
            "rating": pa.array([float(row % 5 + 1) for row in range(len(ordered))], pa.float64()),
            "event_timestamp": pa.array(
                [START + timedelta(minutes=minute) for _, minute in ordered], pa.timestamp("us", tz="UTC")
            ),
            "profile": pa.array([f"profile at {row}" for row in range(len(ordered))], pa.string()),
            "title": pa.array([f"Title {row}" for row in range(len(ordered))], pa.string()),
            "categories": pa.array([["Drama"]] * len(ordered), pa.list_(pa.string())),
            "period": pa.array([None] * len(ordered), pa.string()),
            "creator": pa.array(["Somebody"] * len(ordered), pa.string()),
            "price": pa.array([1.0] * len(ordered), pa.float64()),
        }
    )


def times_of(samples: pa.Table) -> Ints:
    micros: Ints = samples["event_timestamp"].cast(pa.int64()).to_numpy()
    return micros


def plan_of(samples: pa.Table, *, parts: int = 4) -> KnowledgePlan:
    cuts = cut_times(times_of(samples), parts=parts)
    return plan_knowledge(samples, cuts=cuts, like_above=3.0, item_columns=ITEM_COLUMNS)


def seen_texts(samples: pa.Table, plan: KnowledgePlan, folder: Path, *, until: int) -> list[str | None]:
    """Return the text that each sample sees, as `Listing` writes it."""
    file = TextFile(folder, model=Listing.model, prompt_version=Listing.prompt_version)
    texts = learn_texts(plan.requests, learner=Listing(), file=file)
    numbers = np.arange(len(texts), dtype=np.float32)[:, None]
    windows = Knowledge(plan=plan, vectors=numbers, encoder="none").seen(times_of(samples), until=until)
    assert set(windows.lengths.tolist()) <= {0, 1}
    return [
        texts[int(windows.values[start, 0])] if length else None
        for start, length in zip(windows.starts, windows.lengths, strict=True)
    ]


@given(
    rows=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 12)), min_size=1, max_size=40),
    parts=st.integers(2, 10),
    until_minute=st.integers(0, 13),
)
def test_a_text_is_all_that_a_user_did_before_a_cut_that_comes_before_the_sample(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int]], parts: int, until_minute: int
) -> None:
    samples = table(rows)
    times, users = times_of(samples), samples["user_id"].to_pylist()
    until = int((START + timedelta(minutes=until_minute)).timestamp() * 1_000_000)
    plan = plan_of(samples, parts=parts)
    seen = seen_texts(samples, plan, tmp_path_factory.mktemp("knowledge"), until=until)
    for sample, text in enumerate(seen):
        past = [cut for cut in plan.cuts if cut <= min(times[sample], until)]
        known = [row for row, time in enumerate(times) if past and time < past[-1] and users[row] == users[sample]]
        assert text == (" ".join(f"i{row}" for row in known) if known else None)
        assert all(times[row] < times[sample] and times[row] < until for row in known)


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(2, 10))
def test_cuts_are_times_of_behaviors_that_part_them_evenly(minutes: list[int], parts: int) -> None:
    times = np.asarray(minutes, np.int64)
    cuts = cut_times(times, parts=parts)
    assert set(cuts.tolist()) <= set(minutes)
    assert cuts.tolist() == sorted(set(cuts.tolist()))
    assert len(cuts) <= parts - 1
    if len(set(minutes)) == len(minutes) >= parts:
        before = [int((times < cut).sum()) for cut in cuts]
        assert before == [len(minutes) * part // parts for part in range(1, parts)]


def test_the_end_of_the_training_part_of_a_fit_is_a_cut() -> None:
    from training.split import split_by_time  # noqa: PLC0415

    for count in (10, 97, 1_000, 100_836):
        times = np.arange(count, dtype=np.int64)
        split = split_by_time(times)
        assert times[split.validation[0]] in cut_times(times)


def test_a_user_without_new_behaviors_keeps_the_text_and_is_not_asked_about_again() -> None:
    samples = table([("a", 0), ("a", 1), *(("b", minute) for minute in range(2, 10))])
    plan = plan_of(samples)
    assert [one.partition_index for one in plan.requests if one.user_id == "a"] == [0]
    assert len(set(plan.texts[0].tolist())) == 1
    assert len(set(plan.texts[1].tolist())) == len(plan.cuts)


def test_a_request_shows_the_behaviors_with_what_was_known_of_their_items_and_the_latest_profile() -> None:
    plan = plan_of(table([("a", 0), ("a", 1), ("a", 2), ("a", 3)]), parts=2)
    [request] = plan.requests
    assert request.profile == "profile at 1"
    first, second = request.behaviors
    assert (first.item.title, first.item.categories, first.item.period) == ("Title 0", ("Drama",), None)
    assert first.item.attributes == {"creator": "Somebody"}
    assert (second.rating, second.liked, second.event_time) == (2.0, False, START + timedelta(minutes=1))


def test_texts_are_asked_for_once_whatever_the_cuts_are_called(tmp_path: Path) -> None:
    samples = table([("a", minute) for minute in range(12)])
    file = TextFile(tmp_path, model="m", prompt_version="p")
    first, again, finer = Listing(), Listing(), Listing()
    plan = plan_of(samples, parts=3)
    texts = learn_texts(plan.requests, learner=first, file=file)
    assert len(first.asked) == len(texts) == 2
    assert learn_texts(plan.requests, learner=again, file=file) == texts
    assert again.asked == []
    assert len(learn_texts(plan_of(samples, parts=6).requests, learner=finer, file=file)) == 5
    assert len(finer.asked) == 3
    other = TextFile(tmp_path, model="another", prompt_version="p")
    assert other.read() == {}


def test_a_line_that_was_left_half_written_is_asked_for_again(tmp_path: Path) -> None:
    samples = table([("a", minute) for minute in range(12)])
    file = TextFile(tmp_path, model="m", prompt_version="p")
    requests = plan_of(samples, parts=3).requests
    texts = learn_texts(requests, learner=Listing(), file=file)
    file.path.write_bytes(file.path.read_bytes()[:-5])
    again = Listing()
    assert learn_texts(requests, learner=again, file=file) == texts
    assert len(again.asked) == 1
    assert len(file.read()) == 2


def test_a_text_that_could_not_be_had_is_one_line_and_the_others_are_kept(tmp_path: Path) -> None:
    samples = table([*(("a", minute) for minute in range(6)), *(("b", minute) for minute in range(6))])
    file = TextFile(tmp_path, model="m", prompt_version="p")
    requests = plan_of(samples, parts=2).requests
    with pytest.raises(DataSetError, match="1 of 2 texts of KAR could not be had: answer cut off") as raised:
        learn_texts(requests, learner=Listing(fails_for="b"), file=file)
    assert "\n" not in str(raised.value)
    again = Listing()
    learn_texts(requests, learner=again, file=file)
    assert [one.user_id for one in again.asked] == ["b"]


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    file = TextFile(tmp_path / "file", model="m", prompt_version="p")
    with pytest.raises(StoreFailure, match="cannot be"):
        learn_texts(plan_of(table([("a", 0), ("a", 1)]), parts=2).requests, learner=Listing(), file=file)
