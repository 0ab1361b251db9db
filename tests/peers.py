"""Public implementations of the backbones, which ours are compared with; the extra `peers`, installed without what
their data loaders need (`make install` does so).

Without them their tests are skipped, visibly.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

DATA_LOADERS = (
    *("ray", "ray.data", "ray.data.datasource", "ray.data.datasource.filename_provider"),
    *("polars", "h5py"),
)
"""What fuxictr imports for its data loaders, of which nothing is used here."""


class Unused(ModuleType):
    """Stands for a package that is imported and not used."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return object


@contextmanager
def replaced(modules: dict[str, ModuleType]) -> Iterator[None]:
    """Let imports find these modules, as long as the context lasts."""
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def peer(name: str) -> Any:
    """Return a module of fuxictr, of its models or of deepctr-torch; a test that asks for one not there is skipped."""
    package = name.partition(".")[0]
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install --no-deps --requirement requirements-peers.lock")
    stubs: dict[str, ModuleType] = {unused: Unused(unused) for unused in DATA_LOADERS}
    # deepctr_torch asks the network for newer releases of itself as soon as it is imported.
    quiet = ModuleType("deepctr_torch.utils")
    quiet.check_version = lambda version: None  # type: ignore[attr-defined]
    with replaced({**stubs, quiet.__name__: quiet}):
        return import_module(name)


def load_mlp(layers: Any, output: nn.Linear | None, ours: Any) -> None:
    """Copy our MLP's linear layers into a peer's, and its output into `output`, which may have no bias."""
    linear = [layer for layer in ours if isinstance(layer, nn.Linear)]
    theirs = [*layers, *([] if output is None else [output])]
    for target, source in zip(theirs, linear, strict=True):
        copy(target.weight, source.weight)
        if target.bias is not None:
            copy(target.bias, source.bias)


def load_gates(cell: Any, ours: Any) -> None:
    """Copy our AUGRU into fuxictr's cell, whose gates are update, reset, new."""
    for name, layer in (("ih", cell.x2h), ("hh", cell.h2h)):
        for kind in ("weight", "bias"):
            reset, update, new = getattr(ours, f"{kind}_{name}").chunk(3)
            copy(getattr(layer, kind), torch.cat([update, reset, new]))


def copy(target: Tensor, source: Tensor) -> None:
    """Overwrite a weight by another of the same number of values."""
    with torch.no_grad():
        target.copy_(source.reshape(target.shape))
