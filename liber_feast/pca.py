"""The frozen PCA of LIBER's equation 4: fitted once on the first texts, then never changed.

Its version is made of the hash of the model whose vectors it was fitted on and the hash of its own tensors, so two
vectors with equal versions lie in one space.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from liber_feast.errors import EncoderError
from liber_feast.tensor_file import TensorFile, tensor_hash

TENSORS, FACTS = "pca.safetensors", "encoder.json"
_FILE = TensorFile(tensors=TENSORS, facts=FACTS, hash_key="pca_hash", noun="frozen PCA", error=EncoderError)


class TooFewTexts(EncoderError):
    """There are fewer distinct texts than the PCA is wide; `missing_count` says how many are missing."""

    def __init__(self, *, text_count: int, width: int) -> None:
        self.text_count, self.width = text_count, width
        self.missing_count = width - text_count
        super().__init__(
            f"The PCA of width {width} needs at least {width} distinct texts; there are {text_count}, so"
            f" {self.missing_count} are missing. Texts are published; vectors wait until the texts are there."
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FrozenPca:
    """A projection of BERT vectors (width D) onto W principal components.

    `mean` is float32 (D,), `components` float32 (W, D) with orthonormal rows, widest variance first.
    """

    mean: NDArray[np.float32]
    components: NDArray[np.float32]
    model: str
    model_hash: str
    fitted_text_count: int
    text_form: str | None = None
    """Of the texts that it was fitted on, where they may have several forms; no part of the hash."""

    @property
    def width(self) -> int:
        """W, the floats per text."""
        return len(self.components)

    @property
    def pca_hash(self) -> str:
        """The sha256 of the two tensors."""
        return tensor_hash({"mean": self.mean, "components": self.components})

    @property
    def version(self) -> str:
        """The encoder version: eight digits of the model's hash, eight of the PCA's."""
        return f"{self.model_hash[:8]}-{self.pca_hash[:8]}"

    def transform(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Project `vectors` (N, D) to float32 (N, W).

        A row's result depends on nothing but the row: each is one product of fixed shape, in float64 and without a
        BLAS, whose kernels (and so whose last bits) change with the number of rows. Raises EncoderError if D is not
        the width this PCA was fitted on.
        """
        if vectors.ndim != 2 or vectors.shape[1] != len(self.mean):  # noqa: PLR2004 (rows and columns)
            raise EncoderError(f"The PCA was fitted on vectors of width {len(self.mean)}; these are {vectors.shape}.")
        mean, components = self.mean.astype(np.float64), self.components.astype(np.float64, order="C")
        projected = np.empty((len(vectors), self.width), np.float32)
        for row, vector in enumerate(vectors):
            projected[row] = np.einsum("wd,d->w", components, vector - mean)
        return projected

    def save(self, folder: Path) -> None:
        """Write pca.safetensors and encoder.json into `folder`; a reader never sees one half."""
        facts = {
            "model": self.model,
            "model_hash": self.model_hash,
            "width": self.width,
            "model_width": len(self.mean),
            "fitted_text_count": self.fitted_text_count,
            **({} if self.text_form is None else {"text_form": self.text_form}),
        }
        _FILE.save({"mean": self.mean, "components": self.components}, folder=folder, facts=facts)


def fit_pca(vectors: NDArray[np.float32], *, width: int, model: str, model_hash: str) -> FrozenPca:
    """Fit a PCA of `width` components on `vectors` (N, D), and freeze it.

    Equal rows count once and order does not matter: the same set of texts gives the same bits on one machine. The
    sign of a component is that of its entry of largest magnitude made positive, as scikit-learn has it. Raises
    TooFewTexts with fewer distinct rows than `width`, EncoderError with a width outside 1 to D or with vectors that
    are not finite.
    """
    if vectors.ndim != 2 or not 1 <= width <= vectors.shape[1]:  # noqa: PLR2004 (rows and columns)
        raise EncoderError(f"encoder.width is {width}; the vectors of {model!r} allow 1 to {vectors.shape[-1]}.")
    if not np.isfinite(vectors).all():
        raise EncoderError(f"{model!r} gave vectors with values that are not finite; the PCA cannot be fitted on them.")
    distinct = np.unique(vectors.astype(np.float32), axis=0).astype(np.float64)
    if len(distinct) < width:
        raise TooFewTexts(text_count=len(distinct), width=width)
    mean = distinct.mean(axis=0)
    centered = distinct - mean
    _, axes = np.linalg.eigh(centered.T @ centered)  # by rising variance, one axis per column
    components = axes.T[::-1][:width]
    largest = np.abs(components).argmax(axis=1)
    signs = np.sign(components[np.arange(width), largest])
    return FrozenPca(
        mean=mean.astype(np.float32),
        components=np.ascontiguousarray(components * signs[:, None], np.float32),
        model=model,
        model_hash=model_hash,
        fitted_text_count=len(distinct),
    )


def load_pca(folder: Path) -> FrozenPca:
    """Read the frozen PCA of `folder`; raises EncoderError if a file is missing, altered or of another format."""
    tensors, facts = _FILE.load(
        folder,
        shapes={"mean": ("model_width",), "components": ("width", "model_width")},
        facts={"model": str, "model_hash": str, "fitted_text_count": int},
    )
    return FrozenPca(
        mean=tensors["mean"],
        components=tensors["components"],
        model=facts["model"],
        model_hash=facts["model_hash"],
        fitted_text_count=facts["fitted_text_count"],
        text_form=facts.get("text_form"),
    )
