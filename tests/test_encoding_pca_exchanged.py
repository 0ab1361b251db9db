"""The PCA's folder is lost, exchanged or brought back: the memory's vectors are of one PCA, and another is refused."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from liber_feast.errors import EncoderError, RetryableError
from liber_feast.memory import Memory
from liber_feast.memory.leases import FIT_PCA
from liber_feast.memory.publications import PCA_VERSION, drop_encoder, encoder_in_use, use_version
from liber_feast.memory.schema import leases, settings, text_vectors
from liber_feast.memory.vectors import VECTOR
from tests import services
from tests.memory_parts import (
    OnlineRows,
    TinyBert,
    TinyEncoding,
    append_all,
    behavior,
    learn_all,
    no_progress,
)
from tests.operations_parts import publisher_of

memory_url = services.memory_url


def seal(memory: Memory, *, start: int, count: int = 6) -> None:
    append_all(memory, [behavior(second, item=f"i{second}") for second in range(start, start + count)])
    learn_all(memory)


def run(folder: Path, memory: Memory, *, seed: int = 0) -> str:
    """Encode what is missing as a new process does; return the PCA's version."""
    encoding = TinyEncoding(folder=folder, bert=TinyBert(seed=seed))
    encoding.run(memory, progress=no_progress)
    pca = encoding.pca()
    assert pca is not None
    return pca.version


def versions(memory: Memory) -> set[str]:
    with memory.reading() as connection:
        return set(connection.scalars(sa.select(text_vectors.c.encoder_version).distinct()))


@pytest.fixture
def memory(memory_url: str, tmp_path: Path) -> Iterator[Memory]:
    memory = Memory.open(memory_url, base=tmp_path)
    seal(memory, start=0)
    yield memory
    memory.close()


def exchange(folder: Path, other: Path) -> str:
    """Put the PCA of another store in the place of this one's; return its version."""
    memory = Memory.open("sqlite://", base=other)
    seal(memory, start=1_000)
    version = run(other, memory, seed=1)
    memory.close()
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    return version


def test_a_pca_that_is_exchanged_is_refused_by_both_versions_and_nothing_is_encoded_by_it(
    memory: Memory, tmp_path: Path
) -> None:
    folder = tmp_path / "encoder"
    before = run(folder, memory)
    other = exchange(folder, tmp_path / "other")
    seal(memory, start=6)
    with pytest.raises(EncoderError, match=f"PCA {before}, and .*encoder has {other}.*liber encode"):
        run(folder, memory)
    assert versions(memory) == {before}


def test_a_pca_that_is_lost_is_not_fitted_anew_and_the_run_goes_on_when_it_is_back(
    memory: Memory, tmp_path: Path
) -> None:
    folder = tmp_path / "encoder"
    before = run(folder, memory)
    folder.rename(tmp_path / "away")
    seal(memory, start=6)
    with pytest.raises(EncoderError, match=f"PCA {before}, and .*encoder has none"):
        run(folder, memory)
    assert not folder.exists()
    (tmp_path / "away").rename(folder)
    assert run(folder, memory) == before
    assert versions(memory) == {before}


def test_a_pca_that_lies_there_before_the_first_vector_becomes_that_of_the_memory(
    memory: Memory, tmp_path: Path
) -> None:
    folder = tmp_path / "encoder"
    folder.mkdir()
    given = exchange(folder, tmp_path / "other")
    assert run(folder, memory) == given
    with memory.reading() as connection:
        assert encoder_in_use(connection) == given


def test_a_process_that_has_read_a_pca_follows_when_another_one_brings_in_the_next(
    memory: Memory, tmp_path: Path
) -> None:
    folder = tmp_path / "encoder"
    running = TinyEncoding(folder=folder)
    running.run(memory, progress=no_progress)
    shutil.rmtree(folder)
    with memory.writing() as connection:
        drop_encoder(connection)
    seal(memory, start=6)
    after = run(folder, memory)
    seal(memory, start=12)
    running.run(memory, progress=no_progress)
    pca = running.pca_of(memory)
    assert pca is not None
    assert pca.version == after
    with memory.reading() as connection:
        of_after = sa.select(sa.func.count()).where(text_vectors.c.encoder_version == after)
        assert connection.scalar(of_after) == 9 + 8  # summaries and shifts of nine partitions


def test_a_memory_from_before_its_pca_was_named_knows_it_by_what_was_published(memory: Memory, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    before = run(folder, memory)
    with memory.writing() as connection:
        use_version(connection, VECTOR, f"3/{before}")
        connection.execute(settings.delete().where(settings.c.name == PCA_VERSION))
    exchange(folder, tmp_path / "other")
    with pytest.raises(EncoderError, match=f"PCA {before}"):
        run(folder, memory)


def test_who_began_to_publish_vectors_of_the_pca_of_before_marks_nothing(memory: Memory, tmp_path: Path) -> None:
    before, online = run(tmp_path / "encoder", memory), OnlineRows()
    slow = publisher_of(tmp_path, memory, online, version=before)
    with memory.writing() as connection:
        drop_encoder(connection)
    after = run(tmp_path / "anew", memory, seed=1)
    with pytest.raises(RetryableError, match="by another PCA since"):
        slow.publish()
    publisher_of(tmp_path, memory, online, version=after).publish()
    assert {row["encoder_version"] for row in online.rows["long_term_memory"].values()} == {after}


def test_of_two_processes_that_bring_a_pca_the_first_one_stays(memory: Memory, tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()
    exchange(tmp_path / "encoder", tmp_path / "other")
    late = TinyEncoding(folder=tmp_path / "encoder", bert=TinyBert(seed=1))
    pca = late.pca_of(memory)
    first = run(tmp_path / "first", memory)
    assert pca is not None
    with pytest.raises(EncoderError, match=f"PCA {first}"):
        late.run(memory, progress=no_progress)
    with memory.reading() as connection:
        assert connection.scalar(sa.select(leases.c.owner).where(leases.c.name == FIT_PCA)) is None
    assert versions(memory) == {first}
