"""A feature repo without the stage `evidence`, one that gets it later, and one whose item vectors are made anew."""

import shutil
from pathlib import Path

import pytest
from deltalake import DeltaTable, write_deltalake
from feast import FeatureStore

from liber_feast.errors import ConfigError, EncoderError
from liber_feast.forget import forget
from liber_feast.reencode import encode_anew
from liber_feast.repo import repo_status
from liber_feast.republish import republish
from tests import feature_repo_kit as kit

SERVICES = """from feast import FeatureService

from views import behavior_sequence, item_attributes, user_profile

ctr_baseline = FeatureService(name="ctr_baseline", features=[user_profile, item_attributes, behavior_sequence])
"""
WITHOUT = tuple(view for view in kit.LIBER_VIEWS if view != "partition_evidence")


def quietly(_line: str) -> None:
    pass


def repo_without(target: Path, *, after: str = "item_text = ") -> Path:
    """Return a loaded repo whose views end before the definition `after`, with the PCA of texts of the others."""
    repo = kit.copy_feature_repo(target)
    views = (repo / "views.py").read_text(encoding="utf-8")
    (repo / "views.py").write_text(views[: views.index(after)], encoding="utf-8")
    (repo / "services.py").write_text(SERVICES, encoding="utf-8")
    kit.write_data_set(kit.small_data_set(), repo)
    kit.apply(repo)
    other = kit.materialized_repo(target.with_name("other"))
    shutil.copytree(other / "data" / "encoder", repo / "data" / "encoder")
    return repo


def materialize(repo: Path) -> None:
    store = kit.open_store(repo)
    store.materialize(kit.START, kit.END)
    kit.close(store)


def online(repo: Path, *views: str) -> dict[str, list[object]]:
    store = kit.open_store(repo)
    found = kit.online(store, kit.users_of(repo), *views)
    kit.close(store)
    return found


def test_a_repo_without_the_views_works_as_before_and_gets_evidence_when_they_are_applied(tmp_path: Path) -> None:
    whole, repo = kit.materialized_repo(tmp_path / "whole"), repo_without(tmp_path / "repo")
    materialize(repo)
    tables = kit.PUBLISHED_TABLES[:-1]
    assert {name: kit.published(repo, name) for name in tables} == {name: kit.published(whole, name) for name in tables}
    assert online(repo, *WITHOUT) == online(whole, *WITHOUT)
    assert not any((repo / "data" / name).exists() for name in ("item_text", "partition_evidence", "item_encoder"))
    assert (repo_status(repo)["item_vectors"], repo_status(repo)["evidence"]) == ({}, {})
    with pytest.raises(ConfigError, match="no view 'partition_evidence'"):
        republish(repo, stage="evidence", user_id=None, say=quietly)

    for name in ("views.py", "services.py"):
        shutil.copy(kit.FEATURE_REPO / name, repo / name)
    kit.apply(repo)
    materialize(repo)
    assert kit.published(repo, "partition_evidence") == kit.published(whole, "partition_evidence")
    for one in (kit.ITEM_VIEW,):
        assert kit.published(repo, one, key="item_id") == kit.published(whole, one, key="item_id")
    assert online(repo) == online(whole)
    assert list(repo_status(repo)["evidence"].values()) == [kit.SEALED_COUNT]


def test_one_of_the_two_views_alone_is_refused_in_one_line(tmp_path: Path) -> None:
    repo = repo_without(tmp_path / "repo", after="partition_evidence = ")
    with pytest.raises(
        ConfigError, match="'item_text' is in the registry .* and 'partition_evidence' is not"
    ) as caught:
        materialize(repo)
    assert "\n" not in caught.value.message


def test_another_width_is_refused_until_liber_encode_makes_item_vectors_and_evidence_anew(tmp_path: Path) -> None:
    repo = kit.materialized_repo(tmp_path / "repo")
    (before,) = repo_status(repo)["evidence"]
    kit.set_engine(repo, evidence={"width": 2})
    with pytest.raises(ConfigError, match=r"evidence.width 2, but .* was fitted for 'bundled', 'full' and 3"):
        materialize(repo)
    (repo / "data" / "item_encoder").rename(tmp_path / "away")
    with pytest.raises(EncoderError, match=f"by the PCA {before}, and .* has none"):
        materialize(repo)
    encode_anew(repo, say=quietly)
    ((after, count),) = repo_status(repo)["evidence"].items()
    assert (after != before, count) == (True, kit.SEALED_COUNT)
    shown = online(repo, "partition_evidence")
    assert set(shown["partition_evidence__encoder_version"]) == {after, None}
    assert {len(one) for one in shown["partition_evidence__memory_evidence"] if one} == {2}  # type: ignore[arg-type]
    store = kit.open_store(repo)
    rows = kit.published(repo, kit.ITEM_VIEW, key="item_id")
    items = kit.online_items(store, sorted({row["item_id"] for row in rows}))
    assert set(items["encoder_version"]) == {after}
    kit.close(store)


def test_other_texts_of_items_are_refused_until_liber_encode_makes_what_is_made_of_them_anew(
    tmp_path: Path,
) -> None:
    repo = kit.materialized_repo(tmp_path / "repo")
    (before,) = repo_status(repo)["evidence"]
    kit.set_engine(repo, evidence={"width": kit.WIDTH, "text": "categories"})
    with pytest.raises(ConfigError, match=r"evidence.text 'categories' .* was fitted for 'bundled', 'full' and 3"):
        materialize(repo)
    (repo / "data" / "item_encoder").rename(tmp_path / "away")
    encode_anew(repo, say=quietly)
    ((after, count),) = repo_status(repo)["evidence"].items()
    assert (after != before, count) == (True, kit.SEALED_COUNT)
    items = DeltaTable(repo / "data" / "items").to_pyarrow_table().to_pylist()
    described = {row["item_id"]: (*row["categories"], row["period"]) for row in items}
    vectors: dict[tuple[str, ...], set[tuple[float, ...]]] = {}
    for row in kit.published(repo, kit.ITEM_VIEW, key="item_id"):
        if row["encoder_version"] == after:
            vectors.setdefault(described[row["item_id"]], set()).add(tuple(row["vector"]))
    assert {len(some) for some in vectors.values()} == {1}  # items that differ by their titles alone are alike
    assert 1 < len(vectors) < len(items)
    materialize(repo)  # the same PCA, and nothing is left to be made
    assert repo_status(repo)["evidence"] == {after: count}


def test_an_item_that_comes_later_gets_its_vector_with_the_partition_that_has_it(tmp_path: Path) -> None:
    repo = kit.materialized_repo(tmp_path / "repo")
    table = DeltaTable(str(repo / "data" / "items")).to_pyarrow_table()
    new = table.slice(0, 1).set_column(0, "item_id", [["new"]]) if table.column_names[0] == "item_id" else None
    assert new is not None
    titled = new.set_column(new.column_names.index("title"), "title", [["A Film Nobody Saw"]])
    write_deltalake(str(repo / "data" / "items"), titled.cast(table.schema), mode="append")
    store = kit.open_store(repo)
    assert kit.online_items(store, ["new"])["vector"] == [None]
    push_three(store, "new")
    assert len(kit.online_items(store, ["new"])["vector"][0]) == kit.WIDTH
    newest = kit.online(store, ["u0005"], "partition_evidence")
    assert newest["partition_evidence__memory_behavior_count"] == [kit.SIZE]
    kit.close(store)


def push_three(store: FeatureStore, item: str) -> None:
    """Push what fills the cache of the user who has no partition."""
    for day in (2, 3, 4):
        store.push("behavior_push", kit.behavior("u0005", item, at=kit.END.replace(day=day)))


def test_a_forgotten_user_has_no_evidence_anywhere_and_items_stay(tmp_path: Path) -> None:
    repo = kit.materialized_repo(tmp_path / "repo")
    items = kit.published(repo, kit.ITEM_VIEW, key="item_id")
    facts = forget(repo, "u0001", keep_log=True, say=quietly)
    assert (facts["evidence"] > 0, facts["rows"]["partition_evidence"] > 0) == (True, True)
    assert {row["user_id"] for row in kit.published(repo, "partition_evidence")} == {"u0002", "u0003", "u0004"}
    store = kit.open_store(repo)
    assert kit.online(store, ["u0001"], "partition_evidence")["partition_evidence__evidence"] == [None]
    assert all(kit.online_items(store, [row["item_id"] for row in items])["vector"])
    kit.close(store)
    assert kit.published(repo, kit.ITEM_VIEW, key="item_id") == items
