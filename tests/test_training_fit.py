import json
import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from liber_feast.errors import ConfigError, DataSetError, StoreNotReady
from liber_feast.inputs import InputShape
from liber_feast.offline_positions import MemoryPositions, SequencePositions
from liber_feast.partition_vectors import read_partition_vectors
from liber_feast.ragged import list_values
from tests.training_parts import ITEM_COLUMNS, USER_COLUMNS, WIDTH, sample_table, without_vectors
from training.data import Features, Samples, make_samples
from training.fit import Progress, batches, choose_device, chosen_precision, fit, prepare, score, step_ends
from training.metrics import quality
from training.options import FitOptions
from training.split import Split

GOLDEN = Path(__file__).parent / "golden" / "training_losses.json"
SMALL = {"embedding_width": 8, "attention_hidden": (16,), "hidden": (32, 16)}
WINDOWED = ("item_ids", "ratings", "times", "behavior_count", "vectors", "partition_count", "encoder_version")
OPTIONS = FitOptions(backbone_config=SMALL, batch_size=64, epochs=2, fused_width=8, memory_dropout=0.0, device="cpu")
"""Without dropout of the memory, which has tests of its own."""


pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class Recorder:
    """Keeps what a fit reports."""

    seen: list[Progress]

    def __call__(self, progress: Progress) -> None:
        self.seen.append(progress)

    @property
    def losses(self) -> list[float]:
        return [float(progress.loss) for progress in self.seen]


class Diverging(nn.Module):
    """A backbone whose loss is never finite."""

    @dataclass(frozen=True)
    class Config:
        start: float = math.inf

    def __init__(self, shape: InputShape, *, config: Config) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(config.start))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["dense"][:, 0] * 0 + self.bias - self.bias


def samples_of(table: pa.Table, *, features: Features = "liber") -> Samples:
    """Return the samples of a table that has their features, as positions like those of the offline store."""
    items = list_values(table, "item_ids", kind=pa.string(), last=None)
    ratings = list_values(table, "ratings", kind=pa.float64(), last=None)
    recent = SequencePositions(
        starts=items.starts,
        lengths=items.lengths,
        counts=table["behavior_count"].to_numpy(),
        item_ids=items.values,
        ratings=ratings.values,
        times=list_values(table, "times", kind=pa.int64(), last=None).values.to_numpy(),
    )
    return make_samples(
        table.drop_columns([name for name in WINDOWED if name in table.column_names]),
        recent=recent,
        memory=memory_of(table) if features == "liber" else None,
        like_above=3.0,
        user_columns=USER_COLUMNS,
        item_columns=ITEM_COLUMNS,
    )


def memory_of(table: pa.Table) -> MemoryPositions:
    vectors = read_partition_vectors(table, width=WIDTH, last=50)
    return MemoryPositions(
        starts=vectors.starts,
        lengths=vectors.lengths,
        counts=vectors.lengths,
        vectors=vectors.values,
        partition_index=np.zeros(len(vectors.values), np.int64),
        encoder_versions=table["encoder_version"].combine_chunks(),
    )


@cache
def samples(features: Features = "liber") -> Samples:
    return samples_of(sample_table() if features == "liber" else without_vectors(sample_table()), features=features)


@given(count=st.integers(2, 400), batch_size=st.integers(2, 70))
def test_every_sample_is_in_one_step_of_an_epoch_and_no_step_has_one_sample(count: int, batch_size: int) -> None:
    ends = step_ends(count, batch_size=batch_size)
    sizes = np.diff([0, *ends])
    assert ends[-1] == count
    assert sizes.min() >= 2
    assert (sizes[:-1] == batch_size).all()
    assert sizes[-1] <= batch_size + 1


@given(start=st.integers(0, 30))
def test_the_order_of_samples_goes_on_after_any_step(start: int) -> None:
    rows, options = np.arange(100, 150), replace(OPTIONS, batch_size=7, epochs=3)
    whole = list(batches(rows, options=options))
    assert len(whole) == 3 * 7
    assert sorted(np.concatenate(whole[:7]).tolist()) == rows.tolist()
    left = list(batches(rows, options=options, start=start))
    assert [part.tolist() for part in left] == [part.tolist() for part in whole[start:]]


def test_an_epoch_that_leaves_one_sample_over_can_be_fitted() -> None:
    split = Split(train=np.arange(65), validation=np.arange(800, 900), test=np.arange(900, 1_000))
    fitted = fit(prepare(samples(), options=OPTIONS, split=split), options=OPTIONS)
    assert len(fitted.losses) == 2


@pytest.mark.parametrize("features", ["baseline", "liber"])
def test_ten_steps_on_a_thousand_rows_give_the_recorded_losses(features: Features) -> None:
    recorder = Recorder([])
    fit(prepare(samples(features), options=OPTIONS), options=OPTIONS, on_step=recorder)
    expected = json.loads(GOLDEN.read_text())[features]
    assert recorder.losses[:10] == pytest.approx(expected, abs=2e-5)


def test_equal_seeds_give_equal_weights_and_other_seeds_do_not() -> None:
    prepared = prepare(samples(), options=OPTIONS)
    first, again, other = (
        fit(prepared, options=options).model.state_dict() for options in (OPTIONS, OPTIONS, replace(OPTIONS, seed=1))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["output.0.weight"], other["output.0.weight"])


def test_the_weights_kept_are_those_of_the_best_look_and_the_fit_stops_after_its_patience() -> None:
    options = replace(OPTIONS, epochs=40, learning_rate=0.02, patience=2)
    recorder = Recorder([])
    fitted = fit(prepare(samples(), options=options), options=options, on_step=recorder)
    looks = [progress.validation.auc for progress in recorder.seen if progress.validation]
    assert fitted.validation.auc == max(looks)
    assert len(looks) < 80
    assert looks.index(max(looks)) == len(looks) - 3
    assert fitted.best_epoch == pytest.approx(fitted.epochs - 1)


def test_a_fit_learns_what_users_like() -> None:
    options = replace(OPTIONS, epochs=30, learning_rate=5e-3, patience=100)
    assert fit(prepare(samples(), options=options), options=options).test.auc > 0.6


def test_the_spec_is_fitted_on_the_training_part_alone() -> None:
    table = without_vectors(sample_table())
    late = table.slice(850).append_column("new", pa.array(["late"] * 150))
    early = table.slice(0, 850).append_column("new", pa.array(["early", "other"] * 425))
    found = samples_of(pa.concat_tables([early, late]), features="baseline")
    prepared = prepare(replace(found, user_columns=("new",)), options=OPTIONS)
    assert prepared.spec.user_fields[0].values == ("early", "other")
    ratings = table["rating"].to_numpy()[:800]
    assert prepared.spec.like_rate == pytest.approx((ratings > 3).mean())
    assert prepared.spec.rating_mean == pytest.approx(ratings.mean())


def test_another_rating_is_another_fingerprint() -> None:
    table = sample_table()
    ratings = table["rating"].to_numpy().copy()
    ratings[7] = 6 - ratings[7]
    changed = table.set_column(table.column_names.index("rating"), "rating", pa.array(ratings))
    assert samples_of(changed).fingerprint != samples().fingerprint


def replaced(name: str, row: int, value: object) -> pa.Table:
    table = sample_table()
    values = table[name].to_pylist()
    values[row] = value
    return table.set_column(
        table.column_names.index(name), table.schema.field(name), pa.array(values, table.schema.field(name).type)
    )


def test_vectors_of_two_encoders_are_refused() -> None:
    with pytest.raises(DataSetError, match="2 encoder versions"):
        samples_of(replaced("encoder_version", 900, "encoder-2"))


def test_liber_features_without_a_single_vector_ask_for_materialization() -> None:
    with pytest.raises(StoreNotReady, match="feast materialize"):
        samples_of(sample_table().slice(0, 3))


def test_one_class_in_a_part_is_refused() -> None:
    with pytest.raises(DataSetError, match="the train part has one class only"):
        prepare(replace(samples(), like_above=9.0), options=OPTIONS)


def test_a_loss_that_is_not_finite_ends_the_fit() -> None:
    options = replace(OPTIONS, backbone=f"{__name__}:Diverging", backbone_config={})
    with pytest.raises(ConfigError, match="the loss is not finite"):
        fit(prepare(samples(), options=options), options=options)


@pytest.mark.parametrize("features", ["baseline", "liber"])
def test_bfloat16_learns_the_same_but_for_its_rounding(features: Features) -> None:
    options = replace(OPTIONS, precision="bfloat16")
    prepared = prepare(samples(features), options=options)
    rounded, whole = fit(prepared, options=options), fit(prepared, options=OPTIONS)
    assert not np.array_equal(rounded.losses, whole.losses)
    np.testing.assert_allclose(rounded.losses, whole.losses, rtol=0.05)
    weights = {tensor.dtype for tensor in rounded.model.state_dict().values() if tensor.is_floating_point()}
    assert weights == {torch.float32}
    assert rounded.validation_logits.dtype == np.float32
    assert len(np.unique(rounded.validation_logits)) > 90, "logits are not scored in bfloat16"


def test_auto_is_bfloat16_on_a_gpu_alone() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert chosen_precision(OPTIONS, device=cpu) == "float32"
    assert chosen_precision(OPTIONS, device=gpu) == "bfloat16"
    assert chosen_precision(replace(OPTIONS, precision="float32"), device=gpu) == "float32"
    assert chosen_precision(replace(OPTIONS, precision="bfloat16"), device=cpu) == "bfloat16"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("features", ["baseline", "liber"])
def test_a_fit_on_a_gpu_comes_close_to_that_on_the_cpu(features: Features) -> None:
    prepared = prepare(samples(features), options=OPTIONS)
    on_gpu = fit(prepared, options=replace(OPTIONS, device="cuda"))
    np.testing.assert_allclose(on_gpu.losses[:3], fit(prepared, options=OPTIONS).losses[:3], rtol=0.05)
    assert {tensor.device.type for tensor in on_gpu.model.state_dict().values()} == {"cpu"}


def test_auto_is_a_device_that_is_there_and_cuda_is_not_taken_on_trust() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="not available"):
            choose_device("cuda")


def test_logits_come_with_the_run_in_the_order_of_their_parts() -> None:
    prepared = prepare(samples(), options=OPTIONS)
    fitted = fit(prepared, options=OPTIONS)
    assert fitted.validation in [look.validation for look in fitted.looks]
    every = score(fitted.model, prepared.load(torch.device("cpu")), rows=np.arange(1_000))
    assert fitted.test_logits is not None
    np.testing.assert_allclose(fitted.validation_logits, every[fitted.split.validation], atol=1e-6)
    np.testing.assert_allclose(fitted.test_logits, every[fitted.split.test], atol=1e-6)
    assert fitted.test == quality(prepared.labels[fitted.split.test], logits=fitted.test_logits)
    assert fitted.validation == quality(prepared.labels[fitted.split.validation], logits=fitted.validation_logits)


def test_a_test_part_that_is_not_asked_for_is_not_scored() -> None:
    fitted = fit(prepare(samples(), options=OPTIONS), options=OPTIONS, with_test=False)
    assert (fitted.test, fitted.test_logits) == (None, None)
    assert len(fitted.validation_logits) == 100


def test_a_split_that_is_given_is_kept() -> None:
    split = Split(train=np.arange(600), validation=np.arange(600, 700), test=np.arange(700, 800))
    prepared = prepare(samples(), options=OPTIONS, split=split)
    assert prepared.split is split
    assert prepared.spec.like_rate == pytest.approx(samples().labels[:600].mean())
    fitted = fit(prepared, options=OPTIONS)
    assert fitted.test_logits is not None
    assert len(fitted.test_logits) == 100
