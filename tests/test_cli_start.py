"""How the programs start."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHECKED = """
    from feast import Field
    from feast.types import String
    print(Field(name=5, dtype=String).name)
"""


@pytest.mark.parametrize(
    "start",
    [
        "sys.argv = ['liber', 'status', '--repo', 'nowhere']; from liber_feast.cli import main; main()",
        "from serving.__main__ import main; main(['--model', 'nowhere'])",
    ],
    ids=["liber", "serving"],
)
def test_a_program_of_ours_leaves_the_type_checks_of_feast_out(start: str) -> None:
    script = f"import sys\ntry:\n    {start}\nexcept SystemExit:{CHECKED}"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "5\n", done.stderr[-2000:]
    assert done.stderr.startswith("Error: ")
