"""The whole plugin with PostgreSQL as the online store, whose server ends connections when it restarts."""

from pathlib import Path

import psycopg
import pytest

from tests import feature_repo_kit as kit
from tests.form_parts import Form
from tests.online_parts import POSTGRES, postgres_block


def test_features_are_read_again_once_the_server_is_back(tmp_path: Path) -> None:
    with postgres_block(tmp_path) as block:
        form = Form(memory="sqlite:///data/memory.db", online=block, project="read_again")
        repo = form.bring_to(kit.repo_to_push_to(tmp_path / "repo", on_the_fly="worker"))
        store = kit.open_store(repo)
        store.push("behavior_push", kit.behavior("u0005", "i0001", at=kit.START))
        features = ["behavior_sequence:item_ids"]
        for _ in range(2):
            found = store.get_online_features(features, [{"user_id": "u0005"}]).to_dict()
            assert found["item_ids"] == [["i0001"]]
            connection = store._get_provider().online_store._conn  # type: ignore[attr-defined]
            with psycopg.connect(POSTGRES.replace("+psycopg", "")) as other:
                other.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.info.backend_pid])
        with pytest.raises(Exception, match="no_such"):  # another error is raised as it is
            store.get_online_features(["behavior_sequence:no_such"], [{"user_id": "u0005"}])
        kit.close(store)
