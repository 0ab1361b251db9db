"""The command line of training: fit a CTR backbone on the features of a feature repo."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from liber_feast.allocator import keep_freed_memory
from liber_feast.artifact import find_class
from liber_feast.errors import ConfigError, ended_in_one_line
from training.backbones import (
    BACKBONES,
    HISTORY_LENGTH,
    LONG_HISTORY,
    LONG_HISTORY_LENGTH,
    backbone_reference,
)
from training.id_dropout import user_id_told
from training.options import FitConfig, FitOptions, read_config, with_backbone
from training.run import run_fit, run_search
from training.search import BATCH_SIZES, LEARNING_RATES, Outcome, best, grid

cli = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
DEFAULTS = FitConfig(features="liber", options=FitOptions())


class FeatureChoice(StrEnum):
    """Which features a backbone reads."""

    BASELINE = "baseline"
    LIBER = "liber"
    EVIDENCE = "evidence"
    LIBER_AND_EVIDENCE = "liber+evidence"
    KAR = "kar"


class DeviceChoice(StrEnum):
    """Where to fit."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class PrecisionChoice(StrEnum):
    """What a step multiplies in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class MatchChoice(StrEnum):
    """What is learned of the memory's match with the candidate."""

    MEAN = "mean"
    DECAY = "decay"
    ATTENTION = "attention"
    PROJECTED = "projected"


def default(name: str) -> str:
    """Return the default of an option of a fit as `--help` shows it; none is set, so that a config file's counts."""
    return str(getattr(DEFAULTS.options, name))


Backbone = Annotated[
    str | None, typer.Option(help=f"{', '.join(BACKBONES)}, or package.module:Class.", show_default="din")
]
FeatureOption = Annotated[
    FeatureChoice | None,
    typer.Option(
        help="The fused vector (liber), the memory's evidence, both or neither; or the texts of KAR.",
        show_default=DEFAULTS.features,
    ),
]
Repo = Annotated[Path, typer.Option(help="The feature repo.")]
Config = Annotated[
    Path | None,
    typer.Option(help="Features and options of a run's config.json or a search's search.json; other flags go before."),
]
Seed = Annotated[
    int | None,
    typer.Option(help="Seed of the weights and of the order of samples.", min=0, show_default=default("seed")),
]
Epochs = Annotated[int | None, typer.Option(help="At most so many epochs.", min=1, show_default=default("epochs"))]
Device = Annotated[DeviceChoice | None, typer.Option(help="Where to fit.", show_default=default("device"))]
Precision = Annotated[
    PrecisionChoice | None,
    typer.Option(help="What steps multiply in; auto: bfloat16 on a GPU.", show_default=default("precision")),
]
SequenceLength = Annotated[
    int | None,
    typer.Option(
        help="Recent behaviors that the backbone sees, of those that the store keeps (`sequence.length`).",
        min=1,
        show_default=f"{HISTORY_LENGTH}; {LONG_HISTORY_LENGTH} for {' and '.join(LONG_HISTORY)}",
    ),
]
Match = Annotated[
    MatchChoice | None,
    typer.Option(
        help="What is learned of the memory's match: nothing (mean) can be served.", show_default=default("match")
    ),
]
UserId = Annotated[bool | None, typer.Option("--user-id", help="Make the user id a field; it helps known users alone.")]
IdDropout = Annotated[
    float | None,
    typer.Option(
        help="With --user-id, hide the ids of this share of the samples of a step.", show_default=default("id_dropout")
    ),
]
MemoryDropout = Annotated[
    float | None,
    typer.Option(
        help="Hide the long-term memory of this share of the samples of a step.",
        show_default=default("memory_dropout"),
    ),
]
Pay = Annotated[
    bool, typer.Option("--pay", help="Let an LLM write texts that are missing (KAR's); those of `extractive` are free.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object as the last line of stdout.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what exists.")]


@cli.callback()
def training() -> None:
    """Train a CTR backbone on the features of the store."""


@cli.command(name="fit")
def fit_command(
    *,
    backbone: Backbone = None,
    features: FeatureOption = None,
    repo: Repo = Path("feature_repo"),
    run: Annotated[Path | None, typer.Option(help="Run folder.", show_default="runs/BACKBONE-FEATURES")] = None,
    config: Config = None,
    seed: Seed = None,
    epochs: Epochs = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Samples per step.", min=2, show_default=default("batch_size"))
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Adam's learning rate.", min=0, show_default=default("learning_rate"))
    ] = None,
    sequence_length: SequenceLength = None,
    user_id: UserId = None,
    id_dropout: IdDropout = None,
    memory_dropout: MemoryDropout = None,
    match: Match = None,
    device: Device = None,
    precision: Precision = None,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(help="Steps between two checkpoints; 0: at every look at the validation part.", min=0),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's checkpoint, if there is one.")] = False,
    pay: Pay = False,
    as_json: Json = False,
    overwrite: Overwrite = False,
) -> None:
    """Fit a backbone and export it as a run folder."""
    chosen = choose(
        config,
        backbone=backbone,
        features=features,
        seed=seed,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        sequence_length=sequence_length,
        user_id=user_id,
        id_dropout=id_dropout,
        memory_dropout=memory_dropout,
        match=match,
        device=device,
        precision=precision,
    )
    check_used(chosen.options, features=[chosen.features])
    figures = run_fit(
        repo,
        features=chosen.features,
        folder=run or Path("runs") / run_name(chosen),
        options=chosen.options,
        overwrite=overwrite,
        checkpoint_every=checkpoint_every,
        resume=resume,
        pay=pay,
        console=Console(stderr=True),
    )
    show(figures, as_json=as_json)


@cli.command(name="search")
def search_command(
    *,
    backbone: Backbone = None,
    features: FeatureOption = None,
    repo: Repo = Path("feature_repo"),
    out: Annotated[
        Path | None, typer.Option(help="What was found, as JSON.", show_default="runs/BACKBONE-FEATURES.search.json")
    ] = None,
    config: Config = None,
    batch_sizes: Annotated[
        list[int] | None, typer.Option("--batch-size", help="Samples per step; several times for several.", min=2)
    ] = None,
    learning_rates: Annotated[
        list[float] | None, typer.Option("--learning-rate", help="Adam's learning rate, likewise.", min=0)
    ] = None,
    seed: Seed = None,
    epochs: Epochs = None,
    sequence_length: SequenceLength = None,
    device: Device = None,
    precision: Precision = None,
    jobs: Annotated[int, typer.Option(help="Fits at a time, each in a process of its own.", min=1)] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the fits that are done already.")] = False,
    pay: Pay = False,
    as_json: Json = False,
    overwrite: Overwrite = False,
) -> None:
    """Search batch size and learning rate by validation AUC; the test part is never scored."""
    base = choose(
        config,
        backbone=backbone,
        features=features,
        seed=seed,
        epochs=epochs,
        sequence_length=sequence_length,
        device=device,
        precision=precision,
    )
    check_used(base.options, features=[base.features])
    path = out or Path("runs") / f"{run_name(base)}.search.json"
    outcomes = run_search(
        repo,
        base=base,
        points=grid(batch_sizes=batch_sizes or BATCH_SIZES, learning_rates=learning_rates or LEARNING_RATES),
        path=path,
        jobs=jobs,
        overwrite=overwrite,
        resume=resume,
        pay=pay,
        console=Console(stderr=True),
    )
    show_search(outcomes, path=path, options=base.options, as_json=as_json)


def choose(path: Path | None, *, backbone: str | None, features: str | None, **flags: Any) -> FitConfig:
    """Return the features and options of a fit: the flags that are set, then the config file, then the defaults.

    Raises:
        ConfigError: a config file or backbone that cannot be used.
    """
    base = DEFAULTS if path is None else read_config(path)
    options = base.options
    if backbone is not None and backbone_reference(backbone) != options.backbone:
        options = with_backbone(options, reference=backbone_reference(backbone))
    options = replace(options, **{name: plain(value) for name, value in flags.items() if value is not None})
    find_class(options.backbone)
    return FitConfig(features=base.features if features is None else plain(features), options=options)


def check_used(options: FitOptions, *, features: Sequence[str]) -> None:
    """Check that no option was chosen that would do nothing to any of these features.

    Raises:
        ConfigError: the match of evidence that no features have.
    """
    if options.match != "mean" and not any("evidence" in name for name in features):
        raise ConfigError(
            f"--match {options.match} says how partitions count in the evidence of the memory, which features"
            f" {', '.join(features)} have not. Fit with --match mean, or choose features with evidence."
        )


def plain(value: Any) -> Any:
    """Return the value of a choice, and every other value as it is."""
    return value.value if isinstance(value, StrEnum) else value


def run_name(chosen: FitConfig) -> str:
    """Return the name that a run folder has by default."""
    return f"{chosen.options.backbone.rpartition(':')[2].lower()}-{chosen.features}"


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
    told = user_id_told(is_field=figures["user_id"], dropout=figures["id_dropout"])
    counts = f"fitted {figures['train_count']:,} samples, tested on {figures['test_count']:,}"
    typer.echo(f"{counts}, user id {told} -> {figures['run']}")


def show_search(outcomes: Sequence[Outcome], *, path: Path, options: FitOptions, as_json: bool) -> None:
    """Write the outcomes of a search to stdout, the best first: a table, or one JSON line."""
    found = best(outcomes)
    if as_json:
        figures = {"search": str(path), "best": asdict(found), "fits": [asdict(outcome) for outcome in outcomes]}
        typer.echo(json.dumps(figures))
        return
    table = Table(show_header=True, box=None, pad_edge=False)
    for name in ("batch size", "learning rate", "validation AUC", "validation log loss", "epochs", "seconds"):
        table.add_column(name)
    for outcome in sorted(outcomes, key=lambda outcome: -(outcome.validation_auc or 0.0)):
        point = (str(outcome.point.batch_size), f"{outcome.point.learning_rate:g}")
        if outcome.failure is not None:
            table.add_row(*point, outcome.failure)
            continue
        table.add_row(
            *point,
            f"{outcome.validation_auc:.4f}",
            f"{outcome.validation_log_loss:.4f}",
            f"{outcome.epochs:.1f}",
            f"{outcome.seconds:.0f}",
        )
    Console(width=120, soft_wrap=True).print(table)
    typer.echo(f"user id {user_id_told(is_field=options.user_id, dropout=options.id_dropout)}")
    typer.echo(f"fit by the best of {len(outcomes)}: python -m training fit --config {path}")


def main() -> None:
    """Run the command line; an error of ours ends in one line on stderr and exit code 1."""
    keep_freed_memory()
    with ended_in_one_line():
        cli()
