"""Fits in other processes: a search's come to the same, and one that was killed goes on where it was."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.test_training_checkpoint import SHORT, assert_same, prepared, uninterrupted
from tests.test_training_search import POINTS, figures, outcomes
from tests.test_training_search import SHORT as SEARCH
from tests.test_training_search import prepared as search_samples
from training.checkpoint import Checkpoints
from training.fit import Progress, fit
from training.search import search

FIT = """
import sys
from pathlib import Path
from tests.test_training_processes import slow_fit
slow_fit(Path(sys.argv[1]))
"""
STEP_S = 0.05


pytestmark = pytest.mark.usefixtures("one_thread")


def slow_fit(folder: Path) -> None:
    """Fit with a checkpoint after each step, slowly enough to be killed between."""

    def wait(_: Progress) -> None:
        time.sleep(STEP_S)

    fit(prepared(), options=SHORT, checkpoints=Checkpoints(folder=folder, every=1), on_step=wait)


@pytest.mark.parametrize("after_s", [0.0, 2.6 * STEP_S])
def test_a_killed_fit_goes_on_and_comes_to_the_same(tmp_path: Path, after_s: float) -> None:
    checkpoints = Checkpoints(folder=tmp_path / "run.checkpoint", resume=True)
    with subprocess.Popen([sys.executable, "-c", FIT, str(checkpoints.folder)]) as process:
        while not checkpoints.path.exists():
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(after_s)
        process.kill()
        assert process.wait() == -9
    taken: list[Progress] = []
    resumed = fit(prepared(), options=SHORT, checkpoints=checkpoints, on_step=taken.append)
    assert 0 < len(taken) < len(uninterrupted().losses)
    assert_same(resumed, uninterrupted())
    checkpoints.remove()
    assert list(tmp_path.iterdir()) == [], "nor is a file left that was being written"


def test_the_fits_of_a_search_come_to_the_same_in_other_processes() -> None:
    seen: list[int] = []
    found = search(
        search_samples(),
        options=SEARCH,
        points=POINTS[:3],
        jobs=2,
        on_outcome=lambda so_far: seen.append(len(so_far)),
    )
    assert figures(found) == figures(outcomes()[:3])
    assert seen == [1, 2, 3]
