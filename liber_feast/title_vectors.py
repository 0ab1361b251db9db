"""Vectors of item titles, for the drift rule."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from liber_feast.encoding import Encoding
from liber_feast.partition import ItemVectors
from liber_feast.waves import Catalog


class TitleVectors:
    """Encodes each item's title once in the life of the process.

    An item without a title has no vector; it is looked up again each time, because its title may come later.
    """

    def __init__(self, *, encoding: Encoding, catalog: Catalog) -> None:
        self._encoding, self._catalog = encoding, catalog
        self._vectors: dict[str, npt.NDArray[np.float32]] = {}

    def __call__(self, item_ids: Sequence[str]) -> ItemVectors:
        """Return the vectors of the items that have a title."""
        unknown = [item for item in item_ids if item not in self._vectors]
        titles = {key: item.title for key, item in self._catalog.items(unknown).items() if item.title}
        encoded = self._encoding.bert().encode(list(titles.values())) if titles else ()
        self._vectors |= zip(titles, encoded, strict=True)
        found = {item: self._vectors[item] for item in item_ids if item in self._vectors}
        width = self._encoding.bert().width
        vectors = np.stack(list(found.values())) if found else np.zeros((0, width), np.float32)
        return ItemVectors.of(list(found), vectors=vectors)
