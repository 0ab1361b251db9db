"""The README's commands, in its order, on a small repo: only sizes and the port are others."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMALLER = {
    "liber load synthetic": "liber load synthetic --users 20 --behaviors 1500",
    "training fit": "training fit --epochs 2",
}


def steps() -> str:
    """Return the shell blocks of the README's five steps."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    part = text.split("## The five steps")[1].split("\n## ")[0]
    return "\n".join(re.findall(r"```sh\n(.*?)```", part, flags=re.DOTALL))


def environment(folder: Path) -> dict[str, str]:
    """Return an environment in which the commands are those of this Python and of this working tree."""
    folder.mkdir()
    programs = {
        "python": f'exec "{sys.executable}" "$@"',
        "feast": f'exec "{Path(sys.executable).with_name("feast")}" "$@"',
        "liber": f'exec "{sys.executable}" -m liber_feast.cli "$@"',
    }
    for name, line in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def test_the_five_steps_run_as_they_stand_and_again(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("data", "data-*", "__pycache__")
    shutil.copytree(ROOT / "feature_repo", tmp_path / "feature_repo", ignore=ignored)
    script = steps()
    for old, new in SMALLER.items():
        assert old in script
        script = script.replace(old, new)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        script = script.replace("8080", str(probe.getsockname()[1]))
    before_serving, serving = script.split("python -m serving")
    served = f"trap 'kill $!' EXIT\npython -m serving{serving}"
    twice = (
        "python -m training fit --epochs 1 --backbone din --features liber+evidence --overwrite"  # the folder exists
    )
    script = f"{before_serving}\n{twice}\nliber fuse runs/din-liber+evidence\n{served}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env=environment(tmp_path / "bin"),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    reply = json.loads(done.stdout.splitlines()[-1])
    assert reply["user_id"] == "u0001"
    assert [one["item_id"] for one in reply["scores"]] == ["i0001", "i0002"]
    assert all(0 < one["score"] < 1 for one in reply["scores"])
    assert reply["missing"]["interests"] is False
    assert reply["missing"]["fusion_version_mismatch"] is None
    for name in ("in use", "sealed partitions", "fusion attention-"):
        assert name in done.stdout
