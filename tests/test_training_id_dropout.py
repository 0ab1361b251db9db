"""Strong dropout of user ids: hidden from steps, never from scores."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.test_training_fit import OPTIONS, Recorder, samples_of
from tests.training_parts import sample_table
from training.fit import fit, prepare
from training.id_dropout import ID_SLOT, UNKNOWN, hide_ids, user_id_told
from training.options import FitOptions

pytestmark = pytest.mark.usefixtures("one_thread")


@given(st.integers(1, 200), st.integers(1, 4), st.floats(0, 1, exclude_max=True), st.integers(0, 9))
def test_an_id_is_hidden_or_as_it_was_and_nothing_else_changes(rows: int, slots: int, share: float, seed: int) -> None:
    codes = torch.arange(1, rows * slots + 1).view(rows, slots)
    batch = {"user_codes": codes, "dense": torch.ones(rows, 2)}
    torch.manual_seed(seed)
    hidden = hide_ids(batch, share=share)
    ids = hidden["user_codes"][:, ID_SLOT]
    assert ((ids == UNKNOWN) | (ids == codes[:, ID_SLOT])).all()
    assert torch.equal(hidden["user_codes"][:, 1:], codes[:, 1:])
    assert hidden["dense"] is batch["dense"]
    assert torch.equal(codes, torch.arange(1, rows * slots + 1).view(rows, slots))
    torch.manual_seed(seed)
    assert torch.equal(hide_ids(batch, share=share)["user_codes"], hidden["user_codes"])


def test_as_many_are_hidden_as_were_asked_for() -> None:
    torch.manual_seed(0)
    hidden = hide_ids({"user_codes": torch.ones(20_000, 1, dtype=torch.int32)}, share=0.9)
    assert abs((hidden["user_codes"] == UNKNOWN).float().mean().item() - 0.9) < 0.01


def losses_of(options: FitOptions) -> list[float]:
    recorder = Recorder([])
    prepared = prepare(samples_of(sample_table()), options=options)
    assert not options.user_id or prepared.spec.user_fields[0].name == "user_id"
    fitted = fit(prepared, options=options, on_step=recorder)
    assert fitted.test_logits is not None and np.isfinite(fitted.test_logits).all()
    return recorder.losses


def test_a_fit_hides_ids_where_they_are_a_field() -> None:
    with_ids = replace(OPTIONS, user_id=True)
    assert losses_of(replace(with_ids, id_dropout=0.9)) != losses_of(with_ids)


def test_a_table_says_what_is_known_of_users() -> None:
    assert user_id_told(is_field=False, dropout=0.9) == "no field"
    assert user_id_told(is_field=True, dropout=0.0) == "a field"
    assert user_id_told(is_field=True, dropout=0.9) == "a field, hidden from 90% of a step's samples"
