"""`liber encode`, and a feature repo whose `data/encoder` is not the one that its vectors are made by."""

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from deltalake import DeltaTable

from liber_feast.cli import app
from liber_feast.errors import EncoderError
from liber_feast.forget import forget
from liber_feast.memory.store import FUSION_FOLDER
from liber_feast.reencode import encode_anew
from liber_feast.repo import repo_status
from liber_feast.republish import republish
from tests import feature_repo_kit as kit

NEW = kit.END - timedelta(days=1)


def quietly(_line: str) -> None:
    pass


def versions_in(repo: Path) -> set[str]:
    """Return by what the vectors of the newest version of the Delta table are made."""
    rows = DeltaTable(str(repo / "data" / "partition_vector")).to_pyarrow_table(columns=["encoder_version"])
    return set(rows["encoder_version"].to_pylist())


def online_versions(repo: Path) -> set[Any]:
    store = kit.open_store(repo)
    found = kit.online(store, kit.users_of(repo), "long_term_memory")["long_term_memory__encoder_version"]
    kit.close(store)
    return set(found) - {None}


def seal_one(repo: Path) -> None:
    """Push what fills the cache of the user who has no partition."""
    store = kit.open_store(repo)
    rows = [kit.behavior("u0005", f"i000{number}", at=NEW + timedelta(seconds=number)) for number in range(1, 4)]
    store.push("behavior_push", pd.concat(rows))
    kit.close(store)


def test_without_its_pca_pushes_are_taken_texts_are_kept_and_no_vector_is_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repo = kit.materialized_repo(tmp_path / "repo")
    (before,) = versions_in(repo)
    (repo / "data" / "encoder").rename(tmp_path / "away")
    seal_one(repo)
    assert "features are left to the next materialization: The vectors of the memory are made by" in caplog.text
    store = kit.open_store(repo)
    with pytest.raises(EncoderError, match=f"by the PCA {before}, and .* has none"):
        store.materialize(kit.START, kit.END)
    kit.close(store)
    facts = repo_status(repo)
    assert (facts["pending_partitions"], facts["waiting_users"]) == (0, 1)
    assert facts["in_use"]["encoder_version"] == f"{before}, and data/encoder has none"
    assert online_versions(repo) == {before}
    # What was made stays ours to write and to delete.
    assert republish(repo, stage="vector", user_id=None, say=quietly)["delta_rows"] == {"vector": kit.SEALED_COUNT}
    assert forget(repo, "u0001", keep_log=True, say=quietly)["rows"]["partition_vector"] > 0
    (tmp_path / "away").rename(repo / "data" / "encoder")
    store = kit.open_store(repo)
    store.materialize(kit.START, kit.END)
    kit.close(store)
    assert repo_status(repo)["waiting_users"] == 0
    assert online_versions(repo) == versions_in(repo) == {before}


def test_liber_encode_makes_every_vector_anew_and_none_of_before_is_online(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = kit.materialized_repo(tmp_path / "repo")
    (before,) = versions_in(repo)
    shutil.rmtree(repo / "data" / "encoder")
    app(["encode", "--repo", str(repo), "--json"], standalone_mode=False)
    assert f'"encoder_before": "{before}"' in capsys.readouterr().out
    after = repo_status(repo)["in_use"]["encoder_version"]
    # The same texts give the same PCA. One more text, and it is another one.
    assert after == before
    seal_one(repo)
    shutil.rmtree(repo / "data" / "encoder")
    done = encode_anew(repo, say=quietly)
    assert done["encoder"] != before
    assert done["rows"]["vector"] == done["rows"]["fused"] == kit.SEALED_COUNT + 1
    assert online_versions(repo) == {done["encoder"]}
    again = encode_anew(repo, say=quietly)
    assert (again["encoded_texts"], sum(again["rows"].values())) == (0, 0)


def test_weights_that_were_trained_on_the_vectors_of_before_are_put_out_of_use(tmp_path: Path) -> None:
    repo, said = kit.materialized_repo(tmp_path / "repo"), list[str]()
    (before,) = versions_in(repo)
    store = kit.open_store(repo)
    memory = store._get_provider().engine.job(store.registry).memory  # type: ignore[attr-defined]  # ours
    save_weights(repo / "data" / "fusion" / "trained", encoder_version=before)
    memory.keep_setting(FUSION_FOLDER, "data/fusion/trained")
    kit.close(store)
    seal_one(repo)
    shutil.rmtree(repo / "data" / "encoder")
    done = encode_anew(repo, say=said.append)
    assert done["encoder"] != before
    assert said == [
        "The fusion weights were trained on the vectors of before; the masked mean is used until `liber fuse`."
    ]
    assert repo_status(repo)["fusion_weights"] == "mean"


def save_weights(folder: Path, *, encoder_version: str) -> None:
    from liber_feast.fusion import AttentionFusion, save_fusion  # noqa: PLC0415  # torch

    save_fusion(AttentionFusion(width=2 * kit.WIDTH, fused_width=4), folder, encoder_version=encoder_version)
