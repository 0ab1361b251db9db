"""The space of item texts: BERT and one frozen PCA over the texts of items, apart from that of summaries and shifts.

As with those, the memory names the PCA that its vectors are made by, and another one is refused.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from liber_feast.encoding import TEXTS_PER_COMMIT, Encoding
from liber_feast.errors import ConfigError, EncoderError, RetryableError
from liber_feast.evidence import ItemTextForm, item_text
from liber_feast.interest import Item, Progress
from liber_feast.memory import Memory
from liber_feast.memory.item_vectors import (
    add_item_vectors,
    item_encoder_in_use,
    known_item_vectors,
    use_item_encoder,
)
from liber_feast.memory.leases import LeaseLost, held, renew
from liber_feast.pca import FrozenPca, TooFewTexts, fit_pca, load_pca

FIT_ITEM_PCA = "fit_item_pca"
"""The lease of who fits."""
FITTED_TEXTS = 20_000
"""The most texts that the PCA is fitted on: the first ones by their hashes, which is as good as any."""
STAGE = "item texts encoded"


class ItemEncoding:
    """BERT and the frozen PCA over item texts of one feature repo.

    Attributes:
        width: E, the floats of an item's vector.
        form: of the texts of items, see `text_of`.
        missing_count: distinct texts that are still missing before the PCA can be fitted; 0 once it is.
    """

    def __init__(self, *, folder: Path, width: int, encoding: Encoding, form: ItemTextForm = "full") -> None:
        self.folder, self.width, self.form, self._encoding = folder, width, form, encoding
        self.missing_count = 0
        self._unfit_count = 0  # distinct texts that did not fit a PCA
        self._pca: FrozenPca | None = None

    def text_of(self, item: Item) -> str:
        """Return the text of an item, whose vector is the item's."""
        return item_text(item, form=self.form)

    def pca(self) -> FrozenPca | None:
        """Return the frozen PCA, or None while it is not fitted.

        Raises:
            ConfigError: it was fitted for another model or width, or on other texts, than configured.
        """
        if self._pca is None and (self.folder / "encoder.json").exists():
            pca, model = load_pca(self.folder), self._encoding.model
            form = pca.text_form or "full"
            if (pca.model, pca.width, form) != (model, self.width, self.form):
                raise ConfigError(
                    f"batch_engine asks for encoder.model {model!r}, evidence.text {self.form!r} and evidence.width"
                    f" {self.width}, but the PCA in {self.folder} was fitted for {pca.model!r}, {form!r} and"
                    f" {pca.width}. Restore the keys, or move that folder away and run `liber encode` to make every"
                    " vector anew."
                )
            self._pca = pca
        return self._pca

    def pca_of(self, memory: Memory) -> FrozenPca | None:
        """Return the PCA that the memory's vectors of items are made by, or None while none is fitted.

        A PCA that lay in the folder before the memory had vectors becomes that of the memory.

        Raises:
            ConfigError: as `pca`.
            EncoderError: the folder has another one, or none.
        """
        with memory.reading() as connection:
            version = item_encoder_in_use(connection)
        if self._pca is not None and version is not None and self._pca.version != version:
            self._pca = None  # another process may have brought in another one
        pca = self.pca()
        if version is None:
            if pca is not None:
                return self._taken(memory, pca)
            return None
        if pca is not None and pca.version == version:
            return pca
        raise EncoderError(
            f"The vectors of items in the memory are made by the PCA {version}, and {self.folder} has"
            f" {pca.version if pca else 'none'}. Bring that folder back (`liber backup` copies it), or run"
            " `liber encode` to make every vector anew."
        )

    def fit(self, memory: Memory, texts: Mapping[str, str], *, progress: Progress) -> FrozenPca | None:
        """Fit the PCA on texts by hash, and keep their vectors; return it, or None where there are too few texts.

        Of several processes one fits it, and the others wait.

        Raises:
            RetryableError: this process was paused while it fitted, and another one fits since.
        """
        fitted = {key: texts[key] for key in sorted(key for key in texts if texts[key])[:FITTED_TEXTS]}
        self.missing_count = max(0, self.width - len(fitted))
        if self.missing_count or len(fitted) <= self._unfit_count:
            return None
        with held(memory, FIT_ITEM_PCA) as lease:
            pca = self.pca_of(memory)
            if pca is not None:
                return pca
            bert = self._encoding.bert().for_short_texts()
            vectors = bert.encode(list(fitted.values()), progress=lambda count: progress(STAGE, count, len(fitted)))
            try:
                pca = fit_pca(vectors, width=self.width, model=self._encoding.model, model_hash=bert.model_hash)
                pca = replace(pca, text_form=self.form)
            except TooFewTexts as error:  # texts that differ can still encode alike
                self.missing_count, self._unfit_count = error.missing_count, len(fitted)
                return None
            with memory.writing("fit_item_pca") as connection:
                try:
                    renew(connection, lease)
                except LeaseLost as error:
                    raise RetryableError("Another process fits the PCA of items since. Run it again.") from error
                use_item_encoder(connection, pca.version)
                pca.save(self.folder)
        self._pca = pca
        _keep(memory, list(fitted), vectors=pca.transform(vectors), version=pca.version)
        return pca

    def encode(
        self, memory: Memory, texts: Mapping[str, str], *, pca: FrozenPca, progress: Progress
    ) -> tuple[dict[str, bytes], int]:
        """Return the vectors of texts by hash, float32, and how many went through BERT; new ones are kept.

        An empty text has the zero vector.
        """
        with memory.reading() as connection:
            known = known_item_vectors(connection, texts, encoder_version=pca.version)
        new = sorted((key for key in texts if key not in known), key=lambda key: (len(texts[key]), key))
        empty = [key for key in new if not texts[key]]
        if empty:
            zeros = np.zeros((len(empty), pca.width), np.float32)
            known |= _keep(memory, empty, vectors=zeros, version=pca.version)
        new = new[len(empty) :]
        for start in range(0, len(new), TEXTS_PER_COMMIT):
            keys = new[start : start + TEXTS_PER_COMMIT]
            encoder = self._encoding.bert().for_short_texts()
            if encoder.model_hash != pca.model_hash:
                raise EncoderError(
                    f"The PCA of items {pca.version} was fitted on vectors of a model with the hash"
                    f" {pca.model_hash[:8]}, but encoder.model {encoder.name!r} has {encoder.model_hash[:8]}. Set"
                    " encoder.model back, or move data/item_encoder away and run `liber encode`."
                )
            vectors = encoder.encode(
                [texts[key] for key in keys], progress=lambda count: progress(STAGE, count, len(new))
            )
            known |= _keep(memory, keys, vectors=pca.transform(vectors), version=pca.version)
        return known, len(new)

    def _taken(self, memory: Memory, pca: FrozenPca) -> FrozenPca:
        def take(connection: sa.Connection) -> bool:
            if item_encoder_in_use(connection) is None:
                use_item_encoder(connection, pca.version)
            return item_encoder_in_use(connection) == pca.version

        return pca if memory.retrying(take, what="setting") else self._checked(memory)

    def _checked(self, memory: Memory) -> FrozenPca:
        self._pca = None
        pca = self.pca_of(memory)
        assert pca is not None, "the memory names one"
        return pca


def check_in_use(connection: sa.Connection, version: str) -> None:
    """Check in a transaction that writes that the vectors of items are still made by a PCA.

    Raises:
        RetryableError: another one came in since.
    """
    if item_encoder_in_use(connection) != version:
        raise RetryableError("The vectors of items are made by another PCA since. Run the same command again.")


def _keep(memory: Memory, keys: list[str], *, vectors: npt.NDArray[np.float32], version: str) -> dict[str, bytes]:
    found = {key: vector.astype("<f4").tobytes() for key, vector in zip(keys, vectors, strict=True)}

    def add(connection: sa.Connection) -> None:
        check_in_use(connection, version)
        add_item_vectors(connection, dict(sorted(found.items())), encoder_version=version)

    memory.retrying(add, what="item_vectors")
    return found
