"""What a job was made from: looks at it are seldom, and say what is not as it was."""

import os
from dataclasses import dataclass
from pathlib import Path

from liber_feast.origin import FileContent, Origin


@dataclass(kw_only=True)
class Counted:
    """A part with a state that a test sets, and the number of looks at it."""

    state: object = "as it was"
    looks: int = 0

    def __call__(self) -> object:
        self.looks += 1
        return self.state


@dataclass(kw_only=True)
class Clock:
    time: float = 0.0

    def __call__(self) -> float:
        return self.time


def test_what_changed_is_named_with_its_state_and_a_change_back_is_none() -> None:
    first, second, clock = Counted(), Counted(), Clock()
    origin = Origin(parts={"first": first, "second": second}, every_s=1.0, clock=clock)
    assert origin.changes() == {}
    second.state, clock.time = "another", 1.0
    assert origin.changes() == {"second": "another"}
    second.state, clock.time = "as it was", 2.0
    assert origin.changes() == {}


def test_looks_are_seldom() -> None:
    part, clock = Counted(), Clock()
    origin = Origin(parts={"part": part}, every_s=1.0, clock=clock)
    part.state = "another"
    for tenth in range(10):
        clock.time = tenth / 10
        assert origin.changes() == {}
    assert part.looks == 1
    clock.time = 1.0
    assert origin.changes() == origin.changes() == {"part": "another"}
    assert part.looks == 2


def test_nothing_changes_of_a_job_that_was_made_of_nothing() -> None:
    assert Origin(every_s=0.0).changes() == {}


def test_a_file_is_its_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = FileContent(path=path)
    assert content() is None
    path.write_text("one")
    first = content()
    path.write_text("two")
    os.utime(path, (1, 1))
    second = content()
    path.write_text("one")
    assert (content(), first != second) == (first, True)
    path.unlink()
    assert content() is None
