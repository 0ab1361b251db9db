"""BERT as feature repos open it in the processes of the tests: each text goes through it once per process.

The vectors are those of the model that is opened, whatever texts are encoded beside it (test_encoder.py holds that).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property

import numpy as np
import pytest
from numpy.typing import NDArray

from liber_feast import encoder
from liber_feast.encoder import BertEncoder


class RememberingBert:
    """A text encoder that keeps the vector of every text it was given."""

    def __init__(self, bert: BertEncoder) -> None:
        self.bert, self.name, self.model_hash, self.width = bert, bert.name, bert.model_hash, bert.width
        self._vectors: dict[str, NDArray[np.float32]] = {}

    @cached_property
    def _short(self) -> "RememberingBert":
        return RememberingBert(self.bert.for_short_texts())

    def for_short_texts(self) -> "RememberingBert":
        return self._short

    def encode(self, texts: Sequence[str], *, progress: Callable[[int], object] | None = None) -> NDArray[np.float32]:
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        if new:
            self._vectors |= zip(new, self.bert.encode(new), strict=True)
        if progress is not None:
            progress(len(texts))
        return np.array([self._vectors[text] for text in texts], np.float32).reshape(len(texts), self.width)


@contextmanager
def remembered_texts() -> Iterator[None]:
    """Let `open_bert` return one remembering encoder per model."""
    with pytest.MonkeyPatch.context() as patch:
        open_bert = encoder.open_bert
        patch.setattr(encoder, "open_bert", cache(lambda model: RememberingBert(open_bert(model))))
        yield
