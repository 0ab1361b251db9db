"""Feature repos and runs to serve, made by the project's own commands, and servers of them."""

import json
import random
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import redis
import yaml  # type: ignore[import-untyped]
from deltalake import DeltaTable

from liber_feast.behavior import ITEM, USER
from liber_feast.datasets.writer import DESCRIPTION
from liber_feast.errors import LiberError
from liber_feast.quickstart import Steps, free_port, liber_command, script_of, stop, wait_until_healthy
from tests.online_parts import REDIS, forget_redis

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Served:
    """A run over the feature repo whose fused vectors are its own."""

    repo: Path
    run: Path


def make_served(folder: Path, *, data: str, users: int, behaviors: int) -> dict[str, Served]:
    """Load, materialize and fit: return what is served for each feature set, all over SQLite."""
    repo, steps = folder / "feature_repo", Steps()
    shutil.copytree(ROOT / "feature_repo", repo, ignore=shutil.ignore_patterns("data", "data-*", "__pycache__"))
    sizes = ["--users", str(users), "--behaviors", str(behaviors)] if data == "synthetic" else []
    steps.run("load", [*liber_command(), "load", data, *sizes, "--repo", str(repo), "--json"])
    feast(steps, repo, "apply")
    materialize(steps, repo)
    runs = {name: folder / "runs" / name for name in ("baseline", "liber", "liber+evidence")}
    for name, run in runs.items():
        fit = [sys.executable, "-m", "training", "fit", "--backbone", "din", "--features", name, "--epochs", "1"]
        steps.run(f"fit {name}", [*fit, "--repo", str(repo), "--run", str(run), "--json"])
    other = folder / "with_evidence"
    shutil.copytree(repo, other)
    for name, fused in (("liber", repo), ("liber+evidence", other)):
        steps.run(f"fuse {name}", [*liber_command(), "fuse", str(runs[name]), "--repo", str(fused), "--json"])
    return {
        "baseline": Served(repo=repo, run=runs["baseline"]),
        "liber": Served(repo=repo, run=runs["liber"]),
        "liber+evidence": Served(repo=other, run=runs["liber+evidence"]),
    }


def feast(steps: Steps, repo: Path, *arguments: str) -> None:
    """Run a command of Feast's in a repo."""
    steps.run(arguments[0], [script_of("feast"), *arguments], cwd=repo, is_json=False)


def materialize(steps: Steps, repo: Path) -> None:
    """Materialize all that was loaded."""
    window = json.loads((repo / "data" / DESCRIPTION).read_text(encoding="utf-8"))
    feast(steps, repo, "materialize", window["start"], window["end"])


@contextmanager
def on_redis(served: Served, *, folder: Path) -> Iterator[Served | None]:
    """Yield the same over Redis, in keys that are deleted afterwards; None where no Redis answers."""
    host, _, port = REDIS.partition(":")
    client, project = redis.Redis(host, int(port), socket_connect_timeout=1), f"liber_{uuid.uuid4().hex[:12]}"
    try:
        client.ping()
    except redis.RedisError as error:
        print(f"Redis at {REDIS} does not answer, its figures are null: {error}", file=sys.stderr, flush=True)
        yield None
        return
    repo, steps = folder / "on_redis", Steps()
    shutil.copytree(served.repo, repo)
    path = repo / "feature_store.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config |= {"project": project, "online_store": {"type": "redis", "connection_string": REDIS}}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    (repo / "data" / "registry.db").unlink()
    try:
        feast(steps, repo, "apply")
        materialize(steps, repo)
        steps.run("republish", [*liber_command(), "republish", "--repo", str(repo), "--json"])
        yield Served(repo=repo, run=served.run)
    finally:
        forget_redis(project)


def questions(repo: Path, *, count: int, items: int) -> list[str]:
    """Return bodies of `count` questions about users with sealed partitions, each with other items."""
    users, known = _users_and_items(repo)
    dice = random.Random(0)
    return [
        json.dumps({"user_id": users[place % len(users)], "item_ids": dice.sample(known, min(items, len(known)))})
        for place in range(count)
    ]


def _users_and_items(repo: Path) -> tuple[list[str], list[str]]:
    users = DeltaTable(repo / "data" / "fused_vector").to_pyarrow_table(columns=[USER])
    items = DeltaTable(repo / "data" / "items").to_pyarrow_table(columns=[ITEM])
    return pc.unique(users[USER]).sort().to_pylist(), pc.unique(items[ITEM]).sort().to_pylist()


class Server:
    """`python -m serving` of a run, as a process of its own."""

    def __init__(self, served: Served) -> None:
        """Start it, and wait until it answers."""
        self.port = free_port()
        command = [sys.executable, "-m", "serving", "--repo", str(served.repo), "--model", str(served.run)]
        command += ["--port", str(self.port)]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            wait_until_healthy(self._process, port=self.port, command=" ".join(command))
        except LiberError:
            self.close()
            raise

    @property
    def resident_kib(self) -> int:
        """The memory that the process has, in KiB."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))

    def close(self) -> None:
        """End the process."""
        stop(self._process)


@contextmanager
def serving(served: Sequence[Served]) -> Iterator[list[Server]]:
    """Serve some runs at once."""
    opened: list[Server] = []
    try:
        for one in served:
            opened.append(Server(one))
        yield opened
    finally:
        for server in opened:
            server.close()
