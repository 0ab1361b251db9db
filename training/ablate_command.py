"""The command `python -m training ablate`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from training.ablate import VARIANTS, Ablation, ablate, rows_of
from training.ablation_report import markdown, write_report
from training.command import Backbone, Config, Device, Epochs, Json, Repo, choose, cli


@cli.command(name="ablate")
def ablate_command(
    *,
    backbone: Backbone = None,
    repo: Repo = Path("feature_repo"),
    out: Annotated[
        Path | None,
        typer.Option(help="Where figures, table and picture are kept.", show_default="runs/BACKBONE.ablation"),
    ] = None,
    config: Config = None,
    variants: Annotated[
        list[str] | None,
        typer.Option("--variant", help=f"{', '.join(VARIANTS)}; several times for several.", show_default="all"),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Fits of each variant, seeds 0, 1 and so on.", min=1)] = 5,
    epochs: Epochs = None,
    device: Device = None,
    pay: Annotated[
        bool, typer.Option("--pay", help="Let an LLM write what a variant needs; the texts of `extractive` are free.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the variants that are done already.")] = False,
    as_json: Json = False,
) -> None:
    """Leave out one part of LIBER at a time; the texts of some variants take long."""
    chosen = choose(config, backbone=backbone, features="liber", epochs=epochs, device=device)
    ablation = Ablation(
        repo=repo,
        options=chosen.options,
        seeds=range(seeds),
        variants=list(dict.fromkeys(variants or VARIANTS)),
        pay=pay,
    )
    folder = out or Path("runs") / f"{chosen.options.backbone.rpartition(':')[2].lower()}.ablation"
    found = ablate(ablation, folder=folder, resume=resume, console=Console(stderr=True))
    write_report(folder, ablation=ablation, found=found)
    if as_json:
        figures = {"backbone": chosen.options.backbone, "seeds": seeds, "out": str(folder), "variants": rows_of(found)}
        typer.echo(json.dumps(figures))
    else:
        typer.echo(markdown(ablation, found=found))
