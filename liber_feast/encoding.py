"""The encoder stage on the memory: every text that has no vector gets one; the PCA is fitted on the first texts.

Identical texts are encoded once, in a run and across runs. The memory names the PCA that its vectors are made by; the
folder of the PCA may be lost, exchanged or brought back from elsewhere, and another PCA than that one is refused.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from liber_feast.errors import ConfigError, EncoderError
from liber_feast.form_vectors import Floats, lay_out, pieces, text_width, version_of
from liber_feast.interest import Progress
from liber_feast.memory import Memory
from liber_feast.memory.leases import FIT_PCA, Lease, LeaseLost, held, renew
from liber_feast.memory.publications import PCA_VERSION, encoder_in_use, use_encoder
from liber_feast.memory.settings import keep_setting
from liber_feast.memory.vectors import (
    add_vectors,
    distinct_text_count,
    distinct_texts,
    known_vectors,
    texts_without_vector,
)
from liber_feast.parts import PLAIN, form_of
from liber_feast.pca import FrozenPca, TooFewTexts, fit_pca, load_pca

if TYPE_CHECKING:
    from liber_feast.encoder import BertEncoder, TextEncoder

TEXTS_PER_COMMIT = 512


class Encoding:
    """BERT and the frozen PCA of one feature repo, for texts of one form.

    Attributes:
        width: floats of the PCA.
        missing_count: distinct texts that are still missing before the PCA can be fitted; 0 once it is.
    """

    def __init__(self, *, folder: Path, model: str, width: int, form: str = PLAIN) -> None:
        self.folder, self.model, self.width, self.form = folder, model, width, form
        self.missing_count = 0
        self._unfit_count = 0  # distinct texts that did not fit a PCA
        self._bert: BertEncoder | None = None
        self._pca: FrozenPca | None = None

    @property
    def text_width(self) -> int:
        """Floats of a text's vector."""
        return text_width(self.width, form=self.form)

    def version_of(self, pca: FrozenPca) -> str:
        """Return the version of vectors made by a PCA: its own, and the form."""
        return version_of(pca.version, form=self.form)

    def check_form(self, memory: Memory) -> None:
        """Check that the vectors of a memory, if it has any, are of texts of this form.

        Raises:
            ConfigError: they are not.
        """
        with memory.reading() as connection:
            version = encoder_in_use(connection)
        if version is not None and form_of(version) != self.form:
            raise ConfigError(
                f"batch_engine.interest.form is {self.form!r}, and the memory's vectors ({version}) are of"
                f" {form_of(version)!r} texts. Restore the key; or run `liber encode`, which changes to vectors of"
                f" {self.form!r} texts, and then `liber recompute --since`, which writes such texts."
            )

    def pca(self) -> FrozenPca | None:
        """Return the frozen PCA, or None while it is not fitted.

        Raises:
            ConfigError: it was fitted for another model or width than configured.
        """
        if self._pca is None and (self.folder / "encoder.json").exists():
            pca = load_pca(self.folder)
            if (pca.model, pca.width) != (self.model, self.width):
                raise ConfigError(
                    f"batch_engine.encoder asks for model {self.model!r} and width {self.width}, but the PCA in"
                    f" {self.folder} was fitted for {pca.model!r} and {pca.width}. Restore the keys, or move that"
                    " folder away and run `liber encode` to make every vector anew."
                )
            self._pca = pca
        return self._pca

    def pca_of(self, memory: Memory) -> FrozenPca | None:
        """Return the PCA that the memory's vectors are made by, or None while none is fitted.

        Raises:
            ConfigError: as `pca`.
            EncoderError: the folder has another one, or none.
        """
        with memory.reading() as connection:
            version = encoder_in_use(connection)
        if self._pca is not None and version is not None and self.version_of(self._pca) != version:
            self._pca = None  # another process may have brought in another one
        pca = self.pca()
        if version is None or (pca is not None and self.version_of(pca) == version):
            return pca
        raise EncoderError(
            f"The vectors of the memory are made by the PCA {version}, and {self.folder} has"
            f" {self.version_of(pca) if pca else 'none'}. Bring that folder back (`liber backup` copies it), or run"
            " `liber encode` to make every vector anew."
        )

    def bert(self) -> "BertEncoder":
        """Return the model, opened once."""
        if self._bert is None:
            from liber_feast.encoder import open_bert  # noqa: PLC0415 (torch loads only where a text is encoded)

            self._bert = open_bert(self.model)
        return self._bert

    def run(self, memory: Memory, *, progress: Progress, user_keys: Sequence[int] | None = None) -> int:
        """Encode every text that has no vector, of all users or of some; return how many went through BERT.

        The PCA is fitted on the texts of all users, and then every text gets its vector. While there are fewer
        distinct texts than the PCA is wide nothing is encoded and `missing_count` is set. Of several processes one
        fits it, and the others wait.

        Raises:
            RetryableError: this process was paused while it fitted, and another one fits since.
            EncoderError: the memory's vectors are made by another PCA; see `pca_of`.
        """
        pca = self.pca_of(memory)
        if pca is None:
            if not self._may_fit(memory):
                return 0
            with held(memory, FIT_PCA) as lease:
                pca = self.pca_of(memory)
                if pca is None:
                    return self._fit(memory, lease, progress)
        self._take(memory, pca)
        return self._encode(memory, pca, progress=progress, user_keys=user_keys)

    def _take(self, memory: Memory, pca: FrozenPca) -> None:
        """Let a PCA that lay in the folder before the memory had vectors be that of the memory; the first one stays."""
        with memory.reading() as connection:
            is_taken = encoder_in_use(connection) is not None
        if not is_taken:
            memory.retrying(lambda connection: use_encoder(connection, self.version_of(pca)), what="setting")
            self.pca_of(memory)

    def _encode(self, memory: Memory, pca: FrozenPca, *, progress: Progress, user_keys: Sequence[int] | None) -> int:
        self.missing_count = 0  # another process may have fitted it
        version = self.version_of(pca)
        with memory.reading() as connection:
            waiting = texts_without_vector(connection, version, user_keys=user_keys)
            known = known_vectors(connection, list(waiting), encoder_version=version)
        ids = {key: text_ids for key, (_text, text_ids) in waiting.items()}
        new = sorted((key for key in waiting if key not in known), key=lambda key: len(waiting[key][0]))
        if not new:  # the model is not opened for nothing
            _keep(memory, known, ids=ids, version=version)
            return 0
        encoder = self._encoder(pca)
        groups = [new[start : start + TEXTS_PER_COMMIT] for start in range(0, len(new), TEXTS_PER_COMMIT)]
        texts = [[waiting[key][0] for key in some] for some in groups]
        told = _of(progress, sum(len(pieces(some, form=self.form)) for some in texts))
        for keys, some in zip(groups, texts, strict=True):
            vectors = lay_out(some, encode=lambda parts: encoder.encode(parts, progress=told), form=self.form)
            # What was known comes with the first: whoever publishes meanwhile sees a user's few new texts all at once.
            _keep(memory, {**known, **_as_bytes(keys, vectors)}, ids=ids, version=version)
            known = {}
        return len(new)

    def _may_fit(self, memory: Memory) -> bool:
        """Return whether there are enough texts for a PCA, as far as counting them says."""
        with memory.reading() as connection:
            count = distinct_text_count(connection, form=self.form)
        if count <= self._unfit_count:  # BERT would say the same again
            return False
        self.missing_count = max(0, self.width - count)
        return not self.missing_count

    def _fit(self, memory: Memory, lease: Lease, progress: Progress) -> int:
        with memory.reading() as connection:
            every = distinct_texts(connection, form=self.form)
        bert, encoded = self.bert(), pieces(list(every.values()), form=self.form)
        vectors = bert.encode(encoded, progress=_of(progress, len(encoded)))
        try:
            pca = fit_pca(vectors, width=self.width, model=self.model, model_hash=bert.model_hash)
        except TooFewTexts as error:  # texts that differ can still encode alike
            self.missing_count, self._unfit_count = error.missing_count, len(every)
            return len(every)
        try:
            with memory.writing("fit_pca") as connection:
                renew(connection, lease)
                keep_setting(connection, PCA_VERSION, self.version_of(pca))
                pca.save(self.folder)
        except LeaseLost:  # this process was paused, and another one fits since: the PCA saved first stays
            if self.pca() is None:
                raise
        pca = self.pca() or pca
        version, projected = self.version_of(pca), pca.transform(vectors)
        with memory.reading() as connection:
            waiting = texts_without_vector(connection, version)
        ids = {key: waiting[key][1] for key in every if key in waiting}
        laid = lay_out(list(every.values()), encode=lambda _pieces: projected, form=self.form)
        _keep(memory, _as_bytes(list(every), laid), ids=ids, version=version)
        return len(every)

    def _encoder(self, pca: FrozenPca) -> "TextEncoder":
        from liber_feast.encoder import TextEncoder  # noqa: PLC0415

        return TextEncoder(bert=self.bert(), pca=pca)


def _of(progress: Progress, total: int) -> Callable[[int], object]:
    return lambda count: progress("texts encoded", count, total)


def _as_bytes(keys: list[str], vectors: Floats) -> dict[str, bytes]:
    return {key: vector.astype("<f4").tobytes() for key, vector in zip(keys, vectors, strict=True)}


def _keep(memory: Memory, vectors: Mapping[str, bytes], *, ids: Mapping[str, list[int]], version: str) -> None:
    found = {text_id: vector for key, vector in vectors.items() for text_id in ids.get(key, ())}
    if found:
        memory.retrying(lambda connection: add_vectors(connection, found, encoder_version=version), what="vectors")
