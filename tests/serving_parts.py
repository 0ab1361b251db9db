"""A small feature store and small runs that fit it, for the tests of serving."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import torch
from deltalake import write_deltalake
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.data_format import DeltaFormat
from feast.types import Array, Float32, Float64, Int64, String

from liber_feast.artifact import RunFacts, build_backbone, load_artifact, write_artifact
from liber_feast.service_schema import Schema, schema_hash
from serving.limits import Limits
from training.fit_inputs import InputOptions, fit_inputs

PATIENT = Limits(request_timeout_s=60, store_timeout_s=30)
"""For tests of what is answered, not when: the machine may be busy."""
NOW = datetime(2024, 5, 1, tzinfo=UTC)
SQLITE: Mapping[str, Any] = {"type": "sqlite", "path": "data/online.db"}
VERSION, OTHER_VERSION = "attention-00000001", "attention-00000002"
WIDTH, FUSED_WIDTH, ITEM_WIDTH = 6, 4, 3
ITEM_ENCODER, OTHER_ENCODER = "items-1", "items-2"
DIN = "training.backbones.din:DIN"
UNICODE_USER, UNICODE_ITEM = "пользователь 💿", "película/№ 7"

KNOWN_ITEMS: dict[str, dict[str, Any]] = {
    name: {
        "title": f"Title of {name}",
        "categories": ["Drama", "War"] if index % 2 else ["Comedy"],
        "period": "1990s" if index % 3 else None,
    }
    for index, name in enumerate([*(f"i{number}" for number in range(12)), UNICODE_ITEM])
}
NEW_ITEM = "loaded after the fit"
ONLINE_ITEMS = {**KNOWN_ITEMS, NEW_ITEM: {"title": None, "categories": ["War"], "period": "1990s"}}
ITEM_NAMES = ("title", "categories", "period")


@dataclass(frozen=True, kw_only=True)
class StoredUser:
    """What the online store holds of one user; None where it has no row."""

    age_group: str | None = None
    has_profile: bool = True
    item_ids: Sequence[str] | None = None
    vectors: Sequence[Sequence[float]] = field(default_factory=tuple)
    fusion_version: str = VERSION
    evidence: Sequence[float] | None = None
    item_encoder: str = ITEM_ENCODER


USERS: Mapping[str, StoredUser] = {
    "u1": StoredUser(
        age_group="18-24",
        item_ids=["i1", "i2", NEW_ITEM, "i3"],
        vectors=[[0.5] * WIDTH, [-1.0, 2.0] * 3],
        evidence=[0.2, -0.1, 0.3],
    ),
    UNICODE_USER: StoredUser(age_group="25-34", item_ids=[UNICODE_ITEM] * 3, vectors=[[2.0, 0.0, 1.0] * 2]),
    "not sealed": StoredUser(age_group="25-34", item_ids=["i4"]),
    "pushed": StoredUser(has_profile=False, item_ids=["i4", "i5"]),
    "of other weights": StoredUser(
        age_group="18-24",
        item_ids=["i1"],
        vectors=[[3.0] * WIDTH],
        fusion_version=OTHER_VERSION,
        evidence=[3.0, 3.0, -3.0],
        item_encoder=OTHER_ENCODER,
    ),
}


def ratings_of(user: StoredUser) -> list[float]:
    return [4.5 if index % 2 else 2.0 for index, _ in enumerate(user.item_ids or ())]


def make_run(
    folder: Path,
    *,
    features: str = "liber",
    fusion_version: str = VERSION,
    item_encoder: str = ITEM_ENCODER,
    schema: Schema | None = None,
    seed: int = 7,
) -> Path:
    """Write a run folder: a DIN of seeded weights over inputs fitted on a few samples."""
    liber, evidence = "liber" in features, "evidence" in features
    known = [
        {"item_id": name, **values, **({"vector": item_vector(name)} if evidence else {})}
        for name, values in KNOWN_ITEMS.items()
    ]
    spec = fit_inputs(
        _samples(),
        user_columns=["profile", "age_group"],
        item_columns=list(ITEM_NAMES),
        catalog=pa.Table.from_pylist(known),
        options=InputOptions(
            sequence_length=3,
            memory_width=WIDTH if liber else 0,
            fused_width=FUSED_WIDTH if liber else 0,
            item_width=ITEM_WIDTH if evidence else 0,
            memory_evidence=evidence,
        ),
    )
    sizes = {"embedding_width": 4, "hidden": [8], "attention_hidden": [4]}
    torch.manual_seed(seed)
    model = build_backbone(DIN, shape=spec.shape, config=sizes)
    with torch.no_grad():
        for weights in model.parameters():
            weights.normal_(std=0.5)
    facts = RunFacts(
        backbone=DIN,
        backbone_config=sizes,
        features=features,
        feature_service="ctr_serving" if liber or evidence else "ctr_baseline",
        training_service="ctr_training" if liber or evidence else "ctr_baseline",
        encoder_version="encoder-1" if liber else None,
        fusion_version=fusion_version if liber else None,
        item_encoder_version=item_encoder if evidence else None,
        seed=seed,
        like_above=3.0,
        data_fingerprint="0" * 16,
        service_schema=schema,
        service_schema_hash=None if schema is None else schema_hash(schema),
    )
    folder.mkdir(parents=True)
    write_artifact(folder, facts=facts, spec=spec, model=model, metrics={})
    return folder


def make_store(repo: Path, *, run: Path, project: str = "small", online_store: Mapping[str, Any] = SQLITE) -> Path:
    """Apply a feature repo with the views of the design, and write users and items online.

    The fused vectors are those of `run`'s own fusion weights, also where a row claims another version.
    """
    write_configuration(repo, project=project, online_store=online_store)
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
    item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)
    views = [_view(name, item if name.startswith("item") else user, schema) for name, schema in SCHEMAS.items()]
    store = FeatureStore(repo_path=str(repo))
    store.apply(
        [
            user,
            item,
            *views,
            FeatureService(name="ctr_serving", features=views),
            FeatureService(name="ctr_baseline", features=views[:3]),
        ]
    )
    for view, rows in _online_rows(load_artifact(run).model).items():
        store.write_to_online_store(view, pd.DataFrame([{**row, "event_timestamp": NOW} for row in rows]))
    return repo


def write_configuration(repo: Path, *, project: str = "small", online_store: Mapping[str, Any] = SQLITE) -> Path:
    repo.mkdir(parents=True, exist_ok=True)
    (repo / "feature_store.yaml").write_text(
        f"project: {project}\nprovider: local\nregistry: data/registry.db\noffline_store: {{type: file}}\n"
        f"online_store: {json.dumps(dict(online_store))}\nentity_key_serialization_version: 3\n",
        encoding="utf-8",
    )
    return repo


def publish_fused(repo: Path, *, user_ids: Sequence[str]) -> None:
    """Write the table that the plugin publishes fused vectors to anew, as far as serving reads it."""
    write_deltalake(repo / "data" / "fused_vector", pa.table({"user_id": list(user_ids)}), mode="overwrite")


def training_rows(user_id: str, *, item_ids: Sequence[str]) -> pa.Table:
    """Return the samples that training would have seen now: a row per candidate, with the partition vectors."""
    user = USERS[user_id]
    row = {
        "user_id": user_id,
        "profile": "",
        "age_group": user.age_group,
        "item_ids": list(user.item_ids or ()),
        "ratings": ratings_of(user),
        "behavior_count": len(user.item_ids or ()),
        "vectors": [value for vector in user.vectors for value in vector],
        **evidence_row(user),
    }
    empty = dict.fromkeys(ITEM_NAMES)
    return pa.Table.from_pylist(
        [
            {
                **row,
                "item_id": name,
                **ONLINE_ITEMS.get(name, empty),
                "vector": item_vector(name) if name in ONLINE_ITEMS else None,
            }
            for name in item_ids
        ]
    )


def item_vector(name: str) -> list[float]:
    """Return the vector of an item's text."""
    return [len(name) / 10, hash_of(name) / 8 - 1, 0.5]


def hash_of(name: str) -> int:
    return sum(name.encode()) % 17


def evidence_row(user: StoredUser) -> dict[str, Any]:
    """Return the evidence of a user's memory, nulls without one."""
    there = user.evidence is not None
    return {
        "memory_evidence": user.evidence,
        "memory_like_rate": 0.75 if there else None,
        "memory_behavior_count": 40 if there else None,
    }


SCHEMAS: Mapping[str, list[Field]] = {
    "user_profile": [Field(name="profile", dtype=String), Field(name="age_group", dtype=String)],
    "item_attributes": [
        Field(name="title", dtype=String),
        Field(name="categories", dtype=Array(String)),
        Field(name="period", dtype=String),
    ],
    "behavior_sequence": [
        Field(name="item_ids", dtype=Array(String)),
        Field(name="ratings", dtype=Array(Float64)),
        Field(name="times", dtype=Array(Int64)),
        Field(name="behavior_count", dtype=Int64),
    ],
    "fused_vector": [
        Field(name="fused", dtype=Array(Float32)),
        Field(name="partition_count", dtype=Int64),
        Field(name="fusion_version", dtype=String),
    ],
    "item_text": [Field(name="vector", dtype=Array(Float32)), Field(name="encoder_version", dtype=String)],
    "partition_evidence": [
        Field(name="memory_evidence", dtype=Array(Float32)),
        Field(name="memory_like_rate", dtype=Float64),
        Field(name="memory_behavior_count", dtype=Int64),
        Field(name="encoder_version", dtype=String),
    ],
}


def _view(name: str, entity: Entity, schema: list[Field]) -> FeatureView:
    return FeatureView(
        name=name,
        entities=[entity],
        ttl=timedelta(0),
        schema=[Field(name=entity.join_key, dtype=String), *schema],
        source=FileSource(
            name=f"{name}_table",
            path=f"data/{name}",
            file_format=DeltaFormat(),
            timestamp_field="event_timestamp",
        ),
    )


def _online_rows(model: torch.nn.Module) -> dict[str, list[dict[str, Any]]]:
    users = USERS.items()
    return {
        "item_attributes": [{"item_id": name, **values} for name, values in ONLINE_ITEMS.items()],
        "user_profile": [
            {"user_id": name, "profile": "", "age_group": user.age_group} for name, user in users if user.has_profile
        ],
        "behavior_sequence": [
            {
                "user_id": name,
                "item_ids": list(user.item_ids),
                "ratings": ratings_of(user),
                "times": [int(NOW.timestamp()) * 1_000_000] * len(user.item_ids),
                "behavior_count": len(user.item_ids),
            }
            for name, user in users
            if user.item_ids
        ],
        "fused_vector": [
            {
                "user_id": name,
                "fused": _fuse(model, user.vectors),
                "partition_count": len(user.vectors),
                "fusion_version": user.fusion_version,
            }
            for name, user in users
            if user.vectors
        ],
        "item_text": [
            {"item_id": name, "vector": np.array(item_vector(name), np.float32), "encoder_version": ITEM_ENCODER}
            for name in ONLINE_ITEMS
        ],
        "partition_evidence": [
            {"user_id": name, **evidence_row(user), "encoder_version": user.item_encoder}
            for name, user in users
            if user.evidence is not None
        ],
    }


def _fuse(model: torch.nn.Module, vectors: Sequence[Sequence[float]]) -> npt.NDArray[np.float32]:
    fusion = getattr(model.inputs, "fusion", None)
    if fusion is None:
        return np.zeros(FUSED_WIDTH, np.float32)
    with torch.inference_mode():
        memory = torch.tensor([vectors], dtype=torch.float32)
        fused: npt.NDArray[np.float32] = fusion(memory, torch.ones(memory.shape[:2], dtype=torch.bool))[0].numpy()
        return fused


def _samples() -> pa.Table:
    rows = []
    for index, (name, values) in enumerate(list(KNOWN_ITEMS.items()) * 4):
        user = ("18-24", "25-34")[index % 2]
        rows.append(
            {
                "user_id": f"u{index % 2}",
                "profile": "",
                "age_group": user,
                "item_id": name,
                **values,
                "rating": float(index % 5 + 1),
                "item_ids": ["i1"] * (index % 3),
                "ratings": [4.0] * (index % 3),
                "behavior_count": index,
            }
        )
    return pa.Table.from_pylist(rows)
