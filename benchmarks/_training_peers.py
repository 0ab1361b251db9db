"""The peers of our backbones: models of fuxictr over the same fields, with its own data loaders and training step.

DIN and DIEN are those of its package (`model_zoo.LongCTR`). Its plain models stand in its repository only, so DCN,
DeepFM, xDeepFM, AutoInt and FiBiNET are put together here from its package's layers as its repository does it.

Shape suffixes: Q samples, N behaviors, T code slots.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks._training_features import Columns, flat_columns, item_columns, user_columns
from tests.peers import peer
from training.fit import Prepared

WIDTH, HIDDEN, DROPOUT = 32, [200, 80], 0.3
BATCH_SIZE = 512
LABEL = "label"
SEQUENTIAL = {"din": "DIN", "dien": "DIEN"}
FUXICTR, LONG = "fuxictr.pytorch", "model_zoo.LongCTR"


class Peer:
    """A model of fuxictr and the loader of its training samples."""

    def __init__(self, model: Any, *, loader: Any) -> None:
        self.model, self.loader = model, loader
        # What its `fit` sets before the first epoch; no look at a validation part falls into an epoch.
        model._max_gradient_norm, model._total_steps, model._stop_training = 10.0, 0, False
        model._eval_steps = 1 << 60

    def train_epoch(self) -> None:
        """Take the steps of an epoch."""
        self.model.train_epoch(self.loader)


def make_peer(name: str, prepared: Prepared, *, folder: Path, batch_size: int = BATCH_SIZE, gpu: int = -1) -> Peer:
    """Return the peer of a backbone over the training part of `prepared`, which is written into `folder`."""
    make = _sequential if name in SEQUENTIAL else _plain
    model, loader = make(name, prepared, folder, batch_size, gpu)
    return Peer(model, loader=loader)


def _plain(name: str, prepared: Prepared, folder: Path, batch_size: int, gpu: int) -> tuple[Any, Any]:
    columns = flat_columns(prepared, train=prepared.split.train)
    features = _feature_map(columns)
    np.savez(folder / "train.npz", **columns.values, **{LABEL: prepared.labels[prepared.split.train].astype(float)})
    loader = peer(f"{FUXICTR}.dataloaders.npz_dataloader").NpzDataLoader(
        features, str(folder / "train.npz"), batch_size=batch_size, shuffle=True, num_workers=0
    )
    return _assembled(name, features, gpu), loader


def _sequential(name: str, prepared: Prepared, folder: Path, batch_size: int, gpu: int) -> tuple[Any, Any]:
    """Return a model of long sequences; its loader looks a sample's behaviors and their items' fields up in tables."""
    users = user_columns(prepared, train=prepared.split.train)
    items, sequences, candidates = item_columns(prepared, train=prepared.split.train)
    features = _feature_map(users, items)
    for key in ("user_index", "item_index", "seq_len"):
        features.features[key] = {"type": "meta"}
    rows = {
        **users.values,
        "user_index": np.arange(len(sequences)),
        "item_index": candidates,
        "seq_len": np.array([len(sequence) for sequence in sequences]),
        LABEL: prepared.labels[prepared.split.train].astype(int),
    }
    paths = {what: str(folder / f"{what}.parquet") for what in ("train", "users", "items")}
    pd.DataFrame(rows).to_parquet(paths["train"])
    pd.DataFrame({"full_item_seq": sequences}).to_parquet(paths["users"])
    count = len(next(iter(items.values.values())))
    listed = {key: values if values.ndim == 1 else list(values) for key, values in items.values.items()}
    pd.DataFrame({"item_index": np.arange(count), **listed}).to_parquet(paths["items"])
    loader = peer(f"{LONG}.longctr_dataloader").LongCTRDataLoader(
        features,
        *paths.values(),
        batch_size=batch_size,
        shuffle=True,
        num_workers=0,
        max_len=prepared.spec.sequence_length,
        padding="post",
    )
    dice = peer(f"{FUXICTR}.layers").Dice
    own = {"batch_norm": False, "dnn_activations": [dice(units) for units in HIDDEN]}
    model = getattr(peer(f"{LONG}.{SEQUENTIAL[name]}.{SEQUENTIAL[name]}"), SEQUENTIAL[name])(
        features, embedding_dim=WIDTH, dnn_hidden_units=HIDDEN, net_dropout=DROPOUT, **own, **_common(gpu)
    )
    return model, loader


def _feature_map(*columns: Columns) -> Any:
    features = peer("fuxictr.features").FeatureMap("none", "unused")
    features.default_emb_dim, features.labels = WIDTH, [LABEL]
    for part in columns:
        features.features.update(part.features)
    features.num_fields = features.get_num_fields()
    features.set_column_index()
    return features


def _common(gpu: int) -> dict[str, Any]:
    return {
        "task": "binary_classification",
        "optimizer": "adam",
        "loss": "binary_crossentropy",
        "learning_rate": 1e-3,
        "metrics": ["AUC"],
        "verbose": 0,
        "model_root": "unused",
        "gpu": gpu,
    }


def _assembled(name: str, features: Any, gpu: int) -> Any:
    """Return fuxictr's base model with the parts that its repository gives the model `name`."""
    base, layers = peer(f"{FUXICTR}.models").BaseModel, peer(f"{FUXICTR}.layers")

    class Assembled(base):  # type: ignore[misc]  # untyped
        def __init__(self) -> None:
            common = _common(gpu)
            super().__init__(features, model_id=name, **common)
            self.embedding_layer = layers.FeatureEmbedding(features, WIDTH)
            self.head = HEADS[name](features, layers)
            self.compile(common["optimizer"], common["loss"], common["learning_rate"])
            self.reset_parameters()
            self.model_to_device()

        def forward(self, inputs: Any) -> dict[str, Tensor]:
            found = self.get_inputs(inputs)
            return {"y_pred": self.output_activation(self.head(found, self.embedding_layer(found)))}

    return Assembled()


class _Head(nn.Module):
    """The parts of a model behind its embeddings: (fields by name, (B, F, E)) -> logits (B, 1)."""

    def __init__(self, features: Any, layers: Any) -> None:
        super().__init__()
        self.width, self.field_count = features.sum_emb_out_dim(), features.num_fields
        self._layers = layers

    def block(self, width: int, *, output: int | None = 1) -> nn.Module:
        block: nn.Module = self._layers.MLP_Block(
            input_dim=width, output_dim=output, hidden_units=HIDDEN, hidden_activations="ReLU", dropout_rates=DROPOUT
        )
        return block


class _DCN(_Head):
    def __init__(self, features: Any, layers: Any) -> None:
        super().__init__(features, layers)
        self.dnn, self.cross = self.block(self.width, output=None), layers.CrossNet(self.width, 3)
        self.fc = nn.Linear(self.width + HIDDEN[-1], 1)

    def forward(self, _: Any, fields: Tensor) -> Tensor:
        flat = fields.flatten(1)
        logit: Tensor = self.fc(torch.cat([self.cross(flat), self.dnn(flat)], dim=-1))
        return logit


class _DeepFM(_Head):
    def __init__(self, features: Any, layers: Any) -> None:
        super().__init__(features, layers)
        self.fm, self.mlp = layers.FactorizationMachine(features), self.block(self.width)

    def forward(self, found: Any, fields: Tensor) -> Tensor:
        logit: Tensor = self.fm(found, fields) + self.mlp(fields.flatten(1))
        return logit


class _XDeepFM(_Head):
    def __init__(self, features: Any, layers: Any) -> None:
        super().__init__(features, layers)
        self.linear = layers.LogisticRegression(features, use_bias=False)
        self.cin = layers.CompressedInteractionNet(self.field_count, [50, 50], output_dim=1)
        self.dnn = self.block(self.width)

    def forward(self, found: Any, fields: Tensor) -> Tensor:
        logit: Tensor = self.linear(found) + self.cin(fields) + self.dnn(fields.flatten(1))
        return logit


class _Attention(nn.Module):
    """Its repository's attention layer: a projected residual only where the width changes."""

    def __init__(self, width: int, *, attention: int, heads: int, layers: Any) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, attention, bias=False) for _ in range(3))
        self.residual = nn.Linear(width, attention, bias=False) if width != attention else nn.Identity()
        self.attention = layers.ScaledDotProductAttention()

    def forward(self, x: Tensor) -> Tensor:
        split = [
            layer(x).view(len(x), -1, self.heads, layer.out_features // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]
        attended = self.attention(*split)[0].transpose(1, 2).contiguous().flatten(2)
        return torch.relu(attended + self.residual(x))


class _AutoInt(_Head):
    def __init__(self, features: Any, layers: Any) -> None:
        super().__init__(features, layers)
        heads, attention = 2, 64
        self.attention = nn.Sequential(
            *(
                _Attention(width, attention=attention, heads=heads, layers=layers)
                for width in (WIDTH, attention, attention)
            )
        )
        self.fc, self.dnn = nn.Linear(self.field_count * attention, 1), self.block(self.width)

    def forward(self, _: Any, fields: Tensor) -> Tensor:
        logit: Tensor = self.fc(self.attention(fields).flatten(1)) + self.dnn(fields.flatten(1))
        return logit


class _FiBiNet(_Head):
    def __init__(self, features: Any, layers: Any) -> None:
        super().__init__(features, layers)
        self.excitation = layers.SqueezeExcitation(self.field_count, 3, "ReLU")
        self.first, self.second = (
            layers.BilinearInteractionV2(self.field_count, WIDTH, "field_interaction") for _ in range(2)
        )
        self.linear = layers.LogisticRegression(features, use_bias=False)
        self.dnn = self.block(self.field_count * (self.field_count - 1) * WIDTH)

    def forward(self, found: Any, fields: Tensor) -> Tensor:
        pairs = torch.cat([self.first(fields), self.second(self.excitation(fields))], dim=1)
        logit: Tensor = self.linear(found) + self.dnn(pairs.flatten(1))
        return logit


HEADS: dict[str, Callable[[Any, Any], nn.Module]] = {
    "dcn": _DCN,
    "deepfm": _DeepFM,
    "xdeepfm": _XDeepFM,
    "autoint": _AutoInt,
    "fibinet": _FiBiNet,
}
