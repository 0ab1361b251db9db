"""Whole backbones give the logits of deepctr-torch's models, and DIEN those of fuxictr's, with the same weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from liber_feast.inputs import InputShape
from tests.backbone_parts import OF_FIELDS, randomize, small
from tests.peers import copy, load_gates, load_mlp, peer
from training.backbones.embedding import Batch, feedback

pytestmark = pytest.mark.usefixtures("one_thread")
B, N, E = 12, 5, 4
USER_CODES, ITEM_CODES = 7, 9
HIDDEN = (8, 4)


def shape_of(*, slots: tuple[int, ...]) -> InputShape:
    """Return inputs of codes alone, which the peers have too: embedded numbers, dense features and memory are ours."""
    return InputShape(
        user_slots=(1, 1),
        user_code_count=USER_CODES,
        user_number_count=0,
        item_slots=slots,
        item_code_count=ITEM_CODES,
        item_number_count=0,
        sequence_length=N,
        dense_count=0,
    )


def batch_of(*, slots: tuple[int, ...]) -> Batch:
    torch.manual_seed(21)
    width = sum(slots)
    mask_BN = torch.arange(N) < torch.randint(1, N + 1, (B, 1))
    rating_BN = torch.randn(B, N) * mask_BN
    codes = torch.randint(1, ITEM_CODES, (B, width))
    codes[::3, 2:] = 0  # fields of several codes that have fewer
    return {
        "user_codes": torch.randint(1, USER_CODES, (B, 2)),
        "user_numbers": torch.zeros(B, 0, 2),
        "item_codes": codes,
        "item_numbers": torch.zeros(B, 0, 2),
        "history_codes": torch.randint(1, ITEM_CODES, (B, N, width)) * mask_BN[..., None],
        "history_numbers": torch.zeros(B, N, 0, 2),
        "history_mask": mask_BN,
        "history_liked": mask_BN & (rating_BN > 0),
        "history_rating": rating_BN,
        "dense": torch.zeros(B, 0),
    }


def columns() -> list[Any]:
    """Return the columns of two user fields, an item field and an item field of up to three codes."""
    inputs = peer("deepctr_torch.inputs")
    several = inputs.SparseFeat("item1", ITEM_CODES, embedding_dim=E)
    return [
        *(inputs.SparseFeat(f"user{number}", USER_CODES, embedding_dim=E) for number in range(2)),
        inputs.SparseFeat("item0", ITEM_CODES, embedding_dim=E),
        inputs.VarLenSparseFeat(several, maxlen=3, combiner="mean"),
    ]


def load_tables(tables: Any, ours: Any) -> None:
    """Copy our two tables of codes into the peer's one for each field."""
    for name, table in tables.items():
        copy(table.weight, (ours.user if name.startswith("user") else ours.item).codes.weight)


def load_common(theirs: Any, ours: Any) -> None:
    """Copy embeddings, first-order weights and the MLP into a model of deepctr."""
    load_tables(theirs.embedding_dict, ours.inputs)
    if hasattr(ours, "linear"):
        load_tables(theirs.linear_model.embedding_dict, ours.linear)


def model(name: str, **options: Any) -> Any:
    """Return a model of deepctr that gives logits."""
    linear = columns() if name in {"DeepFM", "xDeepFM", "FiBiNET"} else []
    return getattr(peer("deepctr_torch.models"), name)(
        linear, columns(), dnn_hidden_units=HIDDEN, task="regression", **options
    ).eval()


def dcn(ours: Any) -> Any:
    theirs = model("DCN", cross_num=ours.config.cross_layers)
    load_mlp(theirs.dnn.linears, None, ours.deep)
    copy(theirs.crossnet.kernels, ours.cross.weight)
    copy(theirs.crossnet.bias, ours.cross.bias)
    copy(theirs.dnn_linear.weight, ours.output.weight)
    copy(theirs.out.bias, ours.output.bias)
    return theirs


def with_mlp(theirs: Any, ours: Any) -> Any:
    load_mlp(theirs.dnn.linears, theirs.dnn_linear, ours.output)
    copy(theirs.out.bias, ours.output[-1].bias)
    return theirs


def deepfm(ours: Any) -> Any:
    return with_mlp(model("DeepFM"), ours)


def xdeepfm(ours: Any) -> Any:
    theirs = model("xDeepFM", cin_layer_size=ours.config.feature_maps, cin_split_half=False, cin_activation="linear")
    for layer, weight in zip(theirs.cin.conv1ds, ours.interaction.weights, strict=True):
        copy(layer.weight, weight)
        torch.nn.init.zeros_(layer.bias)
    copy(theirs.cin_linear.weight, ours.interaction_output.weight)
    return with_mlp(theirs, ours)


def autoint(ours: Any) -> Any:
    theirs = model("AutoInt", att_layer_num=ours.config.attention_layers, att_head_num=ours.config.heads)
    for layer, source in zip(theirs.int_layers, ours.interaction, strict=True):
        weights = source.projection.weight.chunk(4)
        for target, weight in zip((layer.W_Query, layer.W_key, layer.W_Value, layer.W_Res), weights, strict=True):
            copy(target, weight.T)
    load_mlp(theirs.dnn.linears, None, ours.output[:-1])
    copy(theirs.dnn_linear.weight, torch.cat([ours.interaction_output.weight, ours.output[-1].weight], dim=1))
    copy(theirs.out.bias, ours.interaction_output.bias + ours.output[-1].bias)
    return theirs


def fibinet(ours: Any) -> Any:
    theirs = model("FiBiNET", bilinear_type=ours.config.bilinear, reduction_ratio=ours.config.reduction)
    theirs.SE.excitation.load_state_dict(ours.excitation.weights.state_dict())
    layers = [theirs.Bilinear.bilinear] if ours.config.bilinear == "all" else theirs.Bilinear.bilinear
    for layer, matrix in zip(layers, ours.interaction.weight, strict=False):
        copy(layer.weight, matrix.T)
    return with_mlp(theirs, ours)


@pytest.mark.parametrize(
    ("load", "config"),
    [
        (dcn, {}),
        (deepfm, {}),
        (xdeepfm, {}),
        (autoint, {"head_width": E // 2}),
        (fibinet, {"shared_bilinear": True, "bilinear": "interaction"}),
        (fibinet, {"shared_bilinear": True, "bilinear": "each"}),
        (fibinet, {"shared_bilinear": True, "bilinear": "all"}),
    ],
    ids=[*OF_FIELDS, "fibinet-each", "fibinet-all"],
)
def test_the_logits_of_fields_are_those_of_deepctr(load: Callable[[Any], Any], config: dict[str, Any]) -> None:
    slots = (1, 3)
    ours = small(load.__name__, shape=shape_of(slots=slots), history="none", **config)
    randomize(ours)
    theirs, batch = load(ours), batch_of(slots=slots)
    load_common(theirs, ours)
    with torch.no_grad():
        expected = theirs(torch.cat([batch["user_codes"], batch["item_codes"]], dim=1).float()).squeeze(-1)
        found = ours(batch)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


SEQUENCE_SLOTS = (1, 1)


def told_table(ours: Any, batch: Batch) -> Tensor:
    """Return a table of what the peers must embed as one more item field: `wanted`, then each behavior's feedback."""
    told = (feedback(batch) @ ours.inputs.feedback).flatten(0, 1)
    return torch.cat([ours.inputs.wanted[None], told]).detach()


def told_codes() -> Tensor:
    return 1 + torch.arange(B * N).view(B, N)


def beside_wanted(weight: Tensor) -> Tensor:
    """Return a first layer's weight with zeros for `wanted`, which the peers' MLP sees behind the four fields."""
    return torch.cat([weight[:, : 4 * E], torch.zeros(len(weight), E), weight[:, 4 * E :]], dim=1)


def history_columns() -> list[Any]:
    inputs = peer("deepctr_torch.inputs")
    sizes = {"item0": ITEM_CODES, "item1": ITEM_CODES, "told": 1 + B * N}
    users = [inputs.SparseFeat(f"user{number}", USER_CODES, embedding_dim=E) for number in range(2)]
    items = [inputs.SparseFeat(name, size, embedding_dim=E) for name, size in sizes.items()]
    histories = [
        inputs.VarLenSparseFeat(
            inputs.SparseFeat(f"hist_{name}", size, embedding_dim=E, embedding_name=name), N, length_name="length"
        )
        for name, size in sizes.items()
    ]
    return [*users, *items, *histories]


@pytest.mark.parametrize("softmax", [False, True], ids=["plain", "softmax"])
def test_the_logits_of_din_are_those_of_deepctr(softmax: bool) -> None:
    ours = small("din", shape=shape_of(slots=SEQUENCE_SLOTS), activation="relu", attention_softmax=softmax)
    randomize(ours)
    batch = batch_of(slots=SEQUENCE_SLOTS)
    theirs = peer("deepctr_torch.models").DIN(
        history_columns(),
        ["item0", "item1", "told"],
        dnn_hidden_units=HIDDEN,
        att_hidden_size=ours.config.attention_hidden,
        att_activation="relu",
        att_weight_normalization=softmax,
        task="regression",
    )
    load_tables({name: table for name, table in theirs.embedding_dict.items() if name != "told"}, ours.inputs)
    copy(theirs.embedding_dict["told"].weight, told_table(ours, batch))
    load_mlp(theirs.attention.local_att.dnn.linears, theirs.attention.local_att.dense, ours.attention.unit)
    copy(theirs.dnn.linears[0].weight, beside_wanted(ours.output[0].weight))
    copy(theirs.dnn.linears[0].bias, ours.output[0].bias)
    load_mlp(theirs.dnn.linears[1:], theirs.dnn_linear, ours.output[1:])
    copy(theirs.out.bias, ours.output[-1].bias)
    history = [batch["history_codes"][..., 0], batch["history_codes"][..., 1], told_codes()]
    length = batch["history_mask"].sum(dim=1, keepdim=True)
    inputs = [batch["user_codes"], batch["item_codes"], torch.zeros(B, 1), history[0], length, *history[1:]]
    with torch.no_grad():
        expected = theirs.eval()(torch.cat(inputs, dim=1).float()).squeeze(-1)
        found = ours(batch)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_logits_of_dien_are_those_of_fuxictr() -> None:
    ours = small("dien", shape=shape_of(slots=SEQUENCE_SLOTS), activation="relu", hidden_width=3 * E)
    randomize(ours)
    batch = batch_of(slots=SEQUENCE_SLOTS)
    table = told_table(ours, batch)
    sizes = {"user0": USER_CODES, "user1": USER_CODES, "item0": ITEM_CODES, "item1": ITEM_CODES, "told": len(table)}
    features = peer("fuxictr.features").FeatureMap("none", "unused")
    features.default_emb_dim = E
    for name, size in sizes.items():
        source = "user" if name.startswith("user") else "item"
        features.features[name] = {"type": "categorical", "vocab_size": size, "source": source}
    theirs = peer("model_zoo.LongCTR.DIEN.DIEN").DIEN(
        features,
        embedding_dim=E,
        dnn_hidden_units=list(HIDDEN),
        batch_norm=False,
        task="regression",
        optimizer="adam",
        loss="mse_loss",
        metrics=[],
        verbose=0,
        model_root="unused",
    )
    tables = theirs.embedding_layer.embedding_layer.embedding_layers
    load_tables({name: layer for name, layer in tables.items() if name != "told"}, ours.inputs)
    copy(tables["told"].weight, table)
    theirs.extraction_modules[0].load_state_dict(ours.extraction.gru.state_dict())
    load_gates(theirs.evolving_modules[0].gru_cell, ours.evolution)
    copy(theirs.attention_modules[0].W_kernel, ours.attention.weight.weight)
    linear = [layer for layer in theirs.dnn.mlp if isinstance(layer, torch.nn.Linear)]
    copy(linear[0].weight, beside_wanted(ours.output[0].weight))
    copy(linear[0].bias, ours.output[0].bias)
    load_mlp(linear[1:], None, ours.output[1:])
    items = torch.cat([batch["history_codes"], batch["item_codes"][:, None]], dim=1)
    told = torch.cat([told_codes(), torch.zeros(B, 1, dtype=torch.long)], dim=1)
    item_codes = {"item0": items[..., 0].flatten(), "item1": items[..., 1].flatten(), "told": told.flatten()}
    user_codes = {f"user{number}": batch["user_codes"][:, number] for number in range(2)}
    with torch.no_grad():
        expected = theirs.eval()((user_codes, item_codes, batch["history_mask"]))["y_pred"].squeeze(-1)
        found = ours(batch)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
