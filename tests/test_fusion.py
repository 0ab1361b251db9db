"""Equations 5 and 6: the trained module, and what applies its weights without torch."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from liber_feast.errors import ArtifactError
from liber_feast.fusion import (
    AttentionFusion,
    Fuser,
    fusion_version,
    load_fusion,
    masked_mean,
    mean_fuser,
    open_fuser,
    save_fusion,
)

WIDTH, FUSED_WIDTH, ENCODER = 12, 8, "53aa5117-01234567"

seeds = st.integers(0, 10_000)
FEW = settings(max_examples=25)
lengths = st.lists(st.integers(0, 9), min_size=1, max_size=8)


def module_of(seed: int, *, width: int = WIDTH, fused_width: int = FUSED_WIDTH) -> AttentionFusion:
    torch.manual_seed(seed)
    return AttentionFusion(width=width, fused_width=fused_width)


def memories_of(lengths: list[int], *, width: int = WIDTH, seed: int = 0) -> list[NDArray[np.float32]]:
    generator = np.random.default_rng(seed)
    return [generator.normal(size=(length, width)).astype(np.float32) for length in lengths]


def padded(memories: list[NDArray[np.float32]], *, padding: float = 0.0, more: int = 0) -> tuple[Tensor, Tensor]:
    """Return (vectors_BPD, sealed_BP) with `padding` where no partition is and `more` columns of it."""
    length = max(len(memory) for memory in memories) + more
    vectors = torch.full((len(memories), length, memories[0].shape[1]), padding)
    sealed = torch.zeros(len(memories), length, dtype=torch.bool)
    for row, memory in enumerate(memories):
        vectors[row, : len(memory)] = torch.from_numpy(memory)
        sealed[row, : len(memory)] = True
    return vectors, sealed


def fuser_of(module: AttentionFusion, folder: Path) -> Fuser:
    save_fusion(module, folder, encoder_version=ENCODER)
    return load_fusion(folder)


@pytest.fixture(scope="module")
def fuser(tmp_path_factory: pytest.TempPathFactory) -> Fuser:
    return fuser_of(module_of(0), tmp_path_factory.mktemp("fusion"))


@FEW
@given(lengths, seeds, st.sampled_from([1e30, -7.0, float("nan"), float("inf")]), st.integers(0, 3))
def test_padding_never_matters(lengths: list[int], seed: int, padding: float, more: int) -> None:
    module, memories = module_of(seed), memories_of(lengths, seed=seed)
    plain, odd = padded(memories), padded(memories, padding=padding, more=more)
    torch.testing.assert_close(module(*odd), module(*plain), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(masked_mean(*odd), masked_mean(*plain), atol=1e-6, rtol=1e-5)
    length = plain[1].shape[1]
    torch.testing.assert_close(module.weights(*odd)[:, :length], module.weights(*plain), atol=1e-6, rtol=1e-5)


@FEW
@given(st.integers(1, 9).flatmap(lambda length: st.permutations(range(length))), seeds)
def test_the_order_of_the_partitions_does_not_matter(order: list[int], seed: int) -> None:
    module, (memory,) = module_of(seed), memories_of([len(order)], seed=seed)
    torch.testing.assert_close(module(*padded([memory[order]])), module(*padded([memory])), atol=1e-6, rtol=1e-5)


@FEW
@given(lengths, seeds)
def test_users_do_not_see_each_other(lengths: list[int], seed: int) -> None:
    module, memories = module_of(seed), memories_of(lengths, seed=seed)
    together = module(*padded(memories))
    for row, memory in enumerate(memories):
        alone = module(*padded([memory], more=1))
        torch.testing.assert_close(alone[0], together[row], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("length", [0, 3], ids=["nobody has partitions", "another user has some"])
def test_a_user_without_partitions_gets_zeros_and_finite_gradients(length: int) -> None:
    module = module_of(0)
    vectors, sealed = padded(memories_of([0, length]))
    vectors.requires_grad_()
    fused = module(vectors, sealed)
    assert (fused[0] == 0).all()
    assert (module.weights(vectors, sealed)[0] == 0).all()
    (fused.sum() + module.weights(vectors, sealed).sum()).backward()
    gradients = [vectors.grad, *(parameter.grad for parameter in module.parameters())]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_one_partition_is_its_own_value() -> None:
    module, memories = module_of(0), memories_of([1])
    vectors, sealed = padded(memories)
    torch.testing.assert_close(module(vectors, sealed), module.value(vectors)[:, 0])
    torch.testing.assert_close(masked_mean(vectors, sealed), vectors[:, 0])
    assert module.weights(vectors, sealed).tolist() == [[1.0]]


def test_equal_partitions_share_equally() -> None:
    module, (memory,) = module_of(0), memories_of([1])
    weights = module.weights(*padded([np.repeat(memory, 4, axis=0)], more=2))
    torch.testing.assert_close(weights, torch.tensor([[0.25] * 4 + [0.0] * 2]))


@FEW
@given(lengths, seeds)
def test_the_weights_explain_the_fused_vector(lengths: list[int], seed: int) -> None:
    module = module_of(seed)
    vectors, sealed = padded(memories_of(lengths, seed=seed))
    weights = module.weights(vectors, sealed)
    explained = torch.einsum("bp,bpf->bf", weights, module.value(vectors))
    torch.testing.assert_close(explained, module(vectors, sealed), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(weights.sum(1), torch.tensor([float(length > 0) for length in lengths]))
    assert (weights[~sealed] == 0).all()


def test_the_gradient_reaches_every_weight() -> None:
    module = module_of(0)
    module(*padded(memories_of([4, 2, 7]))).square().sum().backward()
    untouched = {"key.bias"}  # it adds the same to all scores of a query, which the softmax takes away
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        assert (parameter.grad.abs().max() > 1e-4) == (name not in untouched), name


@FEW
@given(lengths, seeds, st.integers(1, 40), st.integers(1, 40))
def test_the_fuser_agrees_with_the_module(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], seed: int, width: int, fused_width: int
) -> None:
    module = module_of(seed, width=width, fused_width=fused_width)
    memories = memories_of(lengths, width=width, seed=seed)
    expected = module(*padded(memories, more=1)).detach().numpy()
    found = fuser_of(module, tmp_path_factory.mktemp("fusion")).fuse(memories)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


@FEW
@given(lengths, seeds)
def test_the_mean_fuser_is_the_masked_mean(lengths: list[int], seed: int) -> None:
    memories = memories_of(lengths, seed=seed)
    fuser = open_fuser(None, width=WIDTH, encoder_version=ENCODER)
    assert (fuser.version, fuser.width, fuser.fused_width) == ("mean", WIDTH, WIDTH)
    np.testing.assert_allclose(fuser.fuse(memories), masked_mean(*padded(memories)).numpy(), atol=1e-6)


@FEW
@given(st.lists(st.integers(0, 60), min_size=1, max_size=30), seeds, st.booleans())
def test_a_memory_has_the_same_bits_in_every_batch(fuser: Fuser, lengths: list[int], seed: int, is_mean: bool) -> None:
    used = mean_fuser(width=WIDTH) if is_mean else fuser
    memories = memories_of(lengths, seed=seed)
    whole = used.fuse(memories)
    for row, memory in enumerate(memories):
        np.testing.assert_array_equal(used.fuse([memory])[0], whole[row])
    np.testing.assert_array_equal(used.fuse(memories[::-1])[::-1], whole)


def test_long_memories_are_fused_in_steps(fuser: Fuser) -> None:
    memories = memories_of([700] * 5)
    whole = fuser.fuse(memories)
    assert len(list(fuser._stacks(memories))) == 3
    np.testing.assert_array_equal(np.concatenate([fuser.fuse([memory]) for memory in memories]), whole)


def test_no_memories_give_no_rows(fuser: Fuser) -> None:
    assert fuser.fuse([]).shape == (0, FUSED_WIDTH)
    assert mean_fuser(width=WIDTH).fuse([]).shape == (0, WIDTH)


@pytest.mark.parametrize("shape", [(2, WIDTH + 1), (WIDTH,)], ids=["wider", "flat"])
def test_vectors_of_another_width_are_refused(fuser: Fuser, shape: tuple[int, ...]) -> None:
    with pytest.raises(ArtifactError, match="takes partition vectors of width 12; those of row 1"):
        fuser.fuse([*memories_of([2]), np.zeros(shape, np.float32)])


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    module = module_of(3)
    version = save_fusion(module, tmp_path / "new", encoder_version=ENCODER, extra={"run": "din-liber", "auc": 0.8})
    fuser = open_fuser(tmp_path / "new", width=WIDTH, encoder_version=ENCODER)
    assert version == fuser.version == fusion_version(module)
    assert version.startswith("attention-")
    assert (fuser.width, fuser.fused_width, fuser.encoder_version) == (WIDTH, FUSED_WIDTH, ENCODER)
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(fuser.weights[name], tensor.numpy())
    facts = json.loads((tmp_path / "new/fusion.json").read_text())
    assert facts["extra"] == {"run": "din-liber", "auc": 0.8}


def test_other_weights_are_another_version() -> None:
    assert fusion_version(module_of(0)) == fusion_version(module_of(0)) != fusion_version(module_of(1))


def test_a_fusion_of_another_width_is_refused(tmp_path: Path) -> None:
    save_fusion(module_of(0), tmp_path, encoder_version=ENCODER)
    with pytest.raises(ArtifactError, match=r"width 12; encoder\.width makes them 64"):
        open_fuser(tmp_path, width=64)


def test_a_fusion_of_another_encoder_is_refused(tmp_path: Path) -> None:
    save_fusion(module_of(0), tmp_path, encoder_version=ENCODER)
    with pytest.raises(ArtifactError, match="trained on vectors of the encoder 53aa5117-01234567"):
        open_fuser(tmp_path, width=WIDTH, encoder_version="53aa5117-89abcdef")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def state(path: Path, **facts: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("fusion.safetensors", flip, "the trained fusion was altered"),
        ("fusion.safetensors", Path.unlink, "is missing, but fusion.json is there"),
        ("fusion.safetensors", lambda path: path.write_bytes(b"{}"), "cannot be read as safetensors"),
        ("fusion.json", Path.unlink, "holds no trained fusion"),
        ("fusion.json", lambda path: state(path, version="attention-00000000"), "but the weights are those of"),
        ("fusion.json", lambda path: state(path, fused_width=9), "the shapes in fusion.safetensors are not"),
        ("fusion.json", lambda path: state(path, encoder_version=None), "'encoder_version' is None"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_file_is_refused_in_one_line(
    tmp_path: Path, name: str, damage: Callable[[Path], object], message: str
) -> None:
    save_fusion(module_of(0), tmp_path, encoder_version=ENCODER)
    damage(tmp_path / name)
    with pytest.raises(ArtifactError, match=message) as caught:
        open_fuser(tmp_path, width=WIDTH)
    assert str(tmp_path) in caught.value.message
    assert "\n" not in caught.value.message
