"""Errors of others, quoted as one line of ours."""

from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from liber_feast.errors import ConfigError, one_line
from liber_feast.offline_read import locate, open_snapshot
from tests.offline_repo import delta, open_store

FRAMES = "\n   0: <unknown>\n   1: <unknown>\n  12: start_thread\n             at ./nptl/pthread_create.c:442:8\n"


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("Kernel error: Json error: unexpected 'o'" + FRAMES, "Kernel error: Json error: unexpected 'o'"),
        ("not found\n\nBacktrace:\n   0: a::b\n             at ./c.rs:1\n   1: d::e\n", "not found"),
        ("refused.\nstack backtrace:" + FRAMES, "refused"),
        ("refused\n  \x1b[31m\u21b3\x1b[0m no route\x1b[1;33m!\x1b[0m\n", "refused \u21b3 no route!"),
        ("The file is corrupted.", "The file is corrupted"),
        ("waiting ...\n", "waiting"),
        ("found 2 of\n 0: a", "found 2 of 0: a"),
        ("at 12:30: 1.5 s", "at 12:30: 1.5 s"),
        ("", ""),
    ],
    ids=["frames", "named frames", "header", "colors", "dot", "dots", "a list of one", "numbers", "nothing"],
)
def test_a_quoted_error_is_a_line_without_frames_colors_and_a_last_dot(message: str, line: str) -> None:
    assert one_line(Exception(message)) == line


def test_a_damaged_delta_log_is_said_without_stack_frames(tmp_path: Path) -> None:
    write_deltalake(tmp_path / "ages", pa.table({"age": [1]}))
    next((tmp_path / "ages/_delta_log").glob("*.json")).write_text("not json")
    with pytest.raises(ConfigError, match=r"ages cannot be read: .*[a-z]\.$") as caught:
        open_snapshot(locate(delta("ages"), config=open_store(tmp_path).config))
    assert "unknown>" not in caught.value.message and "0: " not in caught.value.message
