import subprocess
from pathlib import Path

import pytest
import torch

from training.provenance import git_revision, versions

WHO = ("-c", "user.name=Who", "-c", "user.email=who@example.com")


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *WHO, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_revision_is_the_commit_and_says_whether_files_were_changed(tmp_path: Path) -> None:
    assert git_revision(tmp_path) is None, "there is no repository"
    git(tmp_path, "init", "--quiet")
    assert git_revision(tmp_path) is None, "there is no commit"
    (tmp_path / "net.py").write_text("one")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "notes.txt").write_text("not tracked")
    (tmp_path / "folder").mkdir()
    assert git_revision(tmp_path / "folder") == commit
    git(tmp_path, "tag", "v1")
    assert git_revision(tmp_path) == commit
    (tmp_path / "net.py").write_text("two")
    assert git_revision(tmp_path) == f"{commit}-dirty"


def test_without_git_there_is_no_revision_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "--quiet")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_revision(tmp_path) is None
    assert git_revision(tmp_path / "nowhere") is None


def test_versions_name_what_figures_depend_on() -> None:
    assert versions()["torch"].startswith(torch.__version__.partition("+")[0])
    assert {"python", "numpy", "feast"} <= versions().keys()
