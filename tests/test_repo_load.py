"""`liber load` and `liber status` on a feature repo: nothing is mixed, nothing is made by looking."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from liber_feast import cli
from liber_feast.behavior import RATING, RatingScale
from liber_feast.datasets import describe
from liber_feast.errors import ConfigError, DataSetError, StoreNotReady
from liber_feast.repo import load_data_set, open_store, repo_status, unfit_keys
from tests import feature_repo_kit as kit

OTHER = {"users": 3, "behaviors": 30}
EVIDENCE = {"width": kit.WIDTH, "text": "categories"}
"""What fits the synthetic data."""


def engine_keys(repo: Path, **keys: Any) -> None:
    """Replace top-level keys of feature_store.yaml; `engine` those of the engine block."""
    path = repo / "feature_store.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["batch_engine"] |= keys.pop("engine", {})
    path.write_text(yaml.safe_dump(content | keys, sort_keys=False), encoding="utf-8")


def load(repo: Path, *, move_aside: bool = True, **size: int) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    facts = load_data_set("synthetic", repo=repo, say=said.append, move_aside=move_aside, **(size or OTHER))
    return facts, said


def test_another_data_set_is_moved_aside_and_said_so(tmp_path: Path) -> None:
    repo = kit.materialized_repo(tmp_path / "repo")
    before = repo_status(repo)["behaviors"]
    _, (moved, warned) = load(repo)
    (aside,) = repo.glob("data-synthetic-*")
    assert moved == f"Moved {repo / 'data'} to {aside}."
    assert "set `evidence: {text: categories}`" in warned  # the kit has the other texts
    assert {path.name for path in (repo / "data").iterdir()} == {"behaviors", "items", "users", "dataset.json"}
    aside.rename(tmp_path / "kept")
    (repo / "data").rename(tmp_path / "new")
    (tmp_path / "kept").rename(repo / "data")
    assert repo_status(repo)["behaviors"] == before


@pytest.mark.parametrize("key", ["batch_engine.memory", "registry", "online_store"])
def test_features_outside_the_data_folder_are_not_left_behind(tmp_path: Path, key: str) -> None:
    repo = kit.materialized_repo(tmp_path / "repo")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    name = {"batch_engine.memory": "memory.db", "registry": "registry.db", "online_store": "online.db"}[key]
    (repo / "data" / name).rename(elsewhere / name)
    place = str(elsewhere / name)
    changes = {
        "batch_engine.memory": {"engine": {"memory": f"sqlite:///{place}"}},
        "registry": {"registry": place},
        "online_store": {"online_store": {"type": "sqlite", "path": place}},
    }
    engine_keys(repo, **changes[key])
    before = sorted(path.name for path in (repo / "data").iterdir())
    with pytest.raises(ConfigError, match=f"^{key} lies outside") as caught:
        load(repo)
    assert "\n" not in caught.value.message
    assert sorted(path.name for path in (repo / "data").iterdir()) == before
    assert not list(repo.glob("data-*"))


def test_one_edited_rating_makes_another_data_set(tmp_path: Path) -> None:
    data_set = kit.small_data_set()
    ratings = data_set.behaviors[RATING].to_pylist()
    ratings[5] = 1.0 if ratings[5] != 1.0 else 2.0
    place = data_set.behaviors.column_names.index(RATING)
    edited = replace(data_set, behaviors=data_set.behaviors.set_column(place, RATING, pa.array(ratings)))
    was, now = describe(data_set), describe(edited)
    assert {name for name in was if was[name] != now[name]} == {"fingerprint"}
    cut = replace(data_set, behaviors=pa.concat_tables([data_set.behaviors[:7], data_set.behaviors[7:]]))
    assert describe(cut) == was  # how the table is chunked is no matter


def test_the_same_data_set_is_loaded_again_and_another_is_refused(tmp_path: Path) -> None:
    repo = kit.copy_feature_repo(tmp_path / "repo", evidence=EVIDENCE)
    load(repo, users=5, behaviors=80)
    store = kit.apply(repo)
    store.materialize(kit.START, kit.END)
    kit.close(store)
    assert load(repo, move_aside=False, users=5, behaviors=80)[1] == []
    engine_keys(repo, engine={"evidence": {**EVIDENCE, "text": "full"}})
    assert load(repo, move_aside=False, users=5, behaviors=80)[1] == []  # to tell of it now would be too late
    with pytest.raises(DataSetError, match="--move-aside"):
        load(repo, move_aside=False)


def test_a_data_set_that_the_engine_block_does_not_fit_is_named_with_the_line_to_change(tmp_path: Path) -> None:
    block = open_store(kit.copy_feature_repo(tmp_path / "repo", evidence=EVIDENCE)).config.batch_engine
    fitting = kit.small_data_set()
    assert unfit_keys(fitting, block=block) == []
    products = {"prompt": "amazon_products", "item_text": "full"}
    prompt, scale, text = unfit_keys(
        replace(fitting, scale=RatingScale(low=0, high=10, like_above=6), **products), block=block
    )
    assert prompt.startswith("set `interest: {prompt: amazon_products}`")
    assert scale.startswith("set `behavior: {scale: [0, 10], like_above: 6}`")
    assert text.startswith("set `evidence: {text: full}` before the first `feast materialize`; titles say more")
    own = block.model_copy(update={"interest": block.interest.model_copy(update={"prompt": "mine.toml"})})
    assert unfit_keys(replace(fitting, prompt="music"), block=own) == []
    assert unfit_keys(replace(fitting, item_text="full"), block=block.model_copy(update={"evidence": None})) == []
    assert unfit_keys(replace(fitting, item_text="full"), block=block, is_fitted=True) == []


def test_the_command_warns_on_stderr_and_keeps_stdout_for_the_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interest = {"backend": "extractive", "prompt": "music"}
    repo = kit.copy_feature_repo(tmp_path / "repo", interest=interest, evidence=EVIDENCE)
    arguments = ["liber", "load", "synthetic", "--users", "3", "--behaviors", "30", "--repo", str(repo), "--json"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    shown = capsys.readouterr()
    assert json.loads(shown.out)["prompt_in_use"] == "music"
    (line,) = shown.err.splitlines()
    assert line.startswith(f"Warning: {repo / 'feature_store.yaml'}: set `interest: {{prompt: movielens}}`")


def test_looking_makes_nothing(tmp_path: Path) -> None:
    repo = kit.copy_feature_repo(tmp_path / "repo")
    with pytest.raises(StoreNotReady, match="was never applied"):
        repo_status(repo)
    assert not (repo / "data").exists()
    load(repo)
    kit.apply(repo)
    before = sorted((repo / "data").iterdir())
    with pytest.raises(StoreNotReady, match="no memory yet"):
        repo_status(repo)
    load(repo)
    assert sorted((repo / "data").iterdir()) == before


def test_the_versions_in_use_stand_beside_those_of_all_that_is_kept(tmp_path: Path) -> None:
    repo = kit.materialized_repo(tmp_path / "repo")
    facts = repo_status(repo)
    assert facts["in_use"]["fusion_version"] == "mean"
    for name in ("prompt_version", "model", "encoder_version"):
        assert list(facts[f"{name}s"]) == [facts["in_use"][name]]
    engine_keys(repo, engine={"interest": {"backend": "extractive", "prompt": "music"}})
    changed = repo_status(repo)
    assert changed["in_use"]["prompt_version"] not in changed["prompt_versions"]


@pytest.mark.parametrize("content", ["project: [\n", "project: not-valid!\nprovider: local\nregistry: r.db\n"])
def test_a_configuration_that_cannot_be_used_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "feature_store.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"feature_store\.yaml") as caught:
        open_store(tmp_path)
    assert "\n" not in caught.value.message
