"""Programs of Feast's own that a user of the repo may run beside ours."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import feature_repo_kit as kit

FEAST = Path(sys.executable).with_name("feast")
PATHS = [str(kit.FEATURE_REPO.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS), "COLUMNS": "200"}
START_S = 90


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kit.materialized_repo(tmp_path_factory.mktemp("commands") / "repo")


def test_the_feature_views_are_listed(repo: Path) -> None:
    done = kit.feast(repo, "feature-views", "list")
    assert done.exit_code == 0, done.stderr
    views = {line.split()[0] for line in done.stdout.splitlines()[1:] if line.strip()}
    assert views >= {*kit.LIBER_VIEWS, "behaviors", "user_profile", "item_attributes"}


def test_online_features_are_shown(repo: Path) -> None:
    asked = ["-e", "user_id=u0001", "-f", "partition_summary:summary", "-f", "long_term_memory:partition_count"]
    done = kit.feast(repo, "get-online-features", *asked)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["user_id"] == ["u0001"]
    assert found["summary"][0].startswith("The user rated 4 films")
    assert found["partition_count"] == [kit.WINDOW]


def test_the_user_interface_knows_the_views(repo: Path) -> None:
    pytest.importorskip("grpc", reason="`feast ui` needs the extra feast[grpcio]")
    with user_interface(repo) as url:
        page = ask(f"{url}/p/liber")
        assert b"<html" in page
        projects = json.loads(ask(f"{url}/projects-list.json"))["projects"]
        assert [project["id"] for project in projects] == ["liber"]
        listed = json.loads(ask(f"{url}/api/v1/feature_views?project=liber"))
        names = {view["spec"]["name"] for view in listed["featureViews"]}
        assert names >= {"partition_summary", "fused_vector"}


@contextmanager
def user_interface(repo: Path) -> Iterator[str]:
    """Run `feast ui` on a free port and yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [FEAST, "ui", "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, cwd=repo, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as ui:
        try:
            until = time.monotonic() + START_S
            while True:
                assert ui.poll() is None
                assert time.monotonic() < until
                try:
                    ask(f"http://127.0.0.1:{port}/projects-list.json")
                    break
                except OSError:
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            ui.terminate()


def ask(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as reply:
        return bytes(reply.read())
