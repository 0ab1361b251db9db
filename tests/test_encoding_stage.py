"""The encoder stage: each text is encoded once, and vectors wait until there are texts enough to fit the PCA."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import sqlalchemy as sa

import liber_feast.encoding
from liber_feast.encoding import Encoding
from liber_feast.errors import ConfigError, EncoderError
from liber_feast.interest import Item
from liber_feast.memory import Memory
from liber_feast.memory.schema import text_vectors, texts
from liber_feast.title_vectors import TitleVectors
from tests.memory_parts import (
    EchoLearner,
    SmallCatalog,
    TinyBert,
    TinyEncoding,
    append_all,
    behavior,
    learn_all,
    new_memory,
    no_progress,
)


class BertBroke(Exception):
    """`BreakingBert` was asked once too often."""


@dataclass(kw_only=True)
class BreakingBert(TinyBert):
    """Breaks when it is asked for the time `calls` + 1."""

    calls: int

    def encode(
        self, texts: Sequence[str], *, progress: Callable[[int], object] | None = None
    ) -> npt.NDArray[np.float32]:
        if self.calls == 0:
            raise BertBroke
        self.calls -= 1
        return super().encode(texts, progress=progress)


class DeafBert(TinyBert):
    """Hears the same in every text."""

    def encode(
        self, texts: Sequence[str], *, progress: Callable[[int], object] | None = None
    ) -> npt.NDArray[np.float32]:
        super().encode(texts, progress=progress)
        return np.ones((len(texts), self.width), np.float32)


def taught(*, partition_count: int, memory: Memory | None = None, says: str | None = None) -> Memory:
    """Return a memory of ann's partitions with all their texts: 2 * partition_count - 1 of them."""
    found = memory or new_memory()
    append_all(found, [behavior(second, item=f"i{second}") for second in range(2 * partition_count)])
    learn_all(found, EchoLearner(says=says))
    return found


def vectors(memory: Memory) -> dict[int, tuple[str, bytes]]:
    with memory.reading() as connection:
        rows = connection.execute(sa.select(text_vectors)).all()
    return {row.text_id: (row.encoder_version, row.vector) for row in rows}


def run(encoding: Encoding, memory: Memory) -> int:
    return encoding.run(memory, progress=no_progress)


def test_with_fewer_texts_than_the_width_nothing_is_encoded_and_the_missing_ones_are_counted(tmp_path: Path) -> None:
    memory, encoding = taught(partition_count=2), TinyEncoding(folder=tmp_path, width=5)
    assert run(encoding, memory) == 0
    assert encoding.missing_count == 2
    assert encoding.pca() is None
    assert encoding.tiny.asked == []
    assert vectors(memory) == {}


def test_when_the_texts_are_there_the_pca_is_fitted_and_every_text_gets_its_vector(tmp_path: Path) -> None:
    encoding = TinyEncoding(folder=tmp_path, width=5)
    memory = taught(partition_count=2)
    run(encoding, memory)
    taught(partition_count=3, memory=memory)
    assert run(encoding, memory) == 5
    assert encoding.missing_count == 0
    pca = encoding.pca()
    assert pca is not None
    with memory.reading() as connection:
        text_of = {row.text_id: row.text for row in connection.execute(sa.select(texts))}
    expected = pca.transform(TinyBert().encode(list(text_of.values())))
    found = vectors(memory)
    assert found == {
        text_id: (pca.version, vector.tobytes()) for text_id, vector in zip(text_of, expected, strict=True)
    }


def test_a_second_run_and_a_later_process_encode_nothing_again(tmp_path: Path) -> None:
    memory, encoding = taught(partition_count=3), TinyEncoding(folder=tmp_path)
    assert run(encoding, memory) == 5
    before = vectors(memory)
    assert run(encoding, memory) == 0
    later = TinyEncoding(folder=tmp_path)
    assert run(later, memory) == 0
    assert later.tiny.asked == []
    assert vectors(memory) == before


def test_new_texts_are_projected_by_the_pca_of_the_first(tmp_path: Path) -> None:
    memory, encoding = taught(partition_count=3), TinyEncoding(folder=tmp_path)
    run(encoding, memory)
    before, version = vectors(memory), encoding.pca().version  # type: ignore[union-attr]
    taught(partition_count=5, memory=memory)
    assert run(encoding, memory) == 4
    after = vectors(memory)
    assert before.items() <= after.items()
    assert {found for found, _ in after.values()} == {version}


def test_identical_texts_are_encoded_once_in_a_run(tmp_path: Path) -> None:
    memory = taught(partition_count=2)
    append_all(memory, [behavior(second, user="bob") for second in range(4)])
    append_all(memory, [behavior(second, user="cid") for second in range(4)])
    learn_all(memory, EchoLearner(says="the same"))
    encoding = TinyEncoding(folder=tmp_path)
    assert run(encoding, memory) == 4
    assert len(encoding.tiny.asked) == len(set(encoding.tiny.asked)) == 4
    found = vectors(memory)
    assert len(found) == 9
    assert len({vector for _, vector in found.values()}) == 4


def test_identical_texts_are_encoded_once_across_runs(tmp_path: Path) -> None:
    memory = taught(partition_count=2)
    encoding = TinyEncoding(folder=tmp_path)
    run(encoding, memory)
    append_all(memory, [behavior(second, user="bob", item=f"b{second}") for second in range(2)])
    learn_all(memory, EchoLearner(says="ann likes the i0, the i1"))
    asked = list(encoding.tiny.asked)
    assert run(encoding, memory) == 0
    assert encoding.tiny.asked == asked
    assert len(vectors(memory)) == 4
    assert len({vector for _, vector in vectors(memory).values()}) == 3


def test_texts_that_encode_alike_do_not_fit_a_pca_and_the_missing_ones_are_counted(tmp_path: Path) -> None:
    memory, encoding = taught(partition_count=2), TinyEncoding(folder=tmp_path, width=3, bert=DeafBert())
    assert run(encoding, memory) == 3
    assert encoding.missing_count == 2
    assert encoding.pca() is None
    assert vectors(memory) == {}


def test_texts_that_did_not_fit_a_pca_go_through_bert_again_only_when_there_are_more_of_them(tmp_path: Path) -> None:
    memory, encoding = taught(partition_count=2), TinyEncoding(folder=tmp_path, width=3, bert=DeafBert())
    run(encoding, memory)
    assert (run(encoding, memory), encoding.missing_count, len(encoding.tiny.asked)) == (0, 2, 3)
    taught(partition_count=3, memory=memory)
    assert run(encoding, memory) == 5


def test_once_the_pca_is_fitted_a_run_for_some_users_encodes_their_texts_alone(tmp_path: Path) -> None:
    memory, encoding = taught(partition_count=2), TinyEncoding(folder=tmp_path)
    assert encoding.run(memory, progress=no_progress, user_keys=[]) == 3  # the PCA is fitted on everybody's
    taught(partition_count=3, memory=memory)
    append_all(memory, [behavior(second, user="bob", item=f"b{second}") for second in range(2)])
    learn_all(memory)
    assert encoding.run(memory, progress=no_progress, user_keys=[]) == 0
    assert encoding.run(memory, progress=no_progress, user_keys=[2]) == 1
    assert encoding.tiny.asked[-1] == "bob likes the b0, the b1"
    assert run(encoding, memory) == 2


def test_the_first_vectors_do_not_depend_on_the_order_in_which_the_texts_came(tmp_path: Path) -> None:
    first, second = new_memory(), new_memory()
    for memory, order in ((first, ("ann", "bob")), (second, ("bob", "ann"))):
        for user in order:
            append_all(memory, [behavior(second, user=user, item=f"{user} {second}") for second in range(4)])
            learn_all(memory)
    versions = []
    for name, memory in (("first", first), ("second", second)):
        encoding = TinyEncoding(folder=tmp_path / name)
        run(encoding, memory)
        versions.append(encoding.pca().version)  # type: ignore[union-attr]
    assert versions[0] == versions[1]
    assert {vector for _, vector in vectors(first).values()} == {vector for _, vector in vectors(second).values()}


def test_vectors_are_kept_in_pieces_and_after_a_crash_only_the_rest_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liber_feast.encoding, "TEXTS_PER_COMMIT", 2)
    memory = taught(partition_count=2)
    run(TinyEncoding(folder=tmp_path), memory)
    taught(partition_count=5, memory=memory)
    breaking = TinyEncoding(folder=tmp_path, bert=BreakingBert(calls=2))
    with pytest.raises(BertBroke):
        run(breaking, memory)
    assert len(vectors(memory)) == 3 + 4
    rest = TinyEncoding(folder=tmp_path)
    assert run(rest, memory) == 2
    assert not set(rest.tiny.asked) & set(breaking.tiny.asked)
    assert len(vectors(memory)) == 9


def test_a_text_that_was_encoded_before_gets_its_vector_no_earlier_than_the_new_ones_beside_it(tmp_path: Path) -> None:
    """Else another process could publish a user's later partition, whose text is known, before the earlier ones."""
    memory = taught(partition_count=2)
    run(TinyEncoding(folder=tmp_path), memory)
    append_all(
        memory, [behavior(4, item="new"), behavior(5, item="newer"), behavior(6, item="i0"), behavior(7, item="i1")]
    )
    learn_all(memory)
    with pytest.raises(BertBroke):
        run(TinyEncoding(folder=tmp_path, bert=BreakingBert(calls=0)), memory)
    assert len(vectors(memory)) == 3
    assert run(TinyEncoding(folder=tmp_path), memory) == 3
    assert len(vectors(memory)) == 7


def test_a_pca_fitted_by_another_process_ends_the_waiting(tmp_path: Path) -> None:
    memory, waiting = taught(partition_count=1), TinyEncoding(folder=tmp_path, width=3)
    run(waiting, memory)
    assert waiting.missing_count == 2
    taught(partition_count=2, memory=memory)
    run(TinyEncoding(folder=tmp_path, width=3), memory)
    run(waiting, memory)
    assert waiting.missing_count == 0
    assert waiting.pca() is not None


def test_of_two_runs_that_fit_at_once_the_pca_saved_first_stays(tmp_path: Path) -> None:
    memory = taught(partition_count=2)

    class OvertakenBert(TinyBert):
        """While it encodes, more texts come and another run fits its PCA."""

        def encode(
            self, texts: Sequence[str], *, progress: Callable[[int], object] | None = None
        ) -> npt.NDArray[np.float32]:
            taught(partition_count=4, memory=memory)
            run(TinyEncoding(folder=tmp_path), memory)
            return super().encode(texts, progress=progress)

    overtaken = TinyEncoding(folder=tmp_path, bert=OvertakenBert())
    run(overtaken, memory)
    pca = overtaken.pca()
    assert pca is not None
    assert pca.fitted_text_count == 7
    assert {version for version, _ in vectors(memory).values()} == {pca.version}
    assert len(vectors(memory)) == 7


def test_two_runs_at_once_keep_every_vector_once(tmp_path: Path) -> None:
    memory = taught(partition_count=2, memory=new_memory(tmp_path))
    run(TinyEncoding(folder=tmp_path / "encoder"), memory)
    taught(partition_count=40, memory=memory)
    meet, errors = threading.Barrier(2), []

    class MeetingBert(TinyBert):
        """Encodes when both runs have read what waits."""

        def encode(
            self, texts: Sequence[str], *, progress: Callable[[int], object] | None = None
        ) -> npt.NDArray[np.float32]:
            meet.wait()
            return super().encode(texts, progress=progress)

    def run_one() -> None:
        try:
            run(TinyEncoding(folder=tmp_path / "encoder", bert=MeetingBert()), memory)
        except sa.exc.SQLAlchemyError as error:
            errors.append(error)

    threads = [threading.Thread(target=run_one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(vectors(memory)) == 79


@pytest.mark.parametrize(("model", "width"), [("tiny", 3), ("other", 2)], ids=["another width", "another model"])
def test_a_pca_of_another_model_or_width_than_configured_is_refused(tmp_path: Path, model: str, width: int) -> None:
    run(TinyEncoding(folder=tmp_path), taught(partition_count=2))
    with pytest.raises(ConfigError, match="encoder asks for model .* was fitted for 'tiny' and 2"):
        Encoding(folder=tmp_path, model=model, width=width).pca()


def test_a_model_that_is_not_the_one_of_the_pca_is_refused_before_a_text_is_encoded(tmp_path: Path) -> None:
    memory = taught(partition_count=2)
    run(TinyEncoding(folder=tmp_path), memory)
    taught(partition_count=3, memory=memory)
    altered = TinyEncoding(folder=tmp_path, bert=TinyBert(model_hash="fedcba9876543210"))
    with pytest.raises(EncoderError, match="Set encoder.model back"):
        run(altered, memory)
    assert altered.tiny.asked == []
    assert len(vectors(memory)) == 3


def test_progress_counts_the_texts_that_go_through_bert_and_says_how_many_there_are(tmp_path: Path) -> None:
    memory, encoding, seen = taught(partition_count=3), TinyEncoding(folder=tmp_path), []

    def progress(stage: str, count: int, total: int | None) -> None:
        seen.append((stage, count, total))

    encoding.run(memory, progress=progress)
    taught(partition_count=4, memory=memory)
    encoding.run(memory, progress=progress)
    assert seen == [("texts encoded", 5, 5), ("texts encoded", 2, 2)]


def test_the_bundled_model_encodes_the_texts_of_a_memory(tmp_path: Path) -> None:
    memory = taught(partition_count=2)
    encoding = Encoding(folder=tmp_path, model="bundled", width=2)
    assert run(encoding, memory) == 3
    found = [np.frombuffer(vector, "<f4") for _, vector in vectors(memory).values()]
    assert [vector.shape for vector in found] == [(2,)] * 3
    assert len({vector.tobytes() for vector in found}) == 3
    assert encoding.bert() is encoding.bert()


class UntitledCatalog(SmallCatalog):
    """Knows no title of the items whose id begins with x, and counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def items(self, item_ids: Sequence[str]) -> dict[str, Item]:  # type: ignore[override]
        self.asked += item_ids
        found = dict(super().items(item_ids))
        return {key: Item(item_id=key) if key.startswith("x") else item for key, item in found.items()}


class LateCatalog(SmallCatalog):
    """Knows no title until the items are loaded."""

    is_loaded = False

    def items(self, item_ids: Sequence[str]) -> dict[str, Item]:  # type: ignore[override]
        return dict(super().items(item_ids)) if self.is_loaded else {key: Item(item_id=key) for key in item_ids}


def test_titles_are_encoded_once_and_items_without_a_title_have_no_vector(tmp_path: Path) -> None:
    encoding, catalog = TinyEncoding(folder=tmp_path), UntitledCatalog()
    title_vectors = TitleVectors(encoding=encoding, catalog=catalog)
    first = title_vectors(["a", "x1", "b"])
    assert first.table.shape == (2, 8)
    assert first.codes(["a", "b", "x1", "unknown"]).tolist() == [0, 1, -1, -1]
    second = title_vectors(["b", "c", "x1"])
    assert second.table.shape == (2, 8)
    assert (second.vector("b") == first.vector("b")).all()
    assert encoding.tiny.asked == ["the a", "the b", "the c"]
    assert catalog.asked == ["a", "x1", "b", "c", "x1"]


def test_an_item_that_gets_its_title_later_gets_its_vector_then(tmp_path: Path) -> None:
    encoding, catalog = TinyEncoding(folder=tmp_path), LateCatalog()
    title_vectors = TitleVectors(encoding=encoding, catalog=catalog)
    assert len(title_vectors(["a"]).table) == 0
    catalog.is_loaded = True
    assert len(title_vectors(["a"]).table) == 1


def test_without_any_title_there_is_no_vector_and_nothing_is_encoded(tmp_path: Path) -> None:
    encoding = TinyEncoding(folder=tmp_path)
    found = TitleVectors(encoding=encoding, catalog=UntitledCatalog())(["x1", "x2"])
    assert found.table.shape == (0, 8)
    assert encoding.tiny.asked == []
