"""The frozen PCA and the files it is kept in."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from liber_feast.errors import EncoderError
from liber_feast.pca import FrozenPca, TooFewTexts, fit_pca, load_pca
from liber_feast.tensor_file import tensor_hash, write_atomically

HASH = "0123456789abcdef" * 4


def drawn(rows: int, width: int = 48, *, seed: int = 0) -> NDArray[np.float32]:
    """Return vectors whose variance falls from axis to axis, as that of text vectors does."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(width, width)) / np.sqrt(width)
    scaled = generator.normal(size=(rows, width)) * np.geomspace(1, 0.05, width)
    return (scaled @ mixing + generator.normal(size=width)).astype(np.float32)


def fitted(vectors: NDArray[np.float32], *, width: int = 32) -> FrozenPca:
    return fit_pca(vectors, width=width, model="bundled", model_hash=HASH)


@pytest.mark.parametrize("rows", [60, 300], ids=["fewer rows than columns", "more rows than columns"])
def test_it_is_the_full_pca_of_scikit_learn(rows: int) -> None:
    vectors = drawn(rows, 96)
    pca = fitted(vectors)
    theirs = PCA(n_components=32, svd_solver="full").fit(vectors.astype(np.float64))
    np.testing.assert_allclose(pca.components, theirs.components_, atol=1e-5)
    np.testing.assert_allclose(pca.transform(vectors), theirs.transform(vectors.astype(np.float64)), atol=1e-5)


def test_its_components_are_orthonormal() -> None:
    components = fitted(drawn(200)).components
    np.testing.assert_allclose(components @ components.T, np.eye(32), atol=1e-5)


@settings(max_examples=25)
@given(st.integers(0, 50), st.integers(0, 10_000))
def test_a_row_has_the_same_bits_in_every_batch(rows: int, seed: int) -> None:
    pca = fitted(drawn(40, 64), width=8)
    vectors = drawn(rows, 64, seed=seed)
    whole = pca.transform(vectors)
    assert whole.shape == (rows, 8)
    assert whole.dtype == np.float32
    for row in range(rows):
        np.testing.assert_array_equal(pca.transform(vectors[row : row + 1]), whole[row : row + 1])


@given(st.permutations(range(30)), st.lists(st.integers(0, 29), max_size=10))
def test_the_same_set_of_texts_gives_the_same_pca(order: list[int], again: list[int]) -> None:
    vectors = drawn(30, 24)
    one, other = fitted(vectors, width=8), fitted(vectors[[*order, *again]], width=8)
    assert one.version == other.version
    assert other.fitted_text_count == 30


@given(arrays(np.float32, (6, 8), elements=st.floats(-2, 2, width=32)))
def test_few_or_equal_texts_give_finite_vectors_or_are_said_to_be_too_few(vectors: NDArray[np.float32]) -> None:
    distinct = len(np.unique(vectors, axis=0))
    if distinct < 4:
        with pytest.raises(TooFewTexts) as caught:
            fitted(vectors, width=4)
        assert caught.value.missing_count == 4 - distinct
    else:
        assert np.isfinite(fitted(vectors, width=4).transform(vectors)).all()


def test_too_few_texts_say_how_many_are_missing() -> None:
    with pytest.raises(TooFewTexts, match="there are 5, so 27 are missing") as caught:
        fitted(np.repeat(drawn(5), 10, axis=0))
    assert (caught.value.text_count, caught.value.missing_count) == (5, 27)
    assert isinstance(caught.value, EncoderError)


def test_no_texts_are_too_few() -> None:
    with pytest.raises(TooFewTexts) as caught:
        fitted(np.empty((0, 48), np.float32))
    assert caught.value.missing_count == 32


@pytest.mark.parametrize("width", [49, 0, -1])
def test_a_width_that_the_model_has_not_is_refused(width: int) -> None:
    with pytest.raises(EncoderError, match="allow 1 to 48"):
        fitted(drawn(400), width=width)


def test_vectors_that_are_not_finite_are_refused() -> None:
    vectors = drawn(50)
    vectors[3, 7] = np.nan
    with pytest.raises(EncoderError, match="not finite"):
        fitted(vectors)


def test_vectors_of_another_model_are_refused() -> None:
    with pytest.raises(EncoderError, match="fitted on vectors of width 48"):
        fitted(drawn(50)).transform(drawn(2, 16))


def test_the_version_is_made_of_both_hashes() -> None:
    one, other = fitted(drawn(50)), fitted(drawn(50, seed=1))
    assert one.version == f"01234567-{one.pca_hash[:8]}"
    assert one.version != other.version


def test_what_is_saved_is_loaded_to_the_last_bit(tmp_path: Path) -> None:
    pca, vectors = fitted(drawn(50)), drawn(20, seed=2)
    pca.save(tmp_path / "encoder")
    loaded = load_pca(tmp_path / "encoder")
    np.testing.assert_array_equal(loaded.transform(vectors), pca.transform(vectors))
    assert (loaded.version, loaded.model, loaded.fitted_text_count) == (pca.version, "bundled", 50)
    assert sorted(path.name for path in (tmp_path / "encoder").iterdir()) == ["encoder.json", "pca.safetensors"]
    facts = json.loads((tmp_path / "encoder/encoder.json").read_text())
    assert facts == {
        "format_version": 1,
        "model": "bundled",
        "model_hash": HASH,
        "model_width": 48,
        "width": 32,
        "pca_hash": pca.pca_hash,
        "fitted_text_count": 50,
    }


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def state(path: Path, **facts: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("pca.safetensors", flip, "the frozen PCA was altered"),
        ("pca.safetensors", cut, "cannot be read as safetensors"),
        ("pca.safetensors", Path.unlink, "is missing, but encoder.json is there"),
        ("encoder.json", cut, "cannot be read as JSON"),
        ("encoder.json", Path.unlink, "holds no frozen PCA"),
        ("encoder.json", lambda path: path.write_text("[]"), "not a frozen PCA of format version 1"),
        ("encoder.json", lambda path: state(path, format_version=2), "not a frozen PCA of format version 1"),
        ("encoder.json", lambda path: state(path, pca_hash="0" * 64), "the frozen PCA was altered"),
        ("encoder.json", lambda path: state(path, width=31), "the shapes in pca.safetensors are not"),
        ("encoder.json", lambda path: state(path, width="32"), "'width' is '32', which is no int"),
        ("encoder.json", lambda path: state(path, model_hash=None), "'model_hash' is None, which is no str"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_file_is_refused_in_one_line(
    tmp_path: Path, name: str, damage: Callable[[Path], object], message: str
) -> None:
    fitted(drawn(50)).save(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(EncoderError, match=message) as caught:
        load_pca(tmp_path)
    assert str(tmp_path) in caught.value.message
    assert "\n" not in caught.value.message


def test_another_pca_replaces_the_one_that_was_there(tmp_path: Path) -> None:
    fitted(drawn(50)).save(tmp_path)
    other = fitted(drawn(50, seed=1))
    other.save(tmp_path)
    assert load_pca(tmp_path).version == other.version


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_hash_tells_names_shapes_and_values_apart() -> None:
    one = np.arange(6, dtype=np.float32)
    hashes = [
        tensor_hash({"a": one}),
        tensor_hash({"b": one}),
        tensor_hash({"a": one.reshape(2, 3)}),
        tensor_hash({"a": one.reshape(3, 2)}),
        tensor_hash({"a": -one}),
        tensor_hash({"a": one.astype(np.float64)}),
        tensor_hash({"a": one[:3], "b": one[3:]}),
    ]
    assert len(set(hashes)) == len(hashes)
    assert tensor_hash({"a": one.reshape(2, 3).T}) == tensor_hash({"a": one.reshape(2, 3).T.copy()})
    assert tensor_hash({"a": one, "b": one}) == tensor_hash(dict(reversed({"a": one, "b": one}.items())))
