"""The command line of training: fit a CTR backbone on the features of a feature repo."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from liber_feast.artifact import find_class
from liber_feast.errors import LiberError
from training.allocator import keep_freed_memory
from training.backbones import BACKBONES, backbone_reference
from training.fit import FitOptions
from training.run import run_fit

cli = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
DEFAULTS = FitOptions()


class FeatureChoice(StrEnum):
    """Which features a backbone reads."""

    BASELINE = "baseline"
    LIBER = "liber"


class DeviceChoice(StrEnum):
    """Where to fit."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


@cli.callback()
def training() -> None:
    """Train a CTR backbone on the features of the store."""


@cli.command(name="fit")
def fit_command(
    *,
    backbone: Annotated[str, typer.Option(help=f"{', '.join(BACKBONES)}, or package.module:Class.")] = "din",
    features: Annotated[FeatureChoice, typer.Option(help="With or without LIBER features.")] = FeatureChoice.LIBER,
    repo: Annotated[Path, typer.Option(help="The feature repo.")] = Path("feature_repo"),
    run: Annotated[Path | None, typer.Option(help="Run folder.", show_default="runs/BACKBONE-FEATURES")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the order of samples.", min=0)] = DEFAULTS.seed,
    epochs: Annotated[int, typer.Option(help="At most so many epochs.", min=1)] = DEFAULTS.epochs,
    batch_size: Annotated[int, typer.Option(help="Samples per step.", min=2)] = DEFAULTS.batch_size,
    learning_rate: Annotated[float, typer.Option(help="Adam's learning rate.", min=0)] = DEFAULTS.learning_rate,
    device: Annotated[DeviceChoice, typer.Option(help="Where to fit.")] = DeviceChoice.AUTO,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object as the last line of stdout.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing run folder.")] = False,
) -> None:
    """Fit a backbone and export it as a run folder."""
    reference = backbone_reference(backbone)
    find_class(reference)
    options = FitOptions(
        backbone=reference,
        seed=seed,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        device=device.value,
    )
    figures = run_fit(
        repo,
        features=features.value,
        folder=run or Path("runs") / f"{backbone.rpartition(':')[2].lower()}-{features.value}",
        options=options,
        overwrite=overwrite,
        console=Console(stderr=True),
    )
    show(figures, as_json=as_json)


def show(figures: dict[str, Any], *, as_json: bool) -> None:
    """Write the figures of a run to stdout: a table, or one JSON line."""
    if as_json:
        typer.echo(json.dumps(figures))
        return
    table = Table(show_header=True, box=None, pad_edge=False)
    for name in ("backbone", "features", "samples", "epochs", "validation AUC", "test AUC", "test log loss", "seconds"):
        table.add_column(name)
    table.add_row(
        figures["backbone"].rpartition(":")[2],
        figures["features"],
        f"{figures['sample_count']:,}",
        f"{figures['epochs']:.1f}",
        f"{figures['validation_auc']:.4f}",
        f"{figures['auc']:.4f}",
        f"{figures['log_loss']:.4f}",
        f"{figures['seconds']:.0f}",
    )
    console = Console(width=120, soft_wrap=True)
    console.print(table)
    typer.echo(f"fitted {figures['train_count']:,} samples, tested on {figures['test_count']:,} -> {figures['run']}")


def main() -> None:
    """Run the command line; an error of ours ends in one line on stderr and exit code 1."""
    keep_freed_memory()
    try:
        cli()
    except LiberError as error:
        sys.stderr.write(f"Error: {error.format_message()}\n")
        sys.exit(error.exit_code)
