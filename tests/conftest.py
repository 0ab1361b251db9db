"""Markers by file, an environment in which nothing reaches the network, and the order of files.

`make test` runs two processes, and each file in one of them. So that the suite stays fast and its tests do not meet:

- a test keeps its files under tmp_path, asks for a free port, and has a schema of PostgreSQL or a project in Redis of
  its own (`services.py`, `online_parts.py`);
- what takes long to make is made once per process and copied (`feature_repo_kit.py`, `folders.py`), and BERT encodes a
  text once (`remembering_bert.py`);
- a program of ours or of Feast, whose imports alone take seconds, is started where a process is what is tested, once
  for each command; everywhere else its code is called (`cli.main`, `feature_repo_kit.feast`);
- any other process is forked from one that has imported what it needs (`processes.py`);
- costly examples of hypothesis are few, and fewer in the quick tests (`examples.py`).
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
WORKER = "PYTEST_XDIST_WORKER"
"""Names the process among several that run the tests."""
if WORKER in os.environ:  # the cores are taken by the other processes of the tests
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("quick", derandomize=True, deadline=None, max_examples=25)
settings.register_profile("search", deadline=None, max_examples=1_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

HERE = Path(__file__).parent

MARKERS_OF_WORD = {
    "catalog": {"feast"},
    "cli": {"feast"},
    "config": {"feast"},
    "engine": {"feast"},
    "feature": {"feast"},
    "job": {"feast"},
    "materialize": {"feast"},
    "offline": {"feast"},
    "online": {"feast"},
    "provider": {"feast"},
    "publish": {"feast"},
    "push": {"feast"},
    "repo": {"feast"},
    "services": {"feast"},
    "stage": {"feast"},
    "store": {"feast"},
    "views": {"feast"},
    "artifact": {"torch"},
    "backbone": {"torch"},
    "din": {"torch"},
    "encoder": {"torch"},
    "encoding": {"torch"},
    "fit": {"torch"},
    "fuser": {"torch"},
    "fusion": {"torch"},
    "pca": {"torch"},
    "tokenizer": {"torch"},
    "training": {"feast", "torch"},
    "serving": {"feast", "torch"},
    "leak": {"feast", "torch"},
    "rerun": {"feast", "torch"},
    "quickstart": {"feast", "torch", "slow"},
    "end": {"feast", "torch", "slow"},
    "vllm": {"vllm"},
    "openai": {"slow"},
    "races": {"slow"},
    "processes": {"feast", "slow"},
    "worker": {"feast"},
    "crash": {"feast", "slow"},
    "outage": {"slow"},
    "claims": {"slow"},
    "leases": {"slow"},
    "malformed": {"slow"},
    "backfill": {"slow"},
    "freshness": {"slow"},
    "tombstones": {"slow"},
    "docs": {"feast", "torch"},
    "forget": {"feast"},
    "republish": {"feast"},
    "compact": {"feast"},
    "backup": {"feast"},
    "postgres": {"slow"},
    "inputs": {"feast"},
    "live": {"live"},
}
"""A test file is marked by the words of its name and of its folders; a file with none of these words is `core`."""

COSTLY_FIRST = ("quickstart", "crash", "slow", "feast", "torch")
"""Words and markers of the files that several processes begin with, so that they end at the same time."""


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let torch use one thread: small models gain nothing from more, and figures must not depend on their number."""
    import torch  # noqa: PLC0415  # most tests do without

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def markers_of(path: Path) -> set[str]:
    """Return the markers of a test file, whose path is relative to tests/."""
    return set().union(*(MARKERS_OF_WORD[word] for word in words_of(path) & MARKERS_OF_WORD.keys())) or {"core"}


def words_of(path: Path) -> set[str]:
    """Return the words of the names of a test file and of its folders."""
    return {word for part in path.with_suffix("").parts for word in part.split("_")}


@pytest.fixture(scope="session", autouse=True)
def _texts_are_encoded_once(request: pytest.FixtureRequest) -> Iterator[None]:
    """In this process BERT encodes a text of a feature repo once; the core tests do not load it."""
    if not any(item.get_closest_marker("feast") for item in request.session.items):
        yield
        return
    from tests.remembering_bert import remembered_texts  # noqa: PLC0415 (torch loads only where a test needs it)

    with remembered_texts():
        yield


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave files alone that `-m "core and ..."` does not ask for: their imports alone take seconds."""
    is_test = collection_path.suffix == ".py" and collection_path.name.startswith("test_")
    if is_test and config.option.markexpr.startswith("core and "):
        return "core" not in markers_of(collection_path.relative_to(HERE)) or None
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    asked_for_live = "live" in config.option.markexpr
    for item in items:
        for name in sorted(markers_of(item.path.relative_to(HERE))):
            item.add_marker(name)
        if item.get_closest_marker("live") and not asked_for_live:
            item.add_marker(pytest.mark.skip(reason="reaches a real LLM; run with -m live"))
    if WORKER in os.environ:
        items.sort(key=lambda item: place_of(item.path.relative_to(HERE)))


def place_of(path: Path) -> int:
    """Return the place of a test file among those of several processes."""
    found = words_of(path) | markers_of(path)
    return next((place for place, word in enumerate(COSTLY_FIRST) if word in found), len(COSTLY_FIRST))
