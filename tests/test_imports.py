"""Imports point one way: adapters -> backends -> pure; a heavy package stands only in the files that own it."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Set
from fnmatch import fnmatch
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import markers_of

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("liber_feast", "training", "serving")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

PURE = {
    *("answer", "behavior", "budget", "errors", "evidence", "inputs", "interest", "partition", "pit", "prompt"),
    *("llm.backoff", "llm.chat", "llm.extractive", "llm.fit", "llm.rate_limit"),
}
LIGHT = {*sys.stdlib_module_names, "click", "numpy", "pyarrow", "liber_feast"}
"""All that a pure module may import, itself or through our modules that it imports."""

HEAVY = {"feast", "torch", "transformers", "sentence_transformers", "openai", "vllm"}
OWNERS = {
    "feast": {
        *(
            "answers",
            "backup",
            "catalog",
            "cli",
            "config",
            "engine",
            "feast_cli",
            "forget",
            "job",
            "job_origin",
            "offline_*",
            "online",
        ),
        *("online_*", "plan", "provider", "publish", "registry_store", "repo"),
    },
    "torch": {"artifact", "encoder", "fusion", "pca"},
    "transformers": {"encoder", "llm.tokenizer"},
    "sentence_transformers": set[str](),
    "openai": {"llm.openai"},
    "vllm": {"llm.vllm"},
}
"""The modules of liber_feast in which each heavy package may stand, as patterns."""


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_statements(tree: ast.AST, *, nested: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports that run; with `nested` those inside functions too. What types alone need is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for other in node.orelse:
                yield from import_statements(ast.Module([other], []), nested=nested)
        elif nested or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from import_statements(node, nested=nested)


@cache
def imported_by(path: Path, *, nested: bool = True) -> frozenset[str]:
    """Return the dotted names of what a file imports; a submodule is named in full."""
    names: set[str] = set()
    for node in import_statements(ast.parse(path.read_text(encoding="utf-8")), nested=nested):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        else:
            assert node.level == 0, f"{path}: imports are absolute"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & OURS.keys()
            names.update(submodules or {node.module or ""})
    return frozenset(names)


OURS = {module_of(path): path for path in SOURCES}


def top(name: str) -> str:
    return name.partition(".")[0]


def reached_from(names: Set[str], *, nested: bool = False) -> set[str]:
    """Return `names` and all that importing them imports, as far as our files say."""
    reached: set[str] = set()
    waiting = set(names)
    while waiting:
        name = waiting.pop()
        reached.add(name)
        if name in OURS:
            packages = {name.rpartition(".")[0]} & OURS.keys()
            waiting |= (imported_by(OURS[name], nested=nested) | packages) - reached
    return reached


def test_importing_liber_feast_loads_no_heavy_package() -> None:
    script = "import json, sys, liber_feast; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert HEAVY.isdisjoint(json.loads(run.stdout))


@pytest.mark.parametrize("module", sorted(PURE))
def test_a_pure_module_reaches_only_light_packages(module: str) -> None:
    assert f"liber_feast.{module}" in OURS
    reached = {top(name) for name in reached_from({f"liber_feast.{module}"}, nested=True)}
    assert reached <= LIGHT


@pytest.mark.parametrize("package", sorted(OWNERS))
def test_a_heavy_package_stands_only_in_the_modules_that_own_it(package: str) -> None:
    owners = [f"liber_feast.{owner}" for owner in OWNERS[package]]
    found = {
        module
        for module, path in OURS.items()
        if top(module) == "liber_feast" and package in {top(name) for name in imported_by(path)}
    }
    assert {module for module in found if not any(fnmatch(module, owner) for owner in owners)} == set()


@pytest.mark.parametrize("folder", ["datasets", "llm", "memory"])
def test_a_backend_does_not_know_feast(folder: str) -> None:
    backends = {module for module in OURS if f"{module}.".startswith(f"liber_feast.{folder}.")}
    assert backends
    assert "feast" not in {top(name) for name in reached_from(backends)}


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("liber_feast", {"training", "serving", "tests", "benchmarks"}),
        ("training", {"serving", "tests", "benchmarks"}),
        ("serving", {"training", "tests", "benchmarks"}),
    ],
)
def test_the_plugin_training_and_serving_do_not_reach_into_each_other(package: str, forbidden: set[str]) -> None:
    crossings = {
        (module, name)
        for module, path in OURS.items()
        if top(module) == package
        for name in imported_by(path)
        if top(name) in forbidden
    }
    assert crossings == set()


def test_no_module_imports_itself_round_a_circle() -> None:
    graph = {module: imported_by(path, nested=False) & OURS.keys() for module, path in OURS.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(OURS)


def test_feature_definitions_import_feast_and_each_other_alone() -> None:
    files = sorted((ROOT / "feature_repo").glob("*.py"))
    allowed = {"feast", "datetime", *(path.stem for path in files)}
    assert {top(name) for path in files for name in imported_by(path)} <= allowed


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("test_*.py")), ids=lambda path: path.stem)
def test_a_core_test_loads_no_heavy_package(path: Path) -> None:
    markers = markers_of(path.relative_to(ROOT / "tests"))
    heavy = {top(name) for name in reached_from(imported_by(path))} & HEAVY
    assert "core" not in markers or heavy == set()
