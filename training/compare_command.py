"""The command `python -m training compare`."""

import inspect
import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from rich.console import Console

from liber_feast.artifact import find_class
from liber_feast.errors import ConfigError
from training.backbones import BACKBONES, backbone_reference
from training.command import (
    Config,
    Device,
    Epochs,
    IdDropout,
    Match,
    MemoryDropout,
    Overwrite,
    Pay,
    Precision,
    Repo,
    SequenceLength,
    UserId,
    check_used,
    choose,
    cli,
)
from training.compare import REPO_IN_FOLDER, clear, compare, data_name
from training.comparison import BASE, SEVEN, VARIANTS, Comparison
from training.comparison_report import markdown, write_report
from training.data import Features
from training.data_repo import data_repo
from training.options import FitOptions


class HistoryChoice(StrEnum):
    """What backbones without a sequence see of the recent behaviors."""

    MEAN = "mean"
    NONE = "none"


@cli.command(name="compare")
def compare_command(
    *,
    data: Annotated[
        str | None,
        typer.Option(help="A data set as for `liber load`, for a feature repo of its own in the folder of --out."),
    ] = None,
    repo: Repo = Path("feature_repo"),
    backbones: Annotated[
        list[str] | None,
        typer.Option("--backbones", help=f"{', '.join(BACKBONES)}, or package.module:Class; with commas for several."),
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            "--features",
            help=f"{', '.join(VARIANTS)} or kar, beside {BASE}; with commas for several.",
            show_default=",".join(VARIANTS),
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Fits of each, seeds 0, 1 and so on.")] = 5,
    folds: Annotated[int, typer.Option(help="Rolling folds before the final block, at most 7.")] = 3,
    out: Annotated[Path, typer.Option(help="Where fits, figures, tables and picture are kept.")] = Path(
        "runs/comparison"
    ),
    processes: Annotated[int, typer.Option(help="Fits at a time, each in a process of its own.", min=1)] = 1,
    config: Config = None,
    user_id: UserId = None,
    id_dropout: IdDropout = None,
    memory_dropout: MemoryDropout = None,
    sequence_length: SequenceLength = None,
    history: Annotated[
        HistoryChoice, typer.Option(help="What backbones without a sequence see of the recent behaviors.")
    ] = HistoryChoice.MEAN,
    embedding_width: Annotated[
        int | None, typer.Option(help="Width of embeddings.", min=1, show_default="the backbone's")
    ] = None,
    match: Match = None,
    epochs: Epochs = None,
    device: Device = None,
    precision: Precision = None,
    no_final: Annotated[
        bool, typer.Option("--no-final", help="Leave out the final block: for all that is chosen by the folds.")
    ] = False,
    pay: Pay = False,
    overwrite: Overwrite = False,
) -> None:
    """Compare feature sets on every backbone, on rolling folds and on a final block; fits that ended are kept."""
    chosen = choose(
        config,
        backbone=None,
        features=None,
        epochs=epochs,
        device=device,
        precision=precision,
        sequence_length=sequence_length,
        match=match,
        user_id=user_id,
        id_dropout=id_dropout,
        memory_dropout=memory_dropout,
    )
    names = list(dict.fromkeys(split(backbones) or SEVEN))
    given = [feature(name) for name in split(features) or VARIANTS if name != BASE]
    configs = {
        name: config_of(name, options=chosen.options, history=history.value, width=embedding_width) for name in names
    }
    comparison = Comparison(
        backbones=names,
        features=[BASE, *dict.fromkeys(given)],
        seeds=seeds,
        folds=folds,
        options=chosen.options,
        configs=configs,
        sequence_length=sequence_length,
        with_final=not no_final,
    )
    check_used(comparison.options, features=comparison.features)
    if overwrite:
        clear(out)
    longest = max(comparison.options_of(name).sequence_length for name in names)
    read = repo if data is None else data_repo(repo, data=data, folder=out / REPO_IN_FOLDER, sequence_length=longest)
    document = compare(
        read,
        comparison=comparison,
        folder=out,
        data=data_name(read),
        history=history.value,
        processes=processes,
        pay=pay,
        console=Console(stderr=True),
    )
    write_report(out, document=document)
    typer.echo(markdown(document))
    typer.echo(json.dumps({**document, "out": str(out)}))


def split(given: Sequence[str] | None) -> list[str]:
    """Return the names in an option that takes several, each by itself or with commas."""
    return [name.strip() for one in given or () for name in one.split(",") if name.strip()]


def feature(name: str) -> Features:
    """Return the feature set `name`.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in get_args(Features):
        raise ConfigError(f"features {name!r} are unknown. Known: {', '.join(get_args(Features))}.")
    return cast("Features", name)


def config_of(name: str, *, options: FitOptions, history: str, width: int | None) -> dict[str, Any]:
    """Return what differs from a backbone's defaults: what the config file says of it, and the flags it has.

    Raises:
        ConfigError: a backbone that cannot be used.
    """
    reference = backbone_reference(name)
    known = inspect.signature(cast("Any", find_class(reference)).Config).parameters
    flags = {"history": history, "embedding_width": width}
    found = {flag: value for flag, value in flags.items() if flag in known and value is not None}
    return {**(options.backbone_config if options.backbone == reference else {}), **found}
