"""A memory and an online store together, as a store may have them: applied feature repos on real services."""

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import feature_repo_kit as kit
from tests.online_parts import BLOCKS, forget_redis
from tests.services import postgres_schema

FORMS = ("sqlite", "redis", "postgres")
"""Both on SQLite; the memory on PostgreSQL with the online store on Redis, and on PostgreSQL as well."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """Where the services of one test are."""

    memory: str
    online: dict[str, Any]
    project: str

    def bring_to(self, repo: Path) -> Path:
        """Let a feature repo that was not yet used have them, and apply it."""
        kit.set_engine(repo, memory=self.memory)
        kit.set_keys(repo, project=self.project, online_store=self.online)
        (repo / "data" / "registry.db").unlink(missing_ok=True)
        kit.close(kit.apply(repo))
        return repo


@contextmanager
def form_of(name: str, folder: Path) -> Iterator[Form]:
    """Give a test services of its own, which are empty; where one is missing, the test is skipped."""
    project = f"liber_{uuid.uuid4().hex[:12]}"
    with ExitStack() as stack:
        memory = "sqlite:///data/memory.db" if name == "sqlite" else stack.enter_context(postgres_schema())
        online = {"type": "sqlite", "path": "data/online.db"}
        if name != "sqlite":
            online = stack.enter_context(BLOCKS[name](folder))
        if name == "redis":
            stack.callback(forget_redis, project)
        yield Form(memory=memory, online=online, project=project)
