"""One server process: what it serves comes by the environment, so that uvicorn can start any number of them."""

import json
import os
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from fastapi import FastAPI

from liber_feast.allocator import keep_freed_memory
from serving.app import create_app
from serving.limits import TOKEN_VARIABLE, Limits
from serving.service import Service, open_served, open_service
from serving.watch import Watcher

VARIABLE = "LIBER_SERVING_WORKER"
"""How a worker process learns what to serve."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSettings:
    """What each process is told."""

    repo: Path
    run: Path
    limits: Limits

    def to_json(self) -> str:
        """Return what `from_json` reads, with absolute paths."""
        paths = {"repo": str(self.repo.absolute()), "run": str(self.run.absolute())}
        return json.dumps({**paths, "limits": asdict(self.limits)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the settings that `to_json` wrote."""
        found: dict[str, Any] = json.loads(text)
        return cls(repo=Path(found["repo"]), run=Path(found["run"]), limits=Limits(**found["limits"]))


def app_from_environment() -> FastAPI:
    """Return the app of this process."""
    settings = WorkerSettings.from_json(os.environ[VARIABLE])
    service = open_service(settings.repo, run=settings.run, limits=settings.limits)
    return build_app(service, settings=settings, token=os.environ.get(TOKEN_VARIABLE) or None)


def build_app(service: Service, *, settings: WorkerSettings, token: str | None) -> FastAPI:
    """Return the app of a process that serves `service` and looks for other weights at the path it was opened from."""
    use_one_thread_per_forward()
    keep_freed_memory()
    reopen = partial(open_served, settings.repo, run=settings.run, guard=service.guard)
    Watcher(service, run=settings.run, reopen=reopen).start(every_s=settings.limits.look_every_s)
    return create_app(service, token=token)


def use_one_thread_per_forward() -> None:
    """Let a process compute each forward pass on one core; processes share the cores between them.

    A pass over a request is too small to be worth splitting: with two threads on two busy cores it took ten times
    as long as with one.
    """
    torch.set_num_threads(1)
