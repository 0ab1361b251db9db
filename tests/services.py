"""Real services for tests: PostgreSQL as it runs here, and servers of a test's own that may be stopped.

A test module takes a fixture by naming it: `memory_url = services.memory_url`.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa

POSTGRES = os.environ.get("LIBER_TEST_POSTGRES", "postgresql+psycopg://postgres@127.0.0.1:5432/test")
"""A database in which tests may make schemas."""
IS_ROOT = os.name == "posix" and os.geteuid() == 0
SERVER_USER = "postgres"
"""Who runs a server of a test's own where the tests run as root, which PostgreSQL refuses."""


@pytest.fixture(params=["sqlite", "postgresql"])
def memory_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty memory: a file, and a schema of its own that is dropped afterwards."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'memory.db'}"
    else:
        with postgres_schema() as url:
            yield url


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """The URL of an empty schema of PostgreSQL, dropped afterwards."""
    with postgres_schema() as url:
        yield url


@contextmanager
def postgres_schema() -> Iterator[str]:
    """The URL of an empty schema, dropped at the end; where there is no server, the test is skipped."""
    server = sa.create_engine(POSTGRES, connect_args={"connect_timeout": 5, "options": "-clock_timeout=20s"})
    name = f"liber_test_{uuid.uuid4().hex}"
    try:
        with server.begin() as connection:
            connection.execute(sa.schema.CreateSchema(name))
    except sa.exc.OperationalError:
        pytest.skip("no PostgreSQL answers here; LIBER_TEST_POSTGRES can name one")
    try:
        yield sa.make_url(POSTGRES).update_query_dict({"options": f"-csearch_path={name}"}).render_as_string(False)
    finally:
        with server.begin() as connection:
            connection.execute(sa.schema.DropSchema(name, cascade=True))
        server.dispose()


@dataclass(kw_only=True)
class PostgresCluster:
    """A PostgreSQL server of a test's own, which the test may stop and start."""

    folder: Path
    port: int

    @property
    def url(self) -> str:
        """The URL of its one database."""
        return f"postgresql+psycopg://{SERVER_USER}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start the server, and return when it answers."""
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run("start", "-w", "-l", str(self.folder / "log"), "-o", options)

    def stop(self) -> None:
        """Stop the server at once: sessions end where they are, and it recovers at the next start."""
        self._run("stop", "-w", "-m", "immediate")

    def make(self) -> None:
        """Make the files of an empty server."""
        command = ["-D", str(self.folder / "data"), "-A", "trust", "-U", SERVER_USER, "--no-sync", "-E", "UTF8"]
        _run([program("initdb"), *command], cwd=self.folder)

    def _run(self, action: str, *options: str) -> None:
        _run([program("pg_ctl"), action, "-D", str(self.folder / "data"), *options], cwd=self.folder)


@contextmanager
def cluster_folder() -> Iterator[Path]:
    """An empty folder that the user of a server of a test's own can reach, as tmp_path is not."""
    folder = Path(tempfile.mkdtemp(prefix="liber_postgres_"))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_cluster(folder: Path) -> Iterator[PostgresCluster]:
    """A PostgreSQL server in an empty folder; where none can run, the test is skipped."""
    if program("initdb") is None or program("pg_ctl") is None:
        pytest.skip("initdb and pg_ctl of PostgreSQL are not on the PATH")
    cluster = PostgresCluster(folder=folder, port=free_port())
    try:
        if IS_ROOT:
            shutil.chown(folder, SERVER_USER)
        cluster.make()
        cluster.start()
    except (OSError, LookupError, subprocess.SubprocessError) as error:
        pytest.skip(f"a PostgreSQL server of the test's own does not start here: {type(error).__name__}")
    try:
        yield cluster
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            cluster.stop()


@pytest.fixture
def postgres_cluster() -> Iterator[PostgresCluster]:
    """A running PostgreSQL server of the test's own."""
    with cluster_folder() as folder, running_cluster(folder) as cluster:
        yield cluster


@dataclass(kw_only=True)
class RedisServer:
    """A Redis of a test's own, which the test may stop and start; it keeps what it was given."""

    folder: Path
    port: int
    _running: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server, and return when it answers."""
        options = {"port": self.port, "dir": self.folder, "save": "", "appendonly": "yes", "appendfsync": "always"}
        command = [program("redis-server"), "--bind", "127.0.0.1"]
        command += [one for name, value in options.items() for one in (f"--{name}", str(value))]
        with (self.folder / "log").open("ab") as log:
            self._running = subprocess.Popen([str(one) for one in command], stdout=log, stderr=subprocess.STDOUT)
        client, deadline = redis.Redis(port=self.port, socket_connect_timeout=1), time.monotonic() + 20
        while True:
            try:
                client.ping()
                client.close()
                return
            except redis.RedisError:
                assert self._running.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def stop(self) -> None:
        """End the server at once."""
        if self._running is not None:
            self._running.kill()  # which ends one that hangs, too
            self._running.wait(10)
            self._running = None

    def hang(self, *, is_hanging: bool) -> None:
        """Let the server answer nobody, though connections are open, or again."""
        assert self._running is not None
        self._running.send_signal(signal.SIGSTOP if is_hanging else signal.SIGCONT)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A running Redis of the test's own."""
    if program("redis-server") is None:
        pytest.skip("redis-server is not on the PATH")
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder=folder, port=free_port())
    server.start()
    yield server
    server.stop()


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def program(name: str) -> str | None:
    """Return the path of a program of PostgreSQL or Redis, or None where it is not installed."""
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(installed[-1]) if installed else None)


def _run(command: list[str | None], *, cwd: Path) -> None:
    subprocess.run(
        [str(part) for part in command],
        check=True,
        cwd=cwd,
        timeout=60,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        user=SERVER_USER if IS_ROOT else None,
    )
