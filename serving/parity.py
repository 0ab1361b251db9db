"""`python -m serving.parity`: replay a day through push while scoring, and prove that online equals offline."""

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from liber_feast.errors import LiberError, ended_in_one_line
from liber_feast.fast_start import leave_out_type_checks

leave_out_type_checks()
from liber_feast.artifact import FUSION_FOLDER, load_artifact  # noqa: E402 (they import Feast)
from liber_feast.quickstart import script_of  # noqa: E402
from liber_feast.repo import open_applied_store, use_run  # noqa: E402
from serving.online import OnlineFeatures  # noqa: E402
from serving.ranker import Ranker  # noqa: E402
from serving.replay import compare, replay  # noqa: E402
from serving.replay_repo import find_day, make_repo  # noqa: E402

SCORE_TOLERANCE = 1e-5
SHOWN_COUNT = 10
cli = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


class NotEqual(LiberError):
    """Online and offline differ."""

    exit_code = 3


@cli.command()
def prove(
    *,
    repo: Annotated[Path, typer.Option(help="A feature repo with a data set; it is only read.")] = Path("feature_repo"),
    model: Annotated[Path, typer.Option(help="The run folder that training wrote.")] = Path("runs/din-liber+evidence"),
    day: Annotated[datetime | None, typer.Option(help="UTC; default: the last one.", formats=["%Y-%m-%d"])] = None,
    users: Annotated[int | None, typer.Option(help="The first so many users of the day.", min=1)] = None,
    items: Annotated[int, typer.Option(help="Candidates of a request.", min=1)] = 10,
    seed: Annotated[int, typer.Option(help="Which candidates.")] = 0,
) -> None:
    """Push a day's behaviors in their order, score after each, rebuild all rows by point-in-time joins, and compare.

    The last line is one JSON object; the exit code is 3 where a feature is not equal bit for bit, or a score is not
    within 1e-5.
    """
    found = find_day(repo, day=None if day is None else day.date(), user_limit=users)
    with tempfile.TemporaryDirectory(prefix="liber_parity_") as scratch:
        made = make_repo(Path(scratch) / "repo", repo=repo, day=found, run=_feast)
        artifact = load_artifact(model)
        if (model / FUSION_FOLDER).is_dir():
            use_run(model, repo=made)
        store = open_applied_store(made)
        features = OnlineFeatures(store, service=artifact.feature_service)
        ranker = Ranker(artifact, features=features)
        known, dice = artifact.spec.items.ids, random.Random(seed)

        def choose(_: str, own: Sequence[str]) -> list[str]:
            return [*dict.fromkeys([*own, *dice.sample(known, min(items, len(known)))])][:items]

        asked = list(replay(store, found.behaviors, features=features, ranker=ranker, choose=choose))
        parity = compare(store, asked, artifact=artifact)
    for line in parity.feature_differences[:SHOWN_COUNT]:
        typer.echo(line, err=True)
    figures = {**asdict(parity), "feature_differences": len(parity.feature_differences)}
    typer.echo(json.dumps({"day": found.start.date().isoformat(), "users": len(found.user_ids), **figures}))
    if parity.feature_differences or max(parity.worst_score, parity.worst_raw_score) > SCORE_TOLERANCE:
        raise NotEqual("Online and offline differ; the figures are above.")


def _feast(arguments: Sequence[str], folder: Path) -> None:
    done = subprocess.run([script_of("feast"), *arguments], cwd=folder, stdout=sys.stderr, check=False)
    if done.returncode:
        raise LiberError(f"`feast {' '.join(arguments)}` ended with exit code {done.returncode}; its error is above.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an error of ours ends in one line on stderr and its exit code."""
    with ended_in_one_line():
        cli(arguments)


if __name__ == "__main__":
    main()
