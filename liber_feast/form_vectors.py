"""The vector of a text by its form: what goes through the encoder, and how the results are laid out.

| form | a text's vector, W = `encoder.width` | floats |
| --- | --- | --- |
| `plain` | the text, encoded | W |
| `parts` | likes, encoded; dislikes, encoded; tendency; liked count; disliked count | 2 W + 3 |

The tendency is divided by 100, and a count c stands as sign(c) log(1 + abs(c)) / log(21): twenty behaviors, the paper's
partition, give 1. An empty part is zeros, the mean of the PCA.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from liber_feast.errors import EncoderError
from liber_feast.parts import FULL, PARTS, PARTS_SUFFIX, Parts, parse_parts

NUMBER_COUNT = 3
"""Tendency and the two counts."""

COUNT_SCALE = math.log(1 + 20)

Floats = npt.NDArray[np.float32]
Encode = Callable[[Sequence[str]], Floats]
"""Gives one vector per text, float32 (len(texts), W)."""


def text_width(width: int, *, form: str) -> int:
    """Return the floats of one text's vector; a partition's vector has twice as many, its summary's and its shift's."""
    return 2 * width + NUMBER_COUNT if form == PARTS else width


def version_of(pca_version: str, *, form: str) -> str:
    """Return the encoder version: that of the PCA, and the form where it is not plain."""
    return pca_version + PARTS_SUFFIX if form == PARTS else pca_version


def pieces(texts: Sequence[str], *, form: str) -> list[str]:
    """Return what is to be encoded so that `texts` have vectors: in parts every part once that is not empty."""
    if form != PARTS:
        return list(texts)
    every = (side for text in texts for side in _sides(_parsed(text)))
    return list(dict.fromkeys(filter(None, every)))


def lay_out(texts: Sequence[str], *, encode: Encode, form: str) -> Floats:
    """Return the vectors of `texts`, float32 (len(texts), `text_width`); `encode` is asked once, for their pieces.

    Raises:
        EncoderError: a text that is to be in parts is not.
    """
    if form != PARTS:
        return encode(texts)
    encoded = pieces(texts, form=form)
    vectors = encode(encoded)
    place = {text: row for row, text in enumerate(encoded)}
    width = vectors.shape[1]
    laid = np.zeros((len(texts), text_width(width, form=form)), np.float32)
    for row, parts in enumerate(map(_parsed, texts)):
        for side, text in enumerate(_sides(parts)):
            if text:
                laid[row, side * width : (side + 1) * width] = vectors[place[text]]
        laid[row, 2 * width :] = _numbers(parts)
    return laid


def _parsed(text: str) -> Parts:
    parts = parse_parts(text)
    if parts is None:
        raise EncoderError(
            "A text of the memory is kept under a prompt version of parts and does not hold them. Restore the memory"
            " from a backup, or write the text anew with `liber recompute`."
        )
    return parts


def _sides(parts: Parts) -> tuple[str, str]:
    return parts.likes, parts.dislikes


def _numbers(parts: Parts) -> tuple[float, float, float]:
    return parts.tendency / FULL, _log_count(parts.liked_count), _log_count(parts.disliked_count)


def _log_count(count: int) -> float:
    return math.copysign(math.log1p(abs(count)) / COUNT_SCALE, count)
