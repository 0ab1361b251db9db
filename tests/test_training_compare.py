import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from liber_feast.errors import ArtifactError, ConfigError, DataSetError, LiberError
from tests import test_training_evidence as parts
from tests.backbone_parts import SMALL as OF_BACKBONES
from tests.test_training_fit import SMALL
from training import compare_command
from training.compare import REPO_IN_FOLDER, check_same, clear, held_facts, plain
from training.comparison import Comparison, Fits, Fitted, Task, claim_folder, read_fitted, run_fits
from training.comparison_figures import Table
from training.comparison_report import TABLE, markdown, variants, write_report
from training.data import Features, Samples
from training.data_repo import LOCK
from training.knowledge import Knowledge, cut_times, plan_knowledge
from training.options import FitOptions
from training.protocol import FINAL, HISTORY_GROUPS

OPTIONS = FitOptions(batch_size=64, epochs=1, fused_width=4, device="cpu")
SIM = OF_BACKBONES["sim"]
SMALL_DCN = {"embedding_width": 4, "hidden": (8,)}
CHOSEN = Comparison(
    backbones=("din", "dcn"),
    features=("baseline", "evidence"),
    seeds=2,
    folds=2,
    options=OPTIONS,
    configs={"din": SMALL, "dcn": SMALL_DCN},
)
STORE = {
    "partition": {"condition": "count", "size": 20},
    "interest": {"backend": "extractive", "form": "plain"},
    "item_text": "categories",
}
HELD: dict[str, Any] = {"data": "small", "store": STORE, "history": "mean"}


def samples(features: tuple[Features, ...] = ("baseline", "evidence")) -> Mapping[Features, Samples]:
    return {name: parts.samples(name) for name in features}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("comparison")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[Task, Fitted]:
    return run_fits(fits_in(folder), processes=1)


def fits_in(folder: Path, chosen: Comparison = CHOSEN) -> Fits:
    return Fits(chosen, samples=samples(), folder=folder)


@pytest.fixture(scope="module")
def table(folder: Path, found: dict[Task, Fitted]) -> Table:
    return Table(fits_in(folder), found=found)


def document(table: Table) -> dict[str, Any]:
    facts = held_facts(table, fits=Fits(CHOSEN, samples=samples(), folder=Path()), **HELD)
    return dict(plain({"backbones": table.to_json(), "held": facts}))


def test_every_backbone_is_fitted_on_every_feature_set_block_and_seed(found: dict[Task, Fitted]) -> None:
    assert len(found) == 2 * 2 * 3 * 2
    assert {task.block for task in found} == {"fold 1", "fold 2", FINAL}
    sizes = {task.block: len(one.logits) for task, one in found.items()}
    assert sizes == {"fold 1": 100, "fold 2": 100, FINAL: 100}


def test_fits_that_are_kept_are_not_made_again(folder: Path, found: dict[Task, Fitted]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder / "fits").iterdir()}
    again = run_fits(fits_in(folder), processes=1)
    assert {path: path.stat().st_mtime_ns for path in (folder / "fits").iterdir()} == before
    assert len(before) == len(found)
    for task, one in found.items():
        np.testing.assert_array_equal(again[task].logits, one.logits)
        assert again[task].facts == one.facts


def test_another_option_config_or_seed_is_another_fit(folder: Path, found: dict[Task, Fitted]) -> None:
    task = Task(features="evidence", block=FINAL, backbone="dcn", seed=0)
    for chosen in (
        replace(CHOSEN, options=replace(OPTIONS, learning_rate=0.01)),
        replace(CHOSEN, configs={**CHOSEN.configs, "dcn": {**SMALL_DCN, "cross_layers": 2}}),
    ):
        other = fits_in(folder, chosen)(task)
        assert not np.array_equal(other.logits, found[task].logits)
    assert not np.array_equal(found[replace(task, seed=1)].logits, found[task].logits)


def test_a_kept_fit_that_cannot_be_read_is_made_again(tmp_path: Path, found: dict[Task, Fitted]) -> None:
    task = Task(features="baseline", block="fold 1", backbone="dcn", seed=0)
    fits = fits_in(tmp_path)
    fits(task)
    (path,) = (tmp_path / "fits").iterdir()
    path.write_bytes(path.read_bytes()[:50])
    assert read_fitted(path) is None
    np.testing.assert_array_equal(fits(task).logits, found[task].logits)
    assert read_fitted(path) is not None


@pytest.mark.slow
def test_several_processes_give_the_same_fits(tmp_path: Path, found: dict[Task, Fitted]) -> None:
    chosen = replace(CHOSEN, backbones=("dcn",), features=("baseline", "evidence"), folds=1)
    again = run_fits(fits_in(tmp_path, chosen), processes=2)
    final = [task for task in again if task.block == FINAL]
    assert final
    for task in final:
        np.testing.assert_array_equal(again[task].logits, found[task].logits)


def test_figures_are_means_over_paired_seeds(table: Table, found: dict[Task, Fitted]) -> None:
    row = table.to_json()["dcn"]
    labels = samples()["baseline"].labels[-100:]
    aucs = {
        name: [
            roc_auc_score(labels, found[Task(features=name, block=FINAL, backbone="dcn", seed=seed)].logits)
            for seed in range(2)
        ]
        for name in CHOSEN.features
    }
    assert row["base_auc"] == pytest.approx(np.mean(aucs["baseline"]))
    assert row["evidence"]["auc"] == pytest.approx(np.mean(aucs["evidence"]))
    assert row["evidence"]["auc_gain"] == pytest.approx(np.mean(aucs["evidence"]) - np.mean(aucs["baseline"]))
    assert row["evidence"]["relative_improvement"] == pytest.approx(row["evidence"]["auc_gain"] / row["base_auc"])


def test_a_backbone_has_the_figures_that_are_promised(table: Table) -> None:
    rows = document(table)["backbones"]
    assert set(rows) == {"din", "dcn"}
    for row in rows.values():
        assert {"base_auc", "base_log_loss", "evidence"} <= set(row)
        assert {"auc", "log_loss", "auc_gain", "user_bootstrap_p", "folds_auc_gain", "folds_p_value"} <= set(
            row["evidence"]
        )
        assert row["evidence"]["folds_auc_gain"] == pytest.approx(np.mean(row["evidence"]["folds_auc_gain_by_fold"]))
        for name in ("t_test_p", "user_bootstrap_p", "folds_p_value", "folds_user_bootstrap_p"):
            assert 0 <= row["evidence"][name] <= 1
        assert set(row["evidence"]["folds_auc_gain_by_history"]) == set(HISTORY_GROUPS)
    json.dumps(rows, allow_nan=False)


def test_a_report_says_in_every_table_what_held(table: Table, tmp_path: Path) -> None:
    found = document(table)
    write_report(tmp_path, document=found)
    text = (tmp_path / TABLE).read_text(encoding="utf-8")
    assert text == markdown(found)
    sections = text.split("## ")[1:]
    assert len(sections) == 4
    for section in sections:
        assert (
            "partitions by condition count, size 20, their texts extractive, plain, texts of items categories;"
            in section
        )
        assert "user id no field; last 20 behaviors, compared with the candidate" in section
        assert "backbones without a sequence see them as: mean" in section
        assert "evidence" in section
    assert json.loads((tmp_path / "comparison.json").read_text()) == found
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert list(variants(found["backbones"]["din"])) == ["evidence"]


def test_a_backbone_that_searches_and_the_texts_of_kar_stand_in_the_same_table(tmp_path: Path) -> None:
    base = samples(("baseline",))["baseline"]
    plan = plan_knowledge(
        base.table, cuts=cut_times(base.times), like_above=base.like_above, item_columns=base.item_columns
    )
    vectors = np.random.default_rng(3).normal(size=(len(plan.requests), 5)).astype(np.float32)
    known = replace(base, knowledge=Knowledge(plan=plan, vectors=vectors, encoder="drawn"), encoder_version="drawn")
    chosen = replace(
        CHOSEN,
        backbones=("din", "sim"),
        features=("baseline", "kar"),
        folds=1,
        configs={"din": SMALL, "sim": {**SIM, "window": 5}},
    )
    fits = Fits(chosen, samples={"baseline": base, "kar": known}, folder=tmp_path)
    lengths = {task.backbone: fits.options(task).sequence_length for task in fits.tasks()}
    assert lengths == {"din": 20, "sim": 300}
    table = Table(fits, found=run_fits(fits, processes=1))
    facts = held_facts(table, fits=fits, **HELD)
    text = markdown(dict(plain({"backbones": table.to_json(), "held": facts})))
    assert "last 20 behaviors (sim: the last 300), compared with the candidate" in text
    assert list(variants(table.to_json()["sim"])) == ["kar"]


def test_a_folder_serves_one_comparison_and_more_seeds_and_backbones_of_it(tmp_path: Path) -> None:
    base = samples()["baseline"]
    claim_folder(tmp_path / "out", identity=CHOSEN.identity(base))
    more = replace(CHOSEN, seeds=5, backbones=("dcn", "dien"), features=("baseline", "liber"))
    claim_folder(tmp_path / "out", identity=more.identity(base))
    for other in (replace(CHOSEN, folds=3), replace(CHOSEN, options=replace(OPTIONS, user_id=True))):
        with pytest.raises(ArtifactError, match="is of another fit: (folds|user_id) was"):
            claim_folder(tmp_path / "out", identity=other.identity(base))


def test_a_file_in_the_place_of_the_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ArtifactError, match="Name another"):
        claim_folder(tmp_path / "out", identity=CHOSEN.identity(samples()["baseline"]))


def test_only_a_folder_of_a_comparison_is_cleared(tmp_path: Path) -> None:
    claim_folder(tmp_path / "out", identity=CHOSEN.identity(samples()["baseline"]))
    (tmp_path / "out" / (REPO_IN_FOLDER + LOCK)).write_text("")
    clear(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(ArtifactError, match=r"thesis.tex.*which no comparison wrote"):
        clear(tmp_path / "out")
    own = tmp_path / "project" / "feature_repo"
    own.mkdir(parents=True)
    with pytest.raises(ArtifactError, match="feature_repo is of no comparison"):
        clear(tmp_path / "project")
    assert own.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbones": ("dinn",)}, "'dinn' is unknown"),
        ({"features": ("baseline", "magic")}, "features 'magic' are unknown. Known: baseline, liber, evidence"),
        ({"features": ("evidence",)}, "the first are baseline"),
        ({"folds": 8}, "8 folds: there can be 1 to 7"),
        ({"seeds": 1}, "--seeds 1: a paired t-test needs 2 seeds or more"),
    ],
    ids=["backbone", "features", "no baseline", "folds", "one seed"],
)
def test_what_cannot_be_compared_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(CHOSEN, **changes)


def test_behaviors_that_came_meanwhile_are_noticed() -> None:
    other = replace(samples()["evidence"], table=samples()["evidence"].table.slice(1))
    with pytest.raises(LiberError, match="changed while evidence features were read"):
        check_same({"baseline": samples()["baseline"], "evidence": other})


def test_options_take_names_with_commas_or_one_by_one() -> None:
    assert compare_command.split(["din, dcn", "dien"]) == ["din", "dcn", "dien"]
    assert compare_command.split(None) == []


def test_a_backbone_gets_the_flags_that_its_config_has() -> None:
    options = FitOptions(backbone_config={"attention_hidden": [16]})
    config = {"options": options, "history": "none", "width": 16}
    assert compare_command.config_of("din", **config) == {"attention_hidden": [16], "embedding_width": 16}
    assert compare_command.config_of("dcn", **config) == {"history": "none", "embedding_width": 16}


def test_features_that_are_unknown_are_refused_with_those_known() -> None:
    with pytest.raises(ConfigError, match=r"features 'magic' are unknown. Known: baseline, liber, evidence"):
        compare_command.feature("magic")


def test_a_block_of_one_class_is_refused_before_any_fit(tmp_path: Path) -> None:
    liked = {name: replace(one, like_above=0.0) for name, one in samples().items()}
    with pytest.raises(DataSetError, match="the train part of fold 1 has one class only"):
        Fits(CHOSEN, samples=liked, folder=tmp_path)


def test_while_something_is_chosen_the_final_block_is_neither_fitted_nor_shown(
    tmp_path: Path, found: dict[Task, Fitted], table: Table
) -> None:
    chosen = replace(CHOSEN, with_final=False)
    fits = fits_in(tmp_path, chosen)
    assert {task.block for task in fits.tasks()} == {"fold 1", "fold 2"}
    alone = Table(fits, found={task: one for task, one in found.items() if task.block != FINAL})
    facts = held_facts(alone, fits=fits, **HELD)
    folded = dict(plain({"backbones": alone.to_json(), "held": facts}))
    whole = document(table)["backbones"]["din"]
    row = folded["backbones"]["din"]
    assert row == {name: whole[name] for name in row if name != "evidence"} | {
        "evidence": {name: whole["evidence"][name] for name in row["evidence"]}
    }
    assert all(name.startswith("folds_") for name in row["evidence"])
    write_report(tmp_path, document=folded)
    text = (tmp_path / TABLE).read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Rolling folds",
        "## By history length",
    ]
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_a_gain_is_bold_where_every_test_confirms_it(table: Table) -> None:
    found = document(table)
    evidence = found["backbones"]["din"]["evidence"]
    evidence |= {"folds_auc_gain": 0.005, "folds_p_value": 0.009, "folds_user_bootstrap_p": 0.002}
    assert "| **+0.0050** |" in markdown(found)
    for doubt in ({"folds_p_value": 0.011}, {"folds_user_bootstrap_p": 0.2}, {"folds_auc_gain": -0.005}):
        found["backbones"]["din"]["evidence"] = {**evidence, **doubt}
        assert "**+0.0050**" not in markdown(found)
        assert "**-0.0050**" not in markdown(found)
    assert "Bold: gained, and both p below 0.01." in markdown(found)


def test_a_length_that_was_chosen_holds_for_those_that_search_too() -> None:
    chosen = replace(CHOSEN, backbones=("din", "sim"), configs={})
    assert chosen.options_of("sim").sequence_length == 300
    same = replace(chosen, sequence_length=20)
    assert [same.options_of(name).sequence_length for name in same.backbones] == [20, 20]


def test_a_table_says_how_many_behaviors_the_store_showed(tmp_path: Path) -> None:
    chosen = replace(CHOSEN, backbones=("din", "sim"))
    kept = {name: replace(one, stored_length=50) for name, one in samples().items()}
    fits = Fits(chosen, samples=kept, folder=tmp_path)
    table = Table(fits, found={})
    facts = held_facts(table, fits=fits, **HELD)
    assert (facts["sequence_length"], facts["longer_histories"]) == (20, {"sim": 50})


def test_a_table_says_which_match_and_configs_were_fitted(table: Table) -> None:
    text = markdown(document(table))
    assert "its partitions count in its match by: mean;" in text
    assert "2 seeds, paired; at most 1 epochs; din with" in text
    assert "; dcn with embedding_width 4, hidden [8]" in text
