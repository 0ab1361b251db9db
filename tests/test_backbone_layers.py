"""Layer by layer, the same weights give the same outputs as in fuxictr and in deepctr-torch."""

import pytest
import torch
from torch import Tensor, nn

from tests.backbone_parts import attend, randomize
from tests.peers import copy, load_mlp, peer
from training.backbones.attention import DINAttention
from training.backbones.autoint import InteractingLayer
from training.backbones.dcn import CrossNetwork
from training.backbones.deepfm import pairwise_products
from training.backbones.dien import BilinearAttention
from training.backbones.fibinet import Bilinear, BilinearInteraction, SqueezeExcitation
from training.backbones.layers import Dice, mlp
from training.backbones.packing import pack
from training.backbones.xdeepfm import CompressedInteraction

pytestmark = pytest.mark.usefixtures("one_thread")
B, F, E, N = 7, 6, 4, 5
FUXICTR, DEEPCTR = "fuxictr.pytorch.layers", "deepctr_torch.layers"


def same(found: Tensor, expected: Tensor) -> None:
    assert expected.abs().max() > 0.01  # so that an equality says something
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.fixture
def fields() -> Tensor:
    torch.manual_seed(11)
    return torch.randn(B, F, E)


@pytest.mark.parametrize("layers", [1, 3])
def test_the_cross_network_is_that_of_both(fields: Tensor, layers: int) -> None:
    ours, stacked = CrossNetwork(F * E, layers=layers), fields.flatten(1)
    randomize(ours, deviation=0.2)
    fuxi = peer(FUXICTR).CrossNet(F * E, layers)
    for number, layer in enumerate(fuxi.cross_net):
        copy(layer.weight.weight, ours.weight[number])
        copy(layer.bias, ours.bias[number])
    same(ours(stacked), fuxi(stacked))
    deep = peer(DEEPCTR).CrossNet(F * E, layer_num=layers)
    copy(deep.kernels, ours.weight)
    copy(deep.bias, ours.bias)
    same(ours(stacked), deep(stacked))


@pytest.mark.parametrize("maps", [(5,), (5, 3), (5, 2, 4)], ids=str)
def test_the_compressed_interaction_is_that_of_both(fields: Tensor, maps: tuple[int, ...]) -> None:
    ours = CompressedInteraction(F, feature_maps=maps)
    randomize(ours, deviation=0.2)
    fuxi = peer(FUXICTR).CompressedInteractionNet(F, list(maps), output_dim=1)
    deep = peer(DEEPCTR).CIN(F, maps, activation="linear", split_half=False)
    for number, weight in enumerate(ours.weights):
        layer = fuxi.cin_layer[f"layer_{number + 1}"]
        copy(layer.weight, weight.unflatten(1, (-1, F)).transpose(1, 2))  # its products have the fields first
        copy(deep.conv1ds[number].weight, weight)
        for bias in (layer.bias, deep.conv1ds[number].bias):  # the paper has none
            nn.init.zeros_(bias)
    same(ours(fields), deep(fields))
    output = nn.Linear(sum(maps), 1)
    fuxi.fc.load_state_dict(output.state_dict())
    same(output(ours(fields)), fuxi(fields))


@pytest.mark.parametrize("kind", ["all", "each", "interaction"])
def test_the_bilinear_interaction_is_that_of_both(fields: Tensor, kind: Bilinear) -> None:
    ours = BilinearInteraction(F, width=E, kind=kind)
    matrices = ours.weight.detach()
    assert len(matrices) == {"all": 1, "each": F - 1, "interaction": F * (F - 1) // 2}[kind]
    for name in ("BilinearInteraction", "BilinearInteractionV2"):
        fuxi = getattr(peer(FUXICTR), name)(F, E, bilinear_type=f"field_{kind}")
        copy(fuxi.bilinear_W if kind == "all" else fuxi.bilinear_W[: len(matrices)], matrices)
        same(ours(fields), fuxi(fields))
    deep = peer(DEEPCTR).BilinearInteraction(F, E, bilinear_type=kind)
    layers = [deep.bilinear] if kind == "all" else deep.bilinear
    for layer, matrix in zip(layers, matrices, strict=False):  # the last field of "each" is left of none
        copy(layer.weight, matrix.T)
    same(ours(fields), deep(fields))


@pytest.mark.parametrize("reduction", [1, 3, 9])
def test_the_squeeze_excitation_is_that_of_both(fields: Tensor, reduction: int) -> None:
    ours = SqueezeExcitation(F, reduction=reduction)
    with torch.no_grad():
        for weight in ours.parameters():  # positive ones: a relu that is never active would hide the rest
            weight.uniform_(0.1, 1)
    fuxi, deep = peer(FUXICTR).SqueezeExcitation(F, reduction), peer(DEEPCTR).SENETLayer(F, reduction)
    for theirs in (fuxi, deep):
        theirs.excitation.load_state_dict(ours.weights.state_dict())
        same(ours(fields), theirs(fields))


def test_the_factorization_machine_is_that_of_both(fields: Tensor) -> None:
    found = pairwise_products(fields)[:, None]
    same(found, peer(FUXICTR).InnerProductInteraction(F, output="product_sum")(fields))
    same(found, peer(DEEPCTR).FM()(fields))


@pytest.mark.parametrize("scale", [False, True], ids=["unscaled", "scaled"])
@pytest.mark.parametrize("heads", [1, 2])
def test_the_interacting_layer_is_that_of_deepctr(fields: Tensor, heads: int, scale: bool) -> None:
    ours = InteractingLayer(E, heads=heads, head_width=E // heads, scale=scale)
    theirs = peer(DEEPCTR).InteractingLayer(E, head_num=heads, use_res=True, scaling=scale)
    weights = ours.projection.weight.detach().chunk(4)
    for target, weight in zip((theirs.W_Query, theirs.W_key, theirs.W_Value, theirs.W_Res), weights, strict=True):
        copy(target, weight.T)
    same(ours(fields), theirs(fields))


def test_dice_is_that_of_fuxictr_in_training_and_after() -> None:
    torch.manual_seed(12)
    ours, theirs, x = Dice(E), peer(FUXICTR).Dice(E), torch.randn(20, E)
    nn.init.normal_(ours.alpha)
    copy(theirs.alpha, ours.alpha)
    same(ours(x), theirs(x))
    for layer in (ours.normalize, theirs.bn):
        layer.running_mean.copy_(torch.arange(E) * 0.1)
        layer.running_var.copy_(1 + torch.arange(E))
    same(ours.eval()(x), theirs.eval()(x))


@pytest.fixture
def behaviors() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(13)
    mask_BN = torch.arange(N) < torch.tensor([5, 1, 3, 5, 2, 4, 3])[:, None]
    candidate = torch.randn(B, E)
    candidate[:, -1] = 0.7  # what stands for the feedback is the same for all
    return candidate, torch.randn(B, N, E), mask_BN


@pytest.mark.parametrize("activation", ["relu", "dice"])
@pytest.mark.parametrize("softmax", [False, True], ids=["plain", "softmax"])
def test_the_attention_of_din_is_that_of_fuxictr(
    behaviors: tuple[Tensor, Tensor, Tensor], activation: str, softmax: bool
) -> None:
    ours = DINAttention(E, hidden=(8, 3), activation_name=activation, softmax=softmax)
    theirs = peer(FUXICTR).DIN_Attention(
        embedding_dim=E, attention_units=[8, 3], hidden_activations=activation, use_softmax=softmax
    )
    linear = [layer for layer in theirs.attention_layer.mlp if isinstance(layer, nn.Linear)]
    load_mlp(linear, None, ours.unit)
    same(attend(ours, *behaviors), theirs(*behaviors))  # Dice in training mode: with the batch's mean and variance


@pytest.mark.parametrize("softmax", [False, True], ids=["plain", "softmax"])
def test_the_attention_of_din_is_that_of_deepctr(behaviors: tuple[Tensor, Tensor, Tensor], softmax: bool) -> None:
    candidate, history, mask = behaviors
    ours = DINAttention(E, hidden=(8, 3), activation_name="sigmoid", softmax=softmax)
    theirs = peer(DEEPCTR).AttentionSequencePoolingLayer(
        att_hidden_units=(8, 3), att_activation="sigmoid", weight_normalization=softmax, embedding_dim=E
    )
    load_mlp(theirs.local_att.dnn.linears, theirs.local_att.dense, ours.unit)
    expected = theirs(candidate[:, None], history, mask.sum(dim=1, keepdim=True)).squeeze(1)
    same(attend(ours, *behaviors), expected)


def test_the_attention_of_dien_is_that_of_fuxictr(behaviors: tuple[Tensor, Tensor, Tensor]) -> None:
    candidate, interest, mask = behaviors
    ours, packing = BilinearAttention(E, width=E), pack(mask)
    theirs = peer("model_zoo.LongCTR.DIEN.DIEN").AttentionLayer(E, attention_type="bilinear_attention")
    randomize(ours)
    copy(theirs.W_kernel, ours.weight.weight)
    expected = theirs(interest, candidate, mask)
    same(ours(candidate, packing.take(interest), packing), packing.take(expected[..., None]).squeeze(-1))


def test_the_mlp_is_that_of_fuxictr() -> None:
    torch.manual_seed(14)
    ours, x = mlp(E, hidden=(8, 3), activation_name="relu"), torch.randn(B, E)
    theirs = peer(FUXICTR).MLP_Block(input_dim=E, hidden_units=[8, 3], output_dim=1, hidden_activations="ReLU")
    load_mlp([layer for layer in theirs.mlp if isinstance(layer, nn.Linear)], None, ours)
    same(ours(x), theirs(x))
