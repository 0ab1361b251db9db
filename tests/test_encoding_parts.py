"""The encoder stage on texts in parts: their vectors, and a memory that holds texts of both forms."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from liber_feast.encoding import Encoding
from liber_feast.errors import ConfigError, EncoderError
from liber_feast.form_vectors import NUMBER_COUNT, lay_out
from liber_feast.interest import LearnedText
from liber_feast.memory import Memory
from liber_feast.memory.publications import drop_encoder, encoder_in_use, use_encoder
from liber_feast.memory.schema import text_vectors, texts
from liber_feast.memory.texts import text_hash
from liber_feast.memory.vectors import partition_vectors
from liber_feast.parts import PARTS, PLAIN, parse_parts, summary_parts
from liber_feast.pca import fit_pca
from tests.memory_parts import (
    EchoLearner,
    TinyBert,
    TinyEncoding,
    append_all,
    behavior,
    learn_all,
    new_memory,
    no_progress,
)

WIDTH = 2
TEXT_WIDTH = 2 * WIDTH + NUMBER_COUNT


@dataclass(kw_only=True)
class PartsLearner(EchoLearner):
    """Answers in parts; a shift's dislikes are empty."""

    prompt_version: str = "test-1-parts"

    def _answer(self, text: str) -> LearnedText:
        likes, dislikes = f"film {text_hash(text)}", "" if " moved " in text else "the rest"
        parts = summary_parts(likes=likes, dislikes=dislikes, tendency=None, liked_count=2, disliked_count=0)
        return LearnedText(text=parts.text())


def taught(memory: Memory, *learners: EchoLearner) -> Memory:
    """Let each learner in turn write the texts of two more partitions of ann."""
    for number, learner in enumerate(learners):
        append_all(memory, [behavior(10 * number + second, item=f"i{number}-{second}") for second in range(4)])
        learn_all(memory, learner)
    return memory


def encoded(memory: Memory) -> dict[str, tuple[str, bytes]]:
    """Return version and vector of every text that has one."""
    joined = sa.select(texts.c.text, text_vectors.c.encoder_version, text_vectors.c.vector).join_from(
        texts, text_vectors, texts.c.text_id == text_vectors.c.text_id
    )
    with memory.reading() as connection:
        return {row.text: (row.encoder_version, row.vector) for row in connection.execute(joined)}


def ready(memory: Memory, version: str, *, width: int) -> Sequence[tuple[int, int]]:
    """Return index and width of the partition vectors."""
    with memory.reading() as connection:
        found = partition_vectors(connection, [1], encoder_version=version, version=version, width=width)
        return [(one.partition_index, len(one.vector)) for one in found]


def run(encoding: Encoding, memory: Memory) -> int:
    return encoding.run(memory, progress=no_progress)


def test_every_part_is_encoded_once_and_laid_out_by_one_pca(tmp_path: Path) -> None:
    memory = taught(new_memory(), PartsLearner(), PartsLearner())
    encoding = TinyEncoding(folder=tmp_path, width=WIDTH, form=PARTS)
    assert run(encoding, memory) == 7
    pca = encoding.pca()
    assert pca is not None
    version = f"{pca.version}-parts"
    asked = encoding.tiny.asked
    assert len(asked) == len(set(asked))
    assert set(asked) == {part for text in encoded(memory) for part in sides(text)} - {""}
    for text, (found_version, vector) in encoded(memory).items():
        expected = lay_out([text], encode=lambda some: pca.transform(TinyBert().encode(some)), form=PARTS)
        assert (found_version, vector) == (version, expected.tobytes())
    assert ready(memory, version, width=encoding.text_width) == [(index, 2 * TEXT_WIDTH) for index in range(4)]
    assert (run(encoding, memory), len(encoding.tiny.asked)) == (0, len(asked))


def sides(text: str) -> tuple[str, str]:
    parts = parse_parts(text)
    assert parts is not None
    return parts.likes, parts.dislikes


def test_texts_that_come_later_are_encoded_as_the_first_ones_are(tmp_path: Path) -> None:
    at_once, in_two = TinyEncoding(folder=tmp_path / "a", form=PARTS), TinyEncoding(folder=tmp_path / "b", form=PARTS)
    first = taught(new_memory(), PartsLearner(), PartsLearner())
    run(at_once, first)
    second = taught(new_memory(), PartsLearner())
    (tmp_path / "b").mkdir()
    for name in ("encoder.json", "pca.safetensors"):
        (tmp_path / "b" / name).write_bytes((tmp_path / "a" / name).read_bytes())
    run(in_two, second)
    append_all(second, [behavior(10 + number, item=f"i1-{number}") for number in range(4)])
    learn_all(second, PartsLearner())
    run(in_two, second)
    assert encoded(second) == encoded(first)


def test_likes_lie_in_the_space_of_items_where_the_pca_of_items_is_put_in_the_place_of_the_texts_pca(
    tmp_path: Path,
) -> None:
    items = fit_pca(
        TinyBert().encode([f"Film {number}. Drama." for number in range(9)]),
        width=WIDTH,
        model="tiny",
        model_hash="0" * 16,
    )
    memory = taught(new_memory(), PartsLearner())
    first = TinyEncoding(folder=tmp_path, width=WIDTH, form=PARTS)
    run(first, memory)
    items.save(tmp_path)  # as `liber encode` finds it, which lets it be that of the memory
    with memory.writing() as connection:
        drop_encoder(connection)
        use_encoder(connection, first.version_of(items))
    run(TinyEncoding(folder=tmp_path, width=WIDTH, form=PARTS, bert=TinyBert(model_hash="0" * 16)), memory)
    newest = {text: vector for text, (version, vector) in encoded(memory).items() if version == first.version_of(items)}
    assert len(newest) == 3  # noqa: PLR2004 (two summaries and a shift)
    for text, vector in newest.items():
        item_with_these_words = items.transform(TinyBert().encode([sides(text)[0]]))[0]
        assert np.frombuffer(vector, "<f4")[:WIDTH].tolist() == item_with_these_words.tolist()


def test_texts_of_the_other_form_are_neither_fitted_on_nor_encoded(tmp_path: Path) -> None:
    memory = taught(new_memory(), EchoLearner(), PartsLearner())
    parts = TinyEncoding(folder=tmp_path / "parts", width=WIDTH, form=PARTS)
    run(parts, memory)
    assert all(parse_parts(text) for text in encoded(memory))
    pca = parts.pca()
    assert pca is not None
    # Partitions 0 and 1 have plain texts: they have no vector until `liber recompute` writes them in parts.
    assert ready(memory, parts.version_of(pca), width=TEXT_WIDTH) == [(2, 2 * TEXT_WIDTH), (3, 2 * TEXT_WIDTH)]


def test_a_memory_of_one_form_is_refused_to_the_other_in_one_line(tmp_path: Path) -> None:
    memory = taught(new_memory(), EchoLearner(), EchoLearner())
    run(TinyEncoding(folder=tmp_path, width=WIDTH), memory)
    other = TinyEncoding(folder=tmp_path, width=WIDTH, form=PARTS)
    with pytest.raises(
        ConfigError, match=r"^batch_engine\.interest\.form is 'parts', and the memory's .* 'plain' texts"
    ):
        other.check_form(memory)
    with pytest.raises(EncoderError, match="made by the PCA .*, and .* has .*-parts"):
        run(other, memory)
    TinyEncoding(folder=tmp_path, width=WIDTH).check_form(memory)
    TinyEncoding(folder=tmp_path, width=WIDTH, form=PARTS).check_form(new_memory())


def test_fewer_distinct_parts_than_the_width_wait_as_plain_texts_do(tmp_path: Path) -> None:
    memory = taught(new_memory(), EchoLearner(), PartsLearner())
    encoding = TinyEncoding(folder=tmp_path, width=5, form=PARTS)
    assert run(encoding, memory) == 0
    assert encoding.missing_count == 1  # four texts; each counts once, whatever its parts
    with memory.reading() as connection:
        assert encoder_in_use(connection) is None
    assert np.array_equal(list(encoded(memory)), [])
    assert TinyEncoding(folder=tmp_path, width=5, form=PLAIN).text_width == 5
