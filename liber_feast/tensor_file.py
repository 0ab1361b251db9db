"""Named float arrays on disk: safetensors for the numbers, JSON for the facts, and no pickle.

The JSON file is written last and carries the hash of the arrays: without it the folder holds nothing, and with it
the folder holds exactly the arrays that were saved.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as parse_tensors
from safetensors.numpy import save as tensor_bytes

from liber_feast.errors import LiberError, one_line

FORMAT_VERSION = 1


def tensor_hash(tensors: Mapping[str, NDArray[np.generic]]) -> str:
    """Return the sha256 of the arrays' names, types, shapes and values; their order does not matter."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorFile:
    """Where one set of arrays lies and how its errors are called.

    `hash_key` names the arrays' hash in the JSON file; `noun` names the whole in messages.
    """

    tensors: str
    facts: str
    hash_key: str
    noun: str
    error: type[LiberError]

    def save(self, tensors: Mapping[str, NDArray[np.generic]], *, folder: Path, facts: Mapping[str, object]) -> None:
        """Write both files into `folder`, which is made; what lay there is replaced."""
        whole = {"format_version": FORMAT_VERSION, **facts, self.hash_key: tensor_hash(tensors)}
        (folder / self.facts).unlink(missing_ok=True)
        contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        write_atomically(folder / self.tensors, tensor_bytes(contiguous))
        write_atomically(folder / self.facts, (json.dumps(whole, indent=2, sort_keys=True) + "\n").encode())

    def load(
        self, folder: Path, *, shapes: Mapping[str, tuple[str, ...]], facts: Mapping[str, type]
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
        """Return the arrays and facts of `folder`, verified.

        `shapes` names for each array the integer facts that are its shape; `facts` names the others and their types.
        Raises the file's own error in one line if something is missing, altered or of another format version.
        """
        found = self._facts(folder, known={**facts, **{name: int for shape in shapes.values() for name in shape}})
        tensors = self._tensors(folder)
        if tensor_hash(tensors) != found[self.hash_key]:
            raise self.error(
                f"{folder / self.tensors}: the {self.noun} was altered: its hash is not the {self.hash_key} of"
                f" {self.facts}. Restore both files together."
            )
        expected = {name: tuple(found[fact] for fact in shape) for name, shape in shapes.items()}
        if {name: array.shape for name, array in tensors.items()} != expected:
            raise self.error(f"{folder}: the shapes in {self.tensors} are not those that {self.facts} states.")
        if any(array.dtype != np.float32 for array in tensors.values()):
            raise self.error(f"{folder / self.tensors}: the {self.noun} is not float32.")
        return tensors, found

    def _facts(self, folder: Path, *, known: Mapping[str, type]) -> dict[str, Any]:
        path = folder / self.facts
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            raise self.error(f"{path} is missing: this folder holds no {self.noun}.") from error
        except (OSError, ValueError) as error:
            raise self.error(f"{path} cannot be read as JSON: {one_line(error)}") from error
        if not isinstance(found, dict) or found.get("format_version") != FORMAT_VERSION:
            raise self.error(f"{path} is not a {self.noun} of format version {FORMAT_VERSION}.")
        for name, kind in {**known, self.hash_key: str}.items():
            if type(found.get(name)) is not kind:
                raise self.error(f"{path}: {name!r} is {found.get(name)!r}, which is no {kind.__name__}.")
        return found

    def _tensors(self, folder: Path) -> dict[str, NDArray[Any]]:
        path = folder / self.tensors
        try:
            return parse_tensors(path.read_bytes())
        except FileNotFoundError as error:
            raise self.error(f"{path} is missing, but {self.facts} is there. Restore both files together.") from error
        except (OSError, SafetensorError) as error:
            raise self.error(f"{path} cannot be read as safetensors: {one_line(error)}") from error
