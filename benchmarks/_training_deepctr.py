"""The peers of the five backbones of fields: models of deepctr-torch over the same fields, trained by its own `fit`.

They have the sizes of ours and no regularization. The behaviors are sequence features that are pooled field by field,
as `history: mean`; feedback is one more of them. Its models embed no numbers, so the dense features are codes of bins:
as fields, which they are in ours and in their papers, they take part in every interaction. AutoInt, xDeepFM and FiBiNET
count their fields by their tables, so there the behaviors have tables of their own, where ours and those of DCN and
DeepFM share the item's.

Shape suffixes: Q samples, C columns of its one input matrix.
"""

import io
from contextlib import redirect_stdout
from typing import Any

import numpy as np

from benchmarks._training_features import Columns, flat_columns
from tests.peers import peer
from training.fit import Prepared

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "dcn": ("DCN", {"cross_num": 3, "l2_reg_linear": 0, "l2_reg_cross": 0}),
    "deepfm": ("DeepFM", {"l2_reg_linear": 0}),
    "xdeepfm": (
        "xDeepFM",
        {"l2_reg_linear": 0, "cin_layer_size": (50, 50), "cin_split_half": False, "cin_activation": "linear"},
    ),
    "autoint": ("AutoInt", {"att_layer_num": 3, "att_head_num": 2}),
    "fibinet": ("FiBiNET", {"l2_reg_linear": 0, "bilinear_type": "interaction", "reduction_ratio": 3}),
}
"""The class of each backbone's peer, and what it is told beside the common sizes."""
WITH_LINEAR_TERM = frozenset({"deepfm", "xdeepfm", "fibinet"})
WITH_SHARED_TABLES = frozenset({"dcn", "deepfm"})


class DeepctrPeer:
    """A model of deepctr-torch and its training samples."""

    def __init__(self, model: Any, *, inputs_QC: np.ndarray, labels_Q: np.ndarray, batch_size: int) -> None:
        self.model, self.inputs_QC, self.labels_Q, self.batch_size = model, inputs_QC, labels_Q, batch_size

    def train_epoch(self) -> None:
        """Take the steps of an epoch; what `fit` prints is left out."""
        with redirect_stdout(io.StringIO()):
            self.model.fit([self.inputs_QC], self.labels_Q, batch_size=self.batch_size, epochs=1, verbose=0)


def make_deepctr_peer(
    name: str, prepared: Prepared, *, width: int, hidden: list[int], dropout: float, batch_size: int, gpu: int = -1
) -> DeepctrPeer:
    """Return the peer of a backbone over the training part of `prepared`."""
    train = prepared.split.train
    columns = flat_columns(prepared, train=train, binned=True)
    features = _features(columns, width=width, shared=name in WITH_SHARED_TABLES)
    linear = [feature for feature in features if columns.features[feature.name]["source"] != "h"]
    kind, own = MODELS[name]
    model = getattr(peer("deepctr_torch.models"), kind)(
        linear if name in WITH_LINEAR_TERM else [],
        features,
        dnn_hidden_units=hidden,
        dnn_dropout=dropout,
        l2_reg_embedding=0,
        device="cpu" if gpu < 0 else f"cuda:{gpu}",
        **own,
    )
    model.compile("adam", "binary_crossentropy")
    values = [columns.values[key].reshape(len(train), -1) for key in model.feature_index]
    return DeepctrPeer(
        model,
        inputs_QC=np.concatenate(values, axis=1).astype(np.float32),
        labels_Q=prepared.labels[train].astype(np.float32),
        batch_size=batch_size,
    )


def _features(columns: Columns, *, width: int, shared: bool) -> list[Any]:
    inputs = peer("deepctr_torch.inputs")
    found: list[Any] = []
    for name, about in columns.features.items():
        table = about.get("share_embedding") if shared else None
        sparse = inputs.SparseFeat(name, about["vocab_size"], embedding_dim=width, embedding_name=table)
        several = about["type"] == "sequence"
        found.append(inputs.VarLenSparseFeat(sparse, maxlen=about["max_len"], combiner="mean") if several else sparse)
    return found
