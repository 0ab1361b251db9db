"""The command `python -m training profiles`."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from liber_feast.datasets.profiles import MODEL, read_profiled
from liber_feast.errors import ArtifactError
from liber_feast.tensor_file import write_atomically
from training.command import Backbone, Device, Epochs, Json, Repo, choose, cli
from training.profiled import judged_samples, judged_time, profiled_repo, user_folds
from training.profiled_fits import Judged, judge
from training.run import FitBar

if TYPE_CHECKING:
    from training.data import Features, Samples

FIGURES, TABLE = "profiles.json", "profiles.md"


@cli.command(name="profiles")
def profiles_command(
    data: Annotated[Path, typer.Argument(help="MovieLens 100K, with u1.base and u1.test.")],
    profiles: Annotated[Path, typer.Argument(help="The CSV file of the profiles, plain or .gz.")],
    *,
    repo: Repo = Path("feature_repo"),
    out: Annotated[Path, typer.Option(help="A folder that is not there yet: its feature repo, figures, table.")] = Path(
        "runs/profiles"
    ),
    backbone: Backbone = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples per step.", min=2)] = None,
    seeds: Annotated[int, typer.Option(help="Fits of each fold, seeds 0, 1 and so on.", min=1)] = 5,
    folds: Annotated[int, typer.Option(help="Parts of the users that are judged.", min=2)] = 5,
    epochs: Epochs = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Judge profiles that an LLM wrote of MovieLens 100K's u1.base on u1.test, over folds of its users."""
    options = choose(
        None, backbone=backbone, features="liber+evidence", epochs=epochs, device=device, batch_size=batch_size
    )
    if out.exists():
        raise ArtifactError(f"{out} exists. Name another folder with --out, or remove it.")
    console = Console(stderr=True)
    profiled = read_profiled(data, profiles, now=datetime.now(UTC))
    profiled_repo(repo, profiled=profiled, folder=out / "feature_repo")
    samples = feature_sets(judged_samples(out / "feature_repo", profiled=profiled, features="liber+evidence"))
    parts = user_folds(samples["baseline"], judged_at=judged_time(profiled), folds=folds)
    with FitBar(console) as bar, bar.counting("fitting", len(samples) * folds * seeds) as step:
        found = judge(samples, folds=parts, options=options.options, seeds=seeds, on_fit=lambda: step(1))
    figures = facts(found, backbone=options.options.backbone, folds=folds, seeds=seeds)
    write_atomically(out / FIGURES, (json.dumps(figures, indent=2) + "\n").encode())
    write_atomically(out / TABLE, markdown(figures).encode())
    typer.echo(json.dumps(figures) if as_json else markdown(figures))


def feature_sets(samples: "Samples") -> dict["Features", "Samples"]:
    """Return the samples with each feature set, of samples with all features."""
    return {
        "baseline": replace(samples, vectors=None, evidence=None),
        "liber": replace(samples, evidence=None),
        "evidence": replace(samples, vectors=None),
        "liber+evidence": samples,
    }


def facts(found: Judged, *, backbone: str, folds: int, seeds: int) -> dict[str, Any]:
    """Return the figures with what they are of."""
    return {
        "backbone": backbone.rpartition(":")[2],
        "model": MODEL,
        "judged_samples": len(found.labels_J),
        "judged_users": len(set(found.users_J.tolist())),
        "folds": folds,
        "seeds": seeds,
        "features": found.figures(),
    }


def markdown(figures: Mapping[str, Any]) -> str:
    """Return the table, with what holds for all of it."""
    rows = [
        f"{figures['backbone']} on ML-100K, no user id: {figures['judged_samples']:,} ratings of"
        f" {figures['judged_users']:,} users of u1.test, judged after all of u1.base in {figures['folds']} folds of"
        f" users; {figures['seeds']} paired seeds; texts by {figures['model']}.",
        "",
        "| features | AUC | within users | log loss | gain in AUC | p over seeds | p over users |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in figures["features"].items():
        gain = f"{one['auc_gain']:+.4f}" if "auc_gain" in one else ""
        p_values = [one.get(f"{of}_p_value") for of in ("seed", "user")]
        shown = " | ".join("" if value is None else f"{value:.3f}" for value in p_values)
        rows.append(
            f"| {name} | {one['auc']:.4f} | {one['within_user_auc']:.4f} | {one['log_loss']:.4f} | {gain} | {shown} |"
        )
    return "\n".join([*rows, ""])
