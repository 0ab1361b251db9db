"""The `liber` command: load a data set, look at the memory, publish trained fusion weights, run it all once.

Figures go to stdout, progress and errors to stderr; a bad input ends in one line.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from liber_feast.errors import LiberError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="LIBER features on Feast."
)

Repo = Annotated[Path, typer.Option(help="The feature repo: the folder of feature_store.yaml.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


@app.command()
def load(
    data: Annotated[str, typer.Argument(help="A data set folder, or `synthetic`.")],
    repo: Repo = Path("feature_repo"),
    seed: Annotated[int, typer.Option(help="Of the synthetic data.")] = 0,
    users: Annotated[int | None, typer.Option(help="Only the first N users; for synthetic data, how many.")] = None,
    behaviors: Annotated[int | None, typer.Option(help="How many synthetic behaviors.")] = None,
    move_aside: Annotated[
        bool, typer.Option("--move-aside", help="Keep what another data set left under another name.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a data set's behaviors, items and users as the Delta tables of the feature repo."""
    from liber_feast.repo import load_data_set  # noqa: PLC0415 (commands import what they need, when they run)

    facts = load_data_set(data, repo=repo, say=_say, seed=seed, users=users, behaviors=behaviors, move_aside=move_aside)
    show(facts, title=f"loaded {facts['name']} -> {repo / 'data'}", as_json=as_json)


@app.command()
def status(repo: Repo = Path("feature_repo"), as_json: Json = False) -> None:
    """Show what the memory holds: users, caches, partitions, texts, versions, bytes."""
    from liber_feast.repo import repo_status  # noqa: PLC0415

    show(repo_status(repo), title=f"memory of {repo}", as_json=as_json)


@app.command()
def fuse(
    run: Annotated[Path, typer.Argument(help="A training run with LIBER features.")],
    repo: Repo = Path("feature_repo"),
    as_json: Json = False,
) -> None:
    """Bring a run's fusion weights into use: fuse every partition anew and publish, without LLM or BERT."""
    from liber_feast.repo import use_run  # noqa: PLC0415

    facts = use_run(run, repo=repo)
    show(facts, title=f"fusion {facts['fusion_version']} in use -> {repo / 'data'}", as_json=as_json)


@app.command()
def quickstart(
    data: Annotated[str, typer.Argument(help="A data set folder, or `synthetic`.")] = "synthetic",
    repo: Repo = Path("feature_repo"),
    runs: Annotated[Path, typer.Option(help="Where trained runs go.")] = Path("runs"),
    users: Annotated[int | None, typer.Option(help="Only the first N users; for synthetic data, how many.")] = None,
    behaviors: Annotated[int | None, typer.Option(help="How many synthetic behaviors.")] = None,
    as_json: Json = False,
) -> None:
    """Go the whole way once: load, apply, materialize, two fits, fuse, serve, score."""
    from liber_feast.quickstart import run_quickstart  # noqa: PLC0415

    run_quickstart(data, repo=repo, runs=runs, users=users, behaviors=behaviors, as_json=as_json)


def show(facts: dict[str, Any], *, title: str, as_json: bool) -> None:
    """Print figures to stdout: a table, or one JSON object."""
    if as_json:
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in facts.items():
        shown = ", ".join(f"{key}: {one}" for key, one in value.items()) if isinstance(value, dict) else value
        table.add_row(name.replace("_", " "), f"{shown:,}" if isinstance(shown, int) else str(shown))
    Console().print(table)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def main() -> None:
    """Run the command; one of our errors is one line on stderr and exit code 1."""
    try:
        app()
    except LiberError as error:
        sys.stderr.write(f"Error: {error.message}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
