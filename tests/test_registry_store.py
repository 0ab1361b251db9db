"""Feast's registry: parsed once for as long as it says the same, and never older than its file."""

from pathlib import Path

import pytest
from feast import FeatureStore
from feast.infra.registry.file import FileRegistryStore
from feast.repo_config import RegistryConfig

from liber_feast.registry_store import KeptRegistryStore
from tests import feature_repo_kit as kit


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kit.loaded_repo(tmp_path_factory.mktemp("registry") / "repo")


def registry_of(repo: Path) -> KeptRegistryStore:
    return KeptRegistryStore(RegistryConfig(path="data/registry.db"), repo)


def test_what_a_file_says_is_one_object_until_it_says_something_else(repo: Path) -> None:
    store, another = registry_of(repo), registry_of(repo)
    first = store.get_registry_proto()
    assert store.get_registry_proto() is first
    assert first == FileRegistryStore(RegistryConfig(path="data/registry.db"), repo).get_registry_proto()
    changed = another.get_registry_proto()
    changed.feature_services[0].spec.description = "another"
    another.update_registry_proto(changed)
    assert first != changed
    assert store.get_registry_proto() == changed


def test_what_was_changed_and_not_written_is_not_what_the_file_says(repo: Path) -> None:
    store = registry_of(repo)
    changed = store.get_registry_proto()
    before = changed.SerializeToString(deterministic=True)
    changed.feature_services[0].spec.description = "never written"
    assert store.get_registry_proto().SerializeToString(deterministic=True) == before


def test_a_registry_that_is_not_there_is_refused_as_feast_does(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="feast apply"):
        registry_of(tmp_path).get_registry_proto()


def views_of(store: FeatureStore) -> list[int]:
    return [id(view) for view in store.registry.list_feature_views(store.project, allow_cache=True)]


def test_a_push_makes_no_feature_view_again_and_sees_one_that_was_applied_meanwhile(repo: Path, tmp_path: Path) -> None:
    other = kit.loaded_repo(tmp_path / "repo")
    store = kit.open_store(other)
    store.push("behavior_push", kit.frame(kit.log_of(other).slice(0, 3)))
    before = views_of(store)
    store.push("behavior_push", kit.frame(kit.log_of(other).slice(3, 3)))
    assert views_of(store) == before
    applied = kit.open_store(other)
    view = applied.get_feature_view("user_profile")
    view.description = "another"
    applied.apply([view])
    store.push("behavior_push", kit.frame(kit.log_of(other).slice(6, 3)))
    assert store.get_feature_view("user_profile", allow_registry_cache=True).description == "another"
    kit.close(store)
