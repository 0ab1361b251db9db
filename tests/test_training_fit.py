import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from liber_feast.errors import ConfigError, DataSetError, StoreNotReady
from liber_feast.inputs import InputShape
from tests.training_parts import ITEM_COLUMNS, USER_COLUMNS, sample_table, without_vectors
from training.data import Features, Samples, build_samples
from training.fit import FitOptions, Progress, choose_device, fit, prepare

GOLDEN = Path(__file__).parent / "golden" / "training_losses.json"
SMALL = {"embedding_width": 8, "attention_hidden": (16,), "hidden": (32, 16)}
OPTIONS = FitOptions(backbone_config=SMALL, batch_size=64, epochs=2, fused_width=8, device="cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small models gain nothing from threads, and figures must not depend on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


def samples_of(table: pa.Table, *, features: Features = "liber", chunk_rows: int = 300) -> Samples:
    """Return the samples of a table that has their features, as the offline store would give them."""
    return build_samples(
        table.select(["user_id", "item_id", "rating", "event_timestamp", "behavior_id"]),
        join=lambda rows: table.slice(rows["behavior_id"][0].as_py() and _position(rows), rows.num_rows),
        features=features,
        like_above=3.0,
        user_columns=USER_COLUMNS,
        item_columns=ITEM_COLUMNS,
        chunk_rows=chunk_rows,
    )


def _position(rows: pa.Table) -> int:
    return int(rows["behavior_id"][0].as_py().removeprefix("b"))


@cache
def samples(features: Features = "liber") -> Samples:
    return samples_of(sample_table() if features == "liber" else without_vectors(sample_table()), features=features)


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


def test_samples_read_in_chunks_are_those_read_at_once() -> None:
    chunked, whole = samples(), samples_of(sample_table(), chunk_rows=10_000)
    assert chunked.table.equals(whole.table)
    assert chunked.fingerprint == whole.fingerprint
    assert chunked.encoder_version == "encoder-1"
    every = np.arange(1_000)
    for found, expected in zip(chunked.vectors.pad(every), whole.vectors.pad(every), strict=True):
        np.testing.assert_array_equal(found, expected)


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


def test_nan_in_a_vector_is_refused() -> None:
    table = sample_table()
    vector = table["vectors"][900].as_py()
    with pytest.raises(DataSetError, match="'vectors' has a value that is not finite"):
        samples_of(replaced("vectors", 900, [float("nan"), *vector[1:]]))


def test_vectors_that_do_not_fit_their_count_are_refused() -> None:
    with pytest.raises(DataSetError, match="4 partitions have"):
        samples_of(replaced("partition_count", 900, 4))


def test_vectors_of_two_encoders_are_refused() -> None:
    with pytest.raises(DataSetError, match="2 encoder versions"):
        samples_of(replaced("encoder_version", 900, "encoder-2"))


def test_liber_features_without_a_single_vector_ask_for_materialization() -> None:
    with pytest.raises(StoreNotReady, match="feast materialize"):
        samples_of(sample_table().slice(0, 3))


def test_a_store_that_loses_rows_is_refused() -> None:
    table = without_vectors(sample_table(count=20))
    with pytest.raises(DataSetError, match="19 rows for 20 samples"):
        build_samples(
            table,
            join=lambda rows: rows.slice(1),
            features="baseline",
            like_above=3.0,
            user_columns=(),
            item_columns=(),
        )


def test_one_class_in_a_part_is_refused() -> None:
    with pytest.raises(DataSetError, match="the train part has one class only"):
        prepare(replace(samples(), like_above=9.0), options=OPTIONS)


def test_a_loss_that_is_not_finite_ends_the_fit() -> None:
    options = replace(OPTIONS, backbone=f"{__name__}:Diverging", backbone_config={})
    with pytest.raises(ConfigError, match="the loss is not finite"):
        fit(prepare(samples(), options=options), options=options)


def test_auto_is_a_device_that_is_there_and_cuda_is_not_taken_on_trust() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="not available"):
            choose_device("cuda")
