import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from deltalake import DeltaTable, write_deltalake
from feast import FeatureService, FeatureStore, FeatureView

from liber_feast.artifact import Artifact, RunFacts, build_backbone, load_artifact
from liber_feast.errors import ArtifactError, ConfigError, LiberError, StoreNotReady
from liber_feast.fusion import load_fusion
from tests.feature_repo_kit import copy_feature_repo, loaded_repo, materialized_repo
from tests.test_training_fit import OPTIONS, SMALL, samples
from tests.training_parts import sample_table
from training import command
from training.artifact import export_run, replaced_folder
from training.backbones import backbone_reference
from training.data import load_samples
from training.fit import FittedRun, Prepared, Progress, fit, prepare
from training.options import read_config
from training.provenance import git_revision, versions
from training.run import FitBar

ROOT = Path(__file__).resolve().parents[1]
FILES = {
    "config.json",
    "curves.json",
    "curves.png",
    "inputs.json",
    "inputs.safetensors",
    "metrics.json",
    "model.safetensors",
}
SHORT = replace(OPTIONS, epochs=1)


pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def prepared() -> Prepared:
    return prepare(samples(), options=SHORT)


@cache
def fitted() -> FittedRun:
    return fit(prepared(), options=SHORT)


def exported(folder: Path, *, overwrite: bool = False) -> Artifact:
    export_run(fitted(), folder=folder, samples=samples(), options=SHORT, overwrite=overwrite)
    return load_artifact(folder)


def test_a_loaded_run_scores_as_the_fitted_one(tmp_path: Path) -> None:
    run = exported(tmp_path / "runs" / "din-liber")
    rows = np.arange(900, 1_000)
    with torch.inference_mode():
        expected = torch.sigmoid(fitted().model(prepared().load(torch.device("cpu")).batch(rows))).numpy()
    listed = sample_table().slice(900, 100)
    np.testing.assert_array_equal(run.score(run.spec.encode(listed)), expected)
    again = run.spec.encode(listed.append_column("fused", pa.array(fused_of(run, rows))))
    np.testing.assert_allclose(run.score(again), expected, atol=1e-5)


def fused_of(run: Artifact, rows: np.ndarray) -> list[list[float]]:
    """Return what the store would hold: each sample's vectors fused by the exported weights, without torch."""
    memory = samples().vectors
    assert memory is not None
    vectors, sealed = memory.pad(rows, width=None)
    fuser = load_fusion(run.folder / "fusion")
    return fuser.fuse([vector[there] for vector, there in zip(vectors, sealed, strict=True)]).tolist()


def test_a_run_says_what_it_was_made_of(tmp_path: Path) -> None:
    run = exported(tmp_path / "din-liber")
    assert run.facts == RunFacts(
        backbone="training.backbones.din:DIN",
        backbone_config={**asdict(fitted().model.config), "attention_hidden": [16], "hidden": [32, 16]},
        features="liber",
        feature_service="ctr_serving",
        training_service="ctr_training",
        encoder_version="encoder-1",
        fusion_version=load_fusion(run.folder / "fusion").version,
        item_encoder_version=None,
        seed=0,
        like_above=3.0,
        data_fingerprint=samples().fingerprint,
    )
    metrics = json.loads((run.folder / "metrics.json").read_text())
    assert metrics["auc"] == fitted().test.auc
    assert metrics["train_count"] == 800
    config = json.loads((run.folder / "config.json").read_text())
    assert config["git_revision"] == git_revision(Path.cwd())
    assert config["versions"] == versions()
    curves = json.loads((run.folder / "curves.json").read_text())
    assert curves["loss"] == fitted().losses.tolist()
    assert max(curves["validation_auc"]) == fitted().validation.auc


def test_a_fit_by_the_config_of_a_run_comes_to_the_same(tmp_path: Path) -> None:
    config = read_config(exported(tmp_path / "din-liber").folder / "config.json")
    assert config.features == "liber"
    assert config.options.to_json() == {
        **SHORT.to_json(),
        "backbone_config": json.loads(json.dumps(asdict(fitted().model.config))),
    }, "what was a default is written down as well"
    again = fit(prepare(samples(), options=config.options), options=config.options)
    np.testing.assert_array_equal(again.losses, fitted().losses)
    np.testing.assert_array_equal(again.test_logits, fitted().test_logits)


def test_a_run_whose_test_part_was_not_scored_has_no_figures_of_it(tmp_path: Path) -> None:
    untested = fit(prepared(), options=SHORT, with_test=False)
    metrics = export_run(untested, folder=tmp_path / "run", samples=samples(), options=SHORT)
    assert not {"auc", "log_loss"} & metrics.keys()
    assert metrics["validation_auc"] == fitted().validation.auc


def test_a_run_folder_holds_json_safetensors_and_a_picture_alone(tmp_path: Path) -> None:
    folder = exported(tmp_path / "din-liber").folder
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == FILES | {"fusion/fusion.json", "fusion/fusion.safetensors"}
    assert [path.name for path in tmp_path.iterdir()] == ["din-liber"]
    assert all(b"cpickle" not in path.read_bytes().lower() for path in folder.rglob("*") if path.is_file())
    assert all(path.read_bytes()[:2] != b"\x80\x04" for path in folder.rglob("*") if path.is_file())


def test_a_baseline_run_has_no_fusion(tmp_path: Path) -> None:
    found = samples("baseline")
    run = fit(prepare(found, options=SHORT), options=SHORT)
    export_run(run, folder=tmp_path / "base", samples=found, options=SHORT)
    loaded = load_artifact(tmp_path / "base")
    assert {path.name for path in loaded.folder.iterdir()} == FILES
    assert (loaded.feature_service, loaded.fusion_version) == ("ctr_baseline", None)


def test_a_run_that_exists_is_kept_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    folder = exported(tmp_path / "run").folder
    (folder / "curves.png").write_bytes(b"old")
    with pytest.raises(ArtifactError, match="--overwrite"):
        exported(folder)
    assert (folder / "curves.png").read_bytes() == b"old"
    exported(folder, overwrite=True)
    assert (folder / "curves.png").read_bytes() != b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_no_run_wrote_is_never_replaced(tmp_path: Path) -> None:
    folder = exported(tmp_path / "run").folder
    (folder / "note.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"holds 'note.txt', which no run wrote. Name another one with --run"):
        exported(folder, overwrite=True)
    assert (folder / "note.txt").read_text() == "mine"
    assert {path.name for path in folder.iterdir()} == FILES | {"fusion", "note.txt"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("config", [None, '{"model_type": "bert"}', "[]", "no JSON"])
def test_a_model_of_others_is_no_run_whatever_its_files_are_called(tmp_path: Path, config: str | None) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"theirs")
    if config is not None:
        (tmp_path / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(ArtifactError, match="holds no run that `fit` wrote"):
        exported(tmp_path, overwrite=True)
    assert (tmp_path / "model.safetensors").read_bytes() == b"theirs"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_write_that_breaks_off_leaves_what_was_there(tmp_path: Path, overwrite: bool) -> None:
    folder = tmp_path / "run"
    if overwrite:
        exported(folder)
    before = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(OSError, match="disk full"), replaced_folder(folder, overwrite=overwrite) as whole:
        (whole / "config.json").write_text("half")
        raise OSError("disk full")
    assert {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"] * overwrite


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        exported(tmp_path / "file" / "run")


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def changed(name: str, **values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        document = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(document | values))

    return change


def flip(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 1
        (folder / name).write_bytes(content)

    return change


def garble(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("config.json"), "no complete training run"),
        (without("model.safetensors"), "no complete training run"),
        (flip("model.safetensors"), "model.safetensors was altered"),
        (flip("inputs.safetensors"), "inputs.safetensors was altered"),
        (changed("inputs.json", like_above=1.0), "inputs.json was altered"),
        (garble, "is no JSON"),
        (changed("config.json", format_version=1), "format version 4"),
        (changed("config.json", backbone_config=SMALL | {"hidden": [5]}), "cannot be used"),
        (changed("config.json", backbone_config={"depth": 3}), "its config does not fit"),
        (changed("config.json", backbone="training.backbones.din:DON"), "cannot be imported"),
    ],
)
def test_a_damaged_run_is_refused_in_one_line(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    folder = exported(tmp_path / "run").folder
    damage(folder)
    with pytest.raises(ArtifactError, match=message) as error:
        load_artifact(folder)
    assert "\n" not in error.value.message


def test_an_unknown_backbone_is_refused_with_those_known() -> None:
    with pytest.raises(
        ConfigError, match="'dinn' is unknown. Known: dcn, deepfm, xdeepfm, autoint, fibinet, din, dien, sim, eta;"
    ):
        backbone_reference("dinn")


@pytest.mark.parametrize("reference", ["no.such:DIN", "training.backbones.din:DINConfig", "training.backbones.din:No"])
def test_a_class_that_is_no_backbone_is_refused(reference: str) -> None:
    assert backbone_reference(reference) == reference
    with pytest.raises(ConfigError, match=reference):
        build_backbone(reference, shape=prepared().spec.shape, config={})


# From here on with real feature repos.


def test_samples_are_all_behaviors_with_what_was_known_strictly_before(tmp_path: Path) -> None:
    found = load_samples(materialized_repo(tmp_path / "repo"), features="liber")
    rows = found.table.to_pylist()
    assert [row["event_timestamp"] for row in rows] == sorted(row["event_timestamp"] for row in rows)
    recent, counts = found.recent, found.vectors.lengths.tolist()
    items = recent.item_ids.to_pylist()
    for row, start, length, count in zip(rows, recent.starts, recent.lengths, counts, strict=True):
        before = [
            other["item_id"]
            for other in rows
            if other["user_id"] == row["user_id"] and other["event_timestamp"] < row["event_timestamp"]
        ]
        assert (row["behavior_count"] or 0) == len(before)
        assert items[start : start + length] == before[-6:]
        assert count <= len(before) // 4
    assert max(counts) == 3
    assert not {"item_ids", "vectors"} & set(found.table.column_names)
    assert found.user_columns
    assert {"title", "categories", "period"} <= set(found.item_columns)


def test_what_items_and_users_become_later_changes_no_input_of_a_sample(tmp_path: Path) -> None:
    repo = materialized_repo(tmp_path / "repo")
    before = prepare(load_samples(repo, features="liber"), options=OPTIONS)
    later = pa.scalar(datetime(2030, 1, 1, tzinfo=UTC), pa.timestamp("us", tz="UTC"))
    changes = {
        "categories": pa.scalar(["Later"], pa.list_(pa.string())),
        "period": pa.scalar("later"),
        "age_group": None,
    }
    for name in ("items", "users"):
        rows = DeltaTable(str(repo / "data" / name)).to_pyarrow_table()
        for column, value in {**changes, "event_timestamp": later}.items():
            if column in rows.column_names:
                kind = rows.schema.field(column).type
                values = pa.array([None if value is None else value.as_py()] * len(rows), kind)
                rows = rows.set_column(rows.column_names.index(column), rows.schema.field(column), values)
        write_deltalake(str(repo / "data" / name), rows, mode="append")
    after = prepare(load_samples(repo, features="liber"), options=OPTIONS)
    every = np.arange(len(before.labels))
    batches = [prepared.load(torch.device("cpu")).batch(every) for prepared in (before, after)]
    for name, tensor in batches[0].items():
        assert torch.equal(tensor, batches[1][name]), name
    assert len(after.spec.items.ids) == 2 * len(before.spec.items.ids)


def test_samples_with_and_without_liber_are_the_same_behaviors(tmp_path: Path) -> None:
    repo = materialized_repo(tmp_path / "repo")
    liber, baseline = load_samples(repo, features="liber"), load_samples(repo, features="baseline")
    assert liber.fingerprint == baseline.fingerprint
    assert liber.table.select(baseline.table.column_names).equals(baseline.table)


def never_applied(folder: Path) -> Path:
    return copy_feature_repo(folder)


def applied_without_data(folder: Path) -> Path:
    repo = loaded_repo(folder)
    shutil.rmtree(repo / "data" / "behaviors")
    return repo


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder, "there is no feature_store.yaml"),
        (never_applied, "was never applied"),
        (applied_without_data, "liber load"),
        (loaded_repo, "feast materialize"),
    ],
    ids=["no repo", "not applied", "not loaded", "not materialized"],
)
def test_a_store_that_lacks_a_step_names_it(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(StoreNotReady, match=message) as error:
        load_samples(make(tmp_path / "repo"), features="liber")
    assert "\n" not in error.value.message


def with_baseline(folder: Path, choose: Callable[[dict[str, FeatureView]], list[FeatureView]]) -> Path:
    """Return a loaded repo whose service `ctr_baseline` has the views that `choose` names."""
    repo = loaded_repo(folder)
    store = FeatureStore(repo_path=str(repo))
    views = {view.name: view for view in store.list_feature_views()}
    store.apply([FeatureService(name="ctr_baseline", features=choose(views))])
    return repo


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda views: [views["user_profile"]], "'ctr_baseline': none of its views is tagged liber.stage: sequence"),
        (
            lambda views: [views["user_profile"].with_name("who"), views["behavior_sequence"]],
            "view 'user_profile' has another name or key",
        ),
        (
            lambda views: [views["behavior_sequence"].with_join_key_map({"user_id": "who"})],
            "view 'behavior_sequence' has another name or key",
        ),
        (
            lambda views: [views["behavior_sequence"], views["partition_summary"]],
            "feature 'behavior_count' has the name of another column",
        ),
    ],
    ids=["no sequence", "an alias", "another key", "a name twice"],
)
def test_a_service_that_training_cannot_read_is_refused(
    tmp_path: Path, choose: Callable[[dict[str, FeatureView]], list[FeatureView]], message: str
) -> None:
    repo = with_baseline(tmp_path / "repo", choose)
    with pytest.raises(ConfigError, match=message):
        load_samples(repo, features="baseline")


def test_a_service_of_sequences_alone_gives_samples(tmp_path: Path) -> None:
    repo = with_baseline(tmp_path / "repo", lambda views: [views["behavior_sequence"]])
    found = load_samples(repo, features="baseline")
    assert (found.user_columns, found.item_columns) == ((), ())
    assert found.recent.lengths.max() == 6
    assert "behavior_count" in found.table.column_names


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str, command_name: str = "fit") -> int:
    """Run `python -m training fit` in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["training", command_name, *arguments])
    with pytest.raises(SystemExit) as ended:
        command.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("features", ["baseline", "liber"])
def test_the_command_fits_exports_and_ends_with_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, features: str
) -> None:
    materialized_repo(tmp_path / "feature_repo")
    monkeypatch.chdir(tmp_path)
    arguments = ["--features", features, "--epochs", "1", "--batch-size", "16"]
    assert run_command(monkeypatch, *arguments) == 0
    shown = capsys.readouterr()
    assert f", user id no field -> runs/din-{features}" in shown.out.splitlines()[-1]
    assert "20 recent behaviors are asked for; the store shows 6 (`sequence.length`)." in shown.err
    assert "fitting" in shown.err
    assert run_command(monkeypatch, *arguments, "--overwrite", "--json") == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    run = load_artifact(tmp_path / "runs" / f"din-{features}")
    assert figures["run"] == f"runs/din-{features}"
    assert figures["auc"] == json.loads((run.folder / "metrics.json").read_text())["auc"]
    assert run.spec.memory_width == (6 if features == "liber" else 0)


def test_a_search_is_followed_by_the_fit_of_its_best_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    materialized_repo(tmp_path / "feature_repo")
    monkeypatch.chdir(tmp_path)
    arguments = ["--epochs", "1", "--batch-size", "16", "--learning-rate", "0.01", "--learning-rate", "0.001"]
    assert run_command(monkeypatch, *arguments, command_name="search") == 0
    shown = capsys.readouterr()
    path = "runs/din-liber.search.json"
    assert f"fit by the best of 2: python -m training fit --config {path}" in shown.out.splitlines()[-1]
    assert len(shown.out.splitlines()) == 5, "a head, two points, the user id, what to do now"
    assert shown.out.splitlines()[-2] == "user id no field"
    assert "searching: best validation AUC" in shown.err
    assert run_command(monkeypatch, *arguments, command_name="search") == 1
    assert f"Error: {path} exists. Go on with --resume" in capsys.readouterr().err
    assert run_command(monkeypatch, *arguments, "--resume", "--json", command_name="search") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [fit["point"]["learning_rate"] for fit in found["fits"]] == [0.01, 0.001]
    assert run_command(monkeypatch, "--config", path, "--json") == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["validation_auc"] == found["best"]["validation_auc"]
    assert figures["validation_auc"] == max(fit["validation_auc"] for fit in found["fits"])
    assert not {"auc", "log_loss"} & found["best"].keys()


def test_a_run_goes_on_from_its_checkpoint_and_leaves_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    materialized_repo(tmp_path / "feature_repo")
    monkeypatch.chdir(tmp_path)
    arguments = ["--features", "baseline", "--batch-size", "16", "--epochs", "1", "--json"]
    assert run_command(monkeypatch, *arguments, "--run", "whole") == 0
    whole = json.loads(capsys.readouterr().out.splitlines()[-1])

    def cut(_: FitBar, progress: Progress) -> None:
        if progress.step == 2:
            raise LiberError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(FitBar, "step", cut)
        assert run_command(monkeypatch, *arguments, "--run", "cut", "--checkpoint-every", "1") == 1
    assert not (tmp_path / "cut").exists()
    assert run_command(monkeypatch, *arguments, "--run", "cut") == 1
    assert "Error: cut.checkpoint/state.safetensors exists: a fit of cut was cut off" in capsys.readouterr().err
    assert run_command(monkeypatch, *arguments, "--run", "cut", "--resume", "--seed", "1") == 1
    assert "seed was 0 and is 1 now" in capsys.readouterr().err.splitlines()[-1]
    assert run_command(monkeypatch, *arguments, "--run", "cut", "--resume") == 0
    resumed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (resumed["auc"], resumed["validation_auc"]) == (whole["auc"], whole["validation_auc"])
    assert not (tmp_path / "cut.checkpoint").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "no.json"], "Error: no.json cannot be read"),
        (["--backbone", "dinn"], "Error: backbone 'dinn' is unknown. Known: dcn"),
        (["--backbone", "json:loads"], "is no torch.nn.Module"),
        (["--repo", "nowhere"], "Error: nowhere: there is no feature_store.yaml"),
        (["--run", "."], "Error: . exists. Choose another --run"),
    ],
)
def test_the_command_refuses_bad_input_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(monkeypatch, *arguments) == 1
    shown = capsys.readouterr()
    assert message in shown.err.splitlines()[-1]
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == []


def test_the_module_is_a_command(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "training", "fit", "--features", "no such"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2
    assert "'no such' is not one of 'baseline', 'liber'" in found.stderr
