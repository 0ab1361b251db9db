"""A fit that was cut off goes on as if it had not been."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from liber_feast.errors import ArtifactError
from tests.test_training_fit import OPTIONS, samples_of
from tests.training_parts import sample_table
from training.backbones.din import DIN
from training.checkpoint import FILE, Checkpoints
from training.fit import FittedRun, Prepared, Progress, fit, prepare
from training.options import FitOptions
from training.run import open_checkpoints

SHORT = replace(OPTIONS, epochs=2, patience=3)
STEP_COUNT = 8


class CutOff(Exception):
    """The end of a process, as far as a fit can tell."""


class Other(DIN):
    """Another backbone, which the weights of DIN would fit."""


pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def prepared(count: int = 300) -> Prepared:
    return prepare(samples_of(sample_table(count=count)), options=SHORT)


@cache
def uninterrupted() -> FittedRun:
    return fit(prepared(), options=SHORT)


def cut_at(step: int) -> Callable[[Progress], None]:
    def cut(progress: Progress) -> None:
        if progress.step == step:
            raise CutOff

    return cut


def cut_fit(folder: Path, *, at: int, every: int, options: FitOptions = SHORT) -> Checkpoints:
    """Cut a fit off after a step, and return where its checkpoint is."""
    with pytest.raises(CutOff):
        fit(prepared(), options=options, checkpoints=Checkpoints(folder=folder, every=every), on_step=cut_at(at))
    return Checkpoints(folder=folder, every=every, resume=True)


def assert_same(found: FittedRun, expected: FittedRun) -> None:
    np.testing.assert_array_equal(found.losses, expected.losses)
    np.testing.assert_array_equal(found.validation_logits, expected.validation_logits)
    np.testing.assert_array_equal(found.test_logits, expected.test_logits)
    assert found.looks == expected.looks
    assert (found.validation, found.test) == (expected.validation, expected.test)
    assert (found.best_epoch, found.epochs) == (expected.best_epoch, expected.epochs)
    weights = expected.model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in found.model.state_dict().items())


@pytest.mark.parametrize("every", [1, 3, 0], ids=["each step", "every third step", "each look"])
@pytest.mark.parametrize("at", [1, 2, 3, 5, STEP_COUNT])
def test_a_fit_cut_off_after_a_step_comes_to_the_same(tmp_path: Path, at: int, every: int) -> None:
    assert len(uninterrupted().losses) == STEP_COUNT
    checkpoints = cut_fit(tmp_path / "run.checkpoint", at=at, every=every)
    torch.manual_seed(99)  # another process has other generators
    taken: list[int] = []
    resumed = fit(
        prepared(), options=SHORT, checkpoints=checkpoints, on_step=lambda progress: taken.append(progress.step)
    )
    assert_same(resumed, uninterrupted())
    kept = (at // every) * every if every else (at // 2) * 2
    assert taken == list(range(kept + 1, STEP_COUNT + 1))


def test_a_fit_cut_off_again_and_again_comes_to_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "run.checkpoint"
    for at in range(1, STEP_COUNT):
        again = Checkpoints(folder=folder, every=1, resume=True)
        with pytest.raises(CutOff):
            fit(prepared(), options=SHORT, checkpoints=again, on_step=cut_at(at))
    assert_same(fit(prepared(), options=SHORT, checkpoints=again), uninterrupted())


def test_a_fit_that_had_lost_its_patience_takes_no_further_step(tmp_path: Path) -> None:
    options = replace(SHORT, epochs=50, patience=1, learning_rate=0.05)
    whole = fit(prepared(), options=options)
    checkpoints = cut_fit(tmp_path / "run.checkpoint", at=len(whole.losses), every=0, options=options)
    taken: list[Progress] = []
    assert_same(fit(prepared(), options=options, checkpoints=checkpoints, on_step=taken.append), whole)
    assert taken == []


def test_the_time_of_a_fit_counts_what_was_before_the_cut(tmp_path: Path) -> None:
    checkpoints = cut_fit(tmp_path / "run.checkpoint", at=STEP_COUNT, every=1)
    before = fit(prepared(), options=SHORT, checkpoints=checkpoints).seconds
    assert before > 0
    assert fit(prepared(), options=SHORT, checkpoints=checkpoints).seconds == before


def test_a_checkpoint_is_of_one_fit(tmp_path: Path) -> None:
    checkpoints = cut_fit(tmp_path / "run.checkpoint", at=3, every=1)
    for changed, name in [
        (replace(SHORT, learning_rate=0.002), "learning_rate was 0.001 and is 0.002 now"),
        (replace(SHORT, seed=1), "seed was 0 and is 1 now"),
        (replace(SHORT, backbone=f"{__name__}:Other"), "backbone was 'training.backbones.din:DIN' and is"),
        (replace(SHORT, backbone_config={}), "backbone_config was"),
    ]:
        with pytest.raises(ArtifactError, match=name) as error:
            fit(prepared(), options=changed, checkpoints=checkpoints)
        assert "--overwrite" in error.value.message
        assert "\n" not in error.value.message


def test_a_checkpoint_is_of_one_set_of_samples(tmp_path: Path) -> None:
    checkpoints = cut_fit(tmp_path / "run.checkpoint", at=3, every=1)
    other = prepared()
    dense = other.users.dense.copy()
    dense[7, 0] += 1
    with pytest.raises(ArtifactError, match="is of another fit: inputs was"):
        fit(replace(other, users=replace(other.users, dense=dense)), options=SHORT, checkpoints=checkpoints)
    with pytest.raises(ArtifactError, match="is of another fit: inputs was"):
        split = replace(other.split, train=other.split.train[::-1].copy())
        fit(replace(other, split=split), options=SHORT, checkpoints=checkpoints)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-9],
        lambda content: b"torch" + content[5:],
        lambda content: content.replace(b'"format_version":"1"', b'"format_version":"7"'),
        lambda content: content.replace(b"best_logits", b"best_lagits"),
    ],
    ids=["empty", "cut", "another format", "another version", "without a part"],
)
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    checkpoints = cut_fit(tmp_path / "run.checkpoint", at=3, every=1)
    content = checkpoints.path.read_bytes()
    assert damage(content) != content
    checkpoints.path.write_bytes(damage(content))
    with pytest.raises(ArtifactError, match=r"Start anew with --overwrite\.$") as error:
        fit(prepared(), options=SHORT, checkpoints=checkpoints)
    assert "\n" not in error.value.message


def test_a_checkpoint_holds_no_pickle_and_nothing_else_is_beside_it(tmp_path: Path) -> None:
    checkpoints = cut_fit(tmp_path / "run.checkpoint", at=3, every=1)
    assert list(checkpoints.folder.iterdir()) == [checkpoints.path]
    content = checkpoints.path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert json.loads(header["__metadata__"]["step"]) == 3
    assert b"cpickle" not in content.lower()


def test_a_checkpoint_that_cannot_be_written_ends_the_fit_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "run.checkpoint").write_text("a file")
    with pytest.raises(ArtifactError, match="cannot be written"):
        fit(prepared(), options=SHORT, checkpoints=Checkpoints(folder=tmp_path / "run.checkpoint", every=1))


def test_without_a_checkpoint_a_resumed_fit_starts_at_its_first_step(tmp_path: Path) -> None:
    checkpoints = Checkpoints(folder=tmp_path / "run.checkpoint", resume=True)
    assert_same(fit(prepared(), options=SHORT, checkpoints=checkpoints), uninterrupted())
    assert not checkpoints.folder.exists()


def test_a_checkpoint_that_is_there_is_neither_used_nor_lost_unasked(tmp_path: Path) -> None:
    checkpoints = cut_fit(tmp_path / "run.checkpoint", at=3, every=1)
    with pytest.raises(ArtifactError, match="Go on with --resume, or start anew with --overwrite"):
        open_checkpoints(tmp_path / "run", every=1, resume=False, overwrite=False)
    both = open_checkpoints(tmp_path / "run", every=1, resume=True, overwrite=True)
    assert both.path == checkpoints.path
    assert both.path.exists()
    open_checkpoints(tmp_path / "run", every=1, resume=False, overwrite=True)
    assert not checkpoints.folder.exists()


def test_what_is_no_part_of_a_checkpoint_is_left_where_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "run.checkpoint"
    folder.mkdir()
    for name in (FILE, f".{FILE}.half", "note.txt"):
        (folder / name).write_text("")
    Checkpoints(folder=folder).remove()
    assert [path.name for path in folder.iterdir()] == ["note.txt"]
    (folder / "note.txt").unlink()
    Checkpoints(folder=folder).remove()
    assert not folder.exists()
    Checkpoints(folder=folder).remove()
