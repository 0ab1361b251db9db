"""Markers by file, and an environment in which nothing reaches the network."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("quick", derandomize=True, deadline=None, max_examples=25)
settings.register_profile("search", deadline=None, max_examples=1_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

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


def markers_of(path: Path) -> set[str]:
    """Return the markers of a test file, whose path is relative to tests/."""
    words = {word for part in path.with_suffix("").parts for word in part.split("_")}
    return set().union(*(MARKERS_OF_WORD[word] for word in words & MARKERS_OF_WORD.keys())) or {"core"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    asked_for_live = "live" in config.option.markexpr
    for item in items:
        for name in sorted(markers_of(item.path.relative_to(here))):
            item.add_marker(name)
        if item.get_closest_marker("live") and not asked_for_live:
            item.add_marker(pytest.mark.skip(reason="reaches a real LLM; run with -m live"))
