"""The `liber` command: load a data set, look at the memory, plan and account for LLM calls, publish trained weights.

Figures go to stdout, progress and errors to stderr; a bad input ends in one line.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from liber_feast.cli_operations import register
from liber_feast.cli_worker import worker
from liber_feast.errors import ended_in_one_line
from liber_feast.fast_start import leave_out_type_checks

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="LIBER features on Feast."
)

Repo = Annotated[Path, typer.Option(help="The feature repo: the folder of feature_store.yaml.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


PLANNED = {
    "stage": "stage",
    "calls": "calls",
    "input_tokens": "tokens in",
    "output_tokens": "out",
    "seconds": "seconds",
    "dollars": "dollars",
    "basis": "from",
}
SPENT = {
    "key": "",
    "calls": "calls",
    "answered": "answered",
    "input_tokens": "tokens in",
    "cached_tokens": "cached",
    "output_tokens": "out",
    "seconds": "seconds",
    "dollars": "dollars",
}
"""Columns of the tables, by name; `--json` has more."""


class By(StrEnum):
    """What costs are summed by."""

    DAY = "day"
    MODEL = "model"
    STAGE = "stage"
    USER = "user"


class Stage(StrEnum):
    """Of the texts."""

    SUMMARY = "summary"
    SHIFT = "shift"


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
def plan(
    start: Annotated[str, typer.Argument(help="As for `feast materialize`, ISO 8601.")],
    end: Annotated[str, typer.Argument(help="As for `feast materialize`, ISO 8601.")],
    repo: Repo = Path("feature_repo"),
    as_json: Json = False,
) -> None:
    """Say what `feast materialize START END` would ask an LLM for, and what it would cost; no call, no write."""
    from liber_feast.plan import plan_window  # noqa: PLC0415

    facts = plan_window(repo, start, end).facts()
    if as_json:
        show(facts, title="", as_json=True)
        return
    stages, left = facts.pop("stages"), facts.pop("budget_left")
    if stages:
        total = facts.pop("total")
        show_rows([{**total, "stage": "in all"}, *stages], columns=PLANNED, title="calls to come")
        if total["too_long"]:
            facts["too long for the context"] = f"{total['too_long']} (these fail, and their shifts cannot be made)"
    facts["budget_left"] = {f"{one['unit']} of the {one['scope']}": one["left"] for one in left} or "no limit"
    show(facts, title=f"plan for {repo}", as_json=False)


@app.command()
def costs(
    by: Annotated[By, typer.Option(help="What the sums are by; days are UTC.")] = By.DAY,
    repo: Repo = Path("feature_repo"),
    as_json: Json = False,
) -> None:
    """Show what the calls to LLMs have cost so far."""
    from liber_feast.llm_commands import costs as costs_of  # noqa: PLC0415

    facts = costs_of(repo, by=by.value)
    if as_json:
        show(facts, title="", as_json=True)
        return
    show_rows([*facts["rows"], {**facts["total"], "key": "in all"}], columns=SPENT, title=f"spent by {by.value}")


@app.command()
def retry(
    user: Annotated[str | None, typer.Option(help="Only the failed texts of this user.")] = None,
    repo: Repo = Path("feature_repo"),
    as_json: Json = False,
) -> None:
    """Try failed texts once more, and publish what follows."""
    from liber_feast.llm_commands import retry as retry_failed  # noqa: PLC0415

    done = retry_failed(repo, user_id=user)
    if not done.facts["retried_users"]:
        _say("No text has failed.")
    show(done.facts, title=f"retried in {repo}", as_json=as_json)
    if done.error is not None:
        raise done.error


@app.command()
def recompute(
    since: Annotated[str, typer.Option(help="Partitions that were sealed at this time or later, ISO 8601.")],
    stage: Annotated[Stage | None, typer.Option(help="Only the texts of one stage.")] = None,
    repo: Repo = Path("feature_repo"),
    as_json: Json = False,
) -> None:
    """Write texts anew, as new rows, with the prompt and the model in use; this costs what they cost at first."""
    from liber_feast.llm_commands import recompute as write_anew  # noqa: PLC0415

    done = write_anew(repo, since=since, stage=stage)
    if set(done.facts) == {"marked_texts"}:
        _say(f"No partition was sealed since {since}; nothing is written anew.")
    show(done.facts, title=f"written anew in {repo}", as_json=as_json)
    if done.error is not None:
        raise done.error


app.command()(worker)


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


register(app)


def show(facts: dict[str, Any], *, title: str, as_json: bool) -> None:
    """Print figures to stdout: a table, or one JSON object."""
    if as_json:
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), _figure(value))
    Console().print(table)


def show_rows(rows: Sequence[Mapping[str, Any]], *, columns: Mapping[str, str], title: str) -> None:
    """Print figures of the same kind to stdout: a table with a row for each; `columns` are titles by name."""
    table = Table(title=title, title_justify="left")
    for place, name in enumerate(columns.values()):
        table.add_column(name, justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_figure(row.get(name, "")) for name in columns))
    Console().print(table)


def _figure(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_figure(one)}" for key, one in value.items())
    if isinstance(value, float):
        return f"{value:,.4f}".rstrip("0").rstrip(".")
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def main() -> None:
    """Run the command; one of our errors is one line on stderr and exit code 1."""
    leave_out_type_checks()
    with ended_in_one_line():
        app()


if __name__ == "__main__":
    main()
