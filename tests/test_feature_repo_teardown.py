"""`feast teardown`: the memory and Delta stay, and one materialization brings the online store back."""

from pathlib import Path

from tests import feature_repo_kit as kit


def test_after_a_teardown_one_materialization_serves_what_was_served_and_appends_nothing(tmp_path: Path) -> None:
    repo = kit.materialized_repo(tmp_path / "repo")
    store = kit.open_store(repo)
    items = sorted({row["item_id"] for row in kit.published(repo, kit.ITEM_VIEW, key="item_id")})
    before, versions = kit.online(store, kit.users_of(repo)), kit.delta_versions(repo)
    vectors = kit.online_items(store, items)
    store.teardown()
    kit.close(store)
    kit.apply(repo)
    store = kit.open_store(repo)
    assert kit.online(store, kit.users_of(repo)) != before
    store.materialize(kit.START, kit.END)
    assert kit.online(store, kit.users_of(repo)) == before
    assert kit.online_items(store, items) == vectors
    assert kit.delta_versions(repo) == versions
    kit.close(store)


def test_a_teardown_before_the_first_materialization_makes_no_memory(tmp_path: Path) -> None:
    repo = kit.loaded_repo(tmp_path / "repo")
    kit.open_store(repo).teardown()
    assert not (repo / "data" / "memory.db").exists()
