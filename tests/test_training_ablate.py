"""Each variant of an ablation sees what it says, nothing of the future, and its calls are counted."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from liber_feast.errors import ArtifactError, ConfigError, LiberError, StoreNotReady
from liber_feast.fusion import AttentionFusion
from liber_feast.interest import Item
from tests import feature_repo_kit as kit
from tests import llm_repo
from tests.test_training_fit import SMALL, samples_of
from tests.training_parts import SCHEMA, sample_table
from training.ablate import FILE, VARIANTS, Ablation, Figures, ablate, partition_size, rows_of
from training.ablation_report import PICTURE, TABLE, markdown, write_report
from training.data import Samples, load_samples
from training.history_texts import Written, plan_texts, requests, with_texts, write_texts
from training.knowledge_texts import TextFile
from training.memory_variants import mean_pooled, without_shift
from training.options import FitOptions

OPTIONS = FitOptions(backbone_config=SMALL, batch_size=16, epochs=1, fused_width=4, device="cpu")
QUIET = Console(quiet=True)


class NamedItems:
    """A catalog that knows the id of every item, and the time that was asked about."""

    def __init__(self) -> None:
        self.times: list[int] = []

    def items(self, item_ids: Iterable[str]) -> Mapping[str, Item]:
        return {one: Item(item_id=one) for one in item_ids}

    def items_at(self, wanted: Iterable[tuple[str, int]]) -> Mapping[tuple[str, int], Item]:
        return {(name, time): Item(item_id=name, title=f"{name} at {time}") for name, time in wanted}

    def profiles_at(self, wanted: Iterable[tuple[str, int]]) -> Mapping[tuple[str, int], str]:
        return {(name, time): f"{name} at {time}" for name, time in wanted}


@st.composite
def histories(draw: st.DrawFn) -> Samples:
    """Samples of few users, some at one time, in no order of users."""
    chosen = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=30))
    rows = [
        {
            **dict.fromkeys(SCHEMA.names),
            "user_id": f"u{user}",
            "item_id": f"i{number}",
            "rating": float(1 + number % 5),
            "event_timestamp": time,
            "behavior_id": f"b{number:02}",
            "item_ids": [],
            "ratings": [],
            "times": [],
        }
        for number, (user, time) in enumerate(sorted(chosen, key=lambda one: one[1]))
    ]
    return samples_of(pa.Table.from_pylist(rows, schema=SCHEMA), features="baseline")


def seen_by(samples: Samples, row: int, *, every: int, last: int | None) -> list[str]:
    """Return the items that the text of a sample is of, by a plain loop over all behaviors."""
    users, ids = samples.table["user_id"].to_pylist(), samples.table["behavior_id"].to_pylist()
    before = sorted(
        (time, ids[other], samples.table["item_id"][other].as_py())
        for other, time in enumerate(samples.times.tolist())
        if users[other] == users[row] and time < samples.times[row]
    )
    whole = before[: len(before) // every * every]
    return [item for *_, item in (whole if last is None else whole[-last:])]


@given(histories(), st.integers(1, 5), st.none() | st.integers(1, 6))
def test_a_sample_sees_a_text_of_what_came_strictly_before_it(samples: Samples, every: int, last: int | None) -> None:
    plan = plan_texts(samples, every=every, last=last)
    asked = {one.partition_index: one for one in requests(plan, samples, catalog=NamedItems())}
    assert sorted(asked) == list(range(len(plan.starts)))
    for row, text in enumerate(plan.text_of.tolist()):
        expected = seen_by(samples, row, every=every, last=last)
        assert (text >= 0) == bool(expected)
        if expected:
            assert [one.item.item_id for one in asked[text].behaviors] == expected
            assert asked[text].user_id == samples.table["user_id"][row].as_py()
    texts = {(one.user_id, tuple(behavior.item.item_id for behavior in one.behaviors)) for one in asked.values()}
    assert len(texts) == len(asked), "no text is asked for twice"


def test_requests_describe_items_and_users_as_of_the_behaviors() -> None:
    samples = samples_of(sample_table(count=60), features="baseline")
    plan = plan_texts(samples, every=1, last=3)
    one = next(iter(requests(plan, samples, catalog=NamedItems())))
    times = [int(behavior.event_time.timestamp() * 1e6) for behavior in one.behaviors]
    assert [behavior.item.title for behavior in one.behaviors] == [
        f"{behavior.item.item_id} at {time}" for behavior, time in zip(one.behaviors, times, strict=True)
    ]
    assert one.profile == f"{one.user_id} at {times[-1]}"
    assert {behavior.liked for behavior in one.behaviors} <= {behavior.rating > 3 for behavior in one.behaviors}


def encode(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    return np.array([[len(text), hash(text) % 97] for text in texts], np.float32).reshape(-1, 2)


def test_a_text_that_could_not_be_had_is_no_vector_and_equal_texts_are_encoded_once() -> None:
    samples = samples_of(sample_table(count=60, users=4), features="baseline")
    plan = plan_texts(samples, every=4, last=None)
    texts = {number: f"text {number % 3}" for number in range(len(plan.starts))}
    del texts[1]
    found = with_texts(samples, plan=plan, written=Written(texts=texts, call_count=0), encode=encode).vectors
    assert found is not None
    assert found.values.shape == (3, 2)
    for row, text in enumerate(plan.text_of.tolist()):
        assert found.lengths[row] == (text in texts)
        if text in texts:
            assert found.values[found.starts[row]].tolist() == encode([texts[text]])[0].tolist()
    assert 0 < found.lengths.sum() < len(plan.text_of)


def vectors_of(samples: Samples, row: int) -> npt.NDArray[np.float32]:
    assert samples.vectors is not None
    start = samples.vectors.starts[row]
    return samples.vectors.values[start : start + samples.vectors.lengths[row]]


def test_the_mean_is_over_the_partitions_that_a_sample_sees() -> None:
    samples = samples_of(sample_table(count=300))
    pooled = mean_pooled(samples)
    counts = set()
    for row in range(len(samples.times)):
        own = vectors_of(samples, row)
        counts.add(len(own))
        assert len(vectors_of(pooled, row)) == (len(own) > 0)
        if len(own):
            np.testing.assert_allclose(vectors_of(pooled, row)[0], own.mean(axis=0), rtol=1e-5, atol=1e-6)
    assert len(counts) > 2
    assert pooled.vectors is not None and samples.vectors is not None
    assert len(pooled.vectors.values) < len(samples.times), "samples that see the same share it"


def test_attention_over_one_vector_is_its_linear_map() -> None:
    torch.manual_seed(0)
    fusion, vectors = AttentionFusion(width=6, fused_width=4), torch.randn(5, 1, 6)
    torch.testing.assert_close(fusion(vectors, torch.ones(5, 1, dtype=torch.bool)), fusion.value(vectors[:, 0]))


def test_without_shift_leaves_the_first_half() -> None:
    samples = samples_of(sample_table(count=100))
    halves = without_shift(samples)
    assert halves.vectors is not None and samples.vectors is not None
    np.testing.assert_array_equal(halves.vectors.values, samples.vectors.values[:, :3])
    np.testing.assert_array_equal(halves.vectors.lengths, samples.vectors.lengths)


def test_samples_without_vectors_have_no_memory_to_change() -> None:
    with pytest.raises(ValueError, match="features='liber'"):
        mean_pooled(samples_of(sample_table(count=60), features="baseline"))


@cache
def repo() -> Path:
    return kit.materialized_repo(kit.lasting_folder() / "ablated")


def ablation(*variants: str, **changes: object) -> Ablation:
    return replace(Ablation(repo=repo(), options=OPTIONS, seeds=(0, 1), variants=variants), **changes)


def run(folder: Path, *variants: str, resume: bool = False, **changes: object) -> dict[str, Figures]:
    return ablate(ablation(*variants, **changes), folder=folder, resume=resume, console=QUIET)


EVERY = ("baseline", "liber", "without_partition", "without_shift", "mean_pooling", "every_behavior_last_20")


def test_every_variant_is_fitted_and_its_calls_are_those_of_the_formula(tmp_path: Path) -> None:
    found = run(tmp_path / "out", *EVERY, "partition_2")
    samples = load_samples(repo(), features="liber")
    counts: dict[str, int] = defaultdict(int)
    for user in samples.table["user_id"].to_pylist():
        counts[user] += 1
    sealed = [count // kit.SIZE for count in counts.values()]
    calls = {name: figures.calls.calls for name, figures in found.items()}
    assert calls["baseline"] == 0
    assert calls["liber"] == calls["mean_pooling"] == sum(sealed) + sum(max(one - 1, 0) for one in sealed)
    assert calls["without_shift"] == sum(sealed)
    assert calls["partition_2"] == sum(count // 2 + count // 2 - 1 for count in counts.values())
    plan = plan_texts(samples, every=kit.SIZE, last=None)
    assert calls["without_partition"] == len(plan.starts) <= sum(sealed)
    distinct_times = {(u, t) for u, t in zip(samples.table["user_id"].to_pylist(), samples.times.tolist(), strict=True)}
    assert calls["every_behavior_last_20"] == len(distinct_times) - len(counts)
    for figures in found.values():
        assert len(figures.auc) == len(figures.log_loss) == len(figures.validation_auc) == 2
        assert figures.calls.users == len(counts)
    assert len({figures.log_loss for figures in found.values()}) > 3
    rows = rows_of(found)
    assert rows["liber"]["auc_gain"] == pytest.approx(np.mean(found["liber"].auc) - np.mean(found["baseline"].auc))
    p_value = stats.ttest_rel(found["liber"].auc, found["baseline"].auc).pvalue
    assert rows["liber"]["p_value"] == pytest.approx(p_value)
    assert rows["baseline"]["p_value"] is None
    assert rows["liber"]["calls_per_user"] == pytest.approx(calls["liber"] / len(counts))
    write_report(tmp_path / "out", ablation=ablation(*found), found=found)
    table = (tmp_path / "out" / TABLE).read_text("utf-8")
    assert "partitions of 2 behaviors" in table
    assert "user id no field" in table
    assert (tmp_path / "out" / PICTURE).read_bytes().startswith(b"\x89PNG")


def test_texts_in_parts_are_ablated_in_parts(tmp_path: Path) -> None:
    in_parts = kit.loaded_repo(tmp_path / "repo")
    llm_repo.set_interest(in_parts, {"backend": "extractive", "form": "parts"})
    llm_repo.materialize(in_parts)
    found = run(tmp_path / "out", "liber", "without_partition", "without_shift", repo=in_parts)
    assert len({figures.log_loss for figures in found.values()}) == 3


def test_an_ablation_goes_on_with_what_is_missing_and_never_with_that_of_another(tmp_path: Path) -> None:
    first = run(tmp_path, "baseline")
    kept = json.loads((tmp_path / FILE).read_text("utf-8"))
    kept["variants"]["baseline"]["auc"] = [0.25, 0.5]
    (tmp_path / FILE).write_text(json.dumps(kept), "utf-8")
    second = run(tmp_path, "baseline", "liber", resume=True)
    assert second["baseline"].auc == (0.25, 0.5) != first["baseline"].auc
    assert list(second) == ["baseline", "liber"]
    with pytest.raises(ArtifactError, match="exists. Go on with --resume"):
        run(tmp_path, "baseline")
    with pytest.raises(ArtifactError, match=r"seeds was \[0, 1\] and is \[0\] now\. Name another folder with --out\.$"):
        run(tmp_path, "baseline", resume=True, seeds=(0,))
    (tmp_path / FILE).write_text("[]", "utf-8")
    with pytest.raises(ArtifactError, match="is no ablation"):
        run(tmp_path, "baseline", resume=True)


def test_without_the_baseline_there_is_no_gain(tmp_path: Path) -> None:
    found = run(tmp_path, "liber")
    assert rows_of(found)["liber"]["auc_gain"] is None
    assert "| LIBER |" in markdown(ablation("liber"), found=found)


@pytest.mark.parametrize("name", ["partition_0", "partition_", "partition_x", "partition_-5", "attention", ""])
def test_a_variant_that_does_not_exist_is_named_with_those_that_do(name: str) -> None:
    with pytest.raises(ConfigError, match=r"is unknown. Known: baseline, liber, .* and partition_N"):
        ablation(name)
    assert partition_size("partition_7") == 7
    assert {size for size in map(partition_size, VARIANTS) if size} == {5, 10, 20, 50}


def test_an_llm_is_asked_for_nothing_that_was_not_wanted(tmp_path: Path) -> None:
    llm = kit.materialized_repo(tmp_path / "repo")
    interest = {"backend": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "large", "api_key_env": None}
    kit.set_engine(llm, interest=interest)
    for name in ("every_behavior_last_20", "without_partition", "partition_2"):
        with pytest.raises(ConfigError, match=rf"variant '{name}' would ask large for .* Add --pay"):
            run(tmp_path / name, name, repo=llm)


def test_a_repo_without_the_tables_of_liber_load_has_no_other_sizes(tmp_path: Path) -> None:
    other = kit.materialized_repo(tmp_path / "repo")
    (other / "data" / "dataset.json").unlink(missing_ok=True)
    with pytest.raises(StoreNotReady, match=r"dataset.json is missing.*Leave out the variants"):
        run(tmp_path / "out", "partition_2", repo=other)


def test_a_text_is_asked_for_once_whatever_becomes_of_the_run(tmp_path: Path) -> None:
    learner = kit.WatchedLearner(limit=2)
    file = TextFile(tmp_path, model=learner.model, prompt_version=learner.prompt_version)
    samples = samples_of(sample_table(count=60, users=4), features="baseline")
    plan = plan_texts(samples, every=4, last=None)

    def write() -> Written:
        return write_texts(requests(plan, samples, catalog=NamedItems()), learner=learner, file=file)

    with pytest.raises(LiberError, match="does not answer"):
        write()
    learner.limit = None
    written = write()
    assert written.call_count == learner.call_count == len(written.texts) == len(plan.starts) > 2
    assert write() == written
    assert learner.call_count == len(plan.starts)
