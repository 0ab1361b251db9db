"""The command `liber worker`."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def worker(
    concurrency: Annotated[int, typer.Option(min=1, help="How many processes.")] = 1,
    once: Annotated[bool, typer.Option("--once", help="End when nobody waits any more.")] = False,
    repo: Annotated[Path, typer.Option(help="The feature repo: the folder of feature_store.yaml.")] = Path(
        "feature_repo"
    ),
) -> None:
    """Make and publish what pushes left waiting (`on_the_fly: worker`), until SIGTERM; then end what was begun."""
    from liber_feast.repo import run_workers  # noqa: PLC0415 (commands import what they need, when they run)

    sys.exit(run_workers(repo, concurrency=concurrency, once=once))
