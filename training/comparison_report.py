"""A comparison as Markdown, JSON and a picture."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from liber_feast.errors import MissingExtra
from liber_feast.tensor_file import write_atomically
from training.id_dropout import user_id_told
from training.protocol import FINAL, HISTORY_GROUPS, TENTHS

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingExtra(package="matplotlib", extra="train") from error

TABLE, FIGURES, PICTURE = "comparison.md", "comparison.json", "comparison.png"
SIGNIFICANT = 0.01


def write_report(folder: Path, *, document: Mapping[str, Any]) -> None:
    """Write comparison.json, comparison.md and comparison.png into `folder`; `document` is the first of these."""
    write_atomically(folder / FIGURES, (json.dumps(document, indent=2) + "\n").encode())
    write_atomically(folder / TABLE, markdown(document).encode())
    draw(document).savefig(folder / PICTURE)


def held(document: Mapping[str, Any]) -> str:
    """Return what all fits of a table had in common."""
    facts = document["held"]
    match = "compared with the candidate" if facts["window_match"] else "not compared with the candidate"
    told = user_id_told(is_field=facts["user_id"], dropout=facts["id_dropout"])
    longer = "".join(f" ({name}: the last {length})" for name, length in facts["longer_histories"].items())
    configs = "".join(
        f"; {name} with {', '.join(f'{key} {value}' for key, value in config.items() if key != 'history')}"
        for name, config in facts["configs"].items()
        if config.keys() - {"history"}
    )
    return (
        f"{facts['data']}, {facts['samples']:,} samples; {_store(facts['store'])}; user id {told}; last"
        f" {facts['sequence_length']} behaviors{longer}, {match}; backbones without a sequence see them as:"
        f" {facts['history']}; the memory is hidden from {facts['memory_dropout']:.0%} of a step's samples, and its"
        f" partitions count in its match by: {facts['match']};"
        f" a like is a rating above {facts['like_above']:g}; {facts['seeds']} seeds, paired; at most {facts['epochs']}"
        f" epochs{configs}"
    )


def _store(facts: Mapping[str, Any]) -> str:
    """Return what the store of a feature repo is made by."""
    condition = ", ".join(f"{key} {value}" for key, value in facts["partition"].items())
    items = "none" if facts["item_text"] is None else facts["item_text"]
    return f"partitions by {condition}, their texts {', '.join(facts['interest'].values())}, texts of items {items}"


def markdown(document: Mapping[str, Any]) -> str:
    """Return all tables; what held stands above each."""
    rows, facts = document["backbones"], document["held"]
    folds = ", ".join(f"{facts['test_samples'][name]:,}" for name in facts["test_samples"] if name != FINAL)
    pooled = f"{facts['folds']} rolling folds within the first 90 % ({folds} test samples), meaned"
    parts = [
        "# Comparison",
        _section("Rolling folds", what=f"{held(document)}. {pooled}.", lines=_folds(rows)),
        _section(
            "By history length",
            what=f"{held(document)}. Gain in AUC by the earlier behaviors of a sample's user; {pooled}.",
            lines=_history(rows, key="folds_auc_gain_by_history"),
        ),
        "p (seeds): paired t-test over the seeds. p (users): bootstrap over users, two-sided; the deviation is its"
        " standard error. Within users: the mean of each user's own AUC, of those with likes and dislikes, by their"
        " samples. On the folds all columns but the base AUC are gains; a lower log loss is better. Bold: gained, and"
        f" both p below {SIGNIFICANT:g}.",
    ]
    if FINAL in facts["test_samples"]:
        final = (
            "Final block: train 80 %, stop on the next 10 %, test on the last 10 %"
            f" ({facts['test_samples'][FINAL]:,} samples of {facts['test_users'][FINAL]:,} users)"
        )
        what = f"{held(document)}. Gain in AUC likewise. {final}."
        history = _history(rows, key="auc_gain_by_history")
        parts.insert(1, _section("Table 2", what=f"{held(document)}. {final}. Means over seeds.", lines=_final(rows)))
        parts.insert(-1, _section("By history length, final block", what=what, lines=history))
    return "\n\n".join(parts) + "\n"


def _section(title: str, *, what: str, lines: Sequence[str]) -> str:
    return "\n".join([f"## {title}", "", what, "", *lines])


def _final(rows: Mapping[str, Any]) -> list[str]:
    lines = [
        "| backbone | features | AUC | gain | relative | log loss | within users | p (seeds) | p (users) | deviation |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for backbone, row in rows.items():
        lines.append(
            f"| {_short(backbone)} | baseline | {row['base_auc']:.4f} | | | {row['base_log_loss']:.4f} |"
            f" {_shown(row['base_within_user_auc'], '.4f')} | | | |"
        )
        lines += [
            f"| | {name} | {one['auc']:.4f} |"
            f" {_gain(one['auc_gain'], one['t_test_p'], one['user_bootstrap_p'])} |"
            f" {one['relative_improvement']:+.2%} | {one['log_loss']:.4f} | {_shown(one['within_user_auc'], '.4f')} |"
            f" {one['t_test_p']:.3f} |"
            f" {one['user_bootstrap_p']:.3f} | {one['user_bootstrap_deviation']:.4f} |"
            for name, one in variants(row).items()
        ]
    return lines


def _folds(rows: Mapping[str, Any]) -> list[str]:
    lines = [
        "| backbone | features | base AUC | gain | by fold | log loss | within users | p (seeds) | p (users) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for backbone, row in rows.items():
        lines += [
            f"| {_short(backbone)} | {name} | {row['base_folds_auc']:.4f} |"
            f" {_gain(one['folds_auc_gain'], one['folds_p_value'], one['folds_user_bootstrap_p'])} |"
            f" {', '.join(f'{gain:+.4f}' for gain in one['folds_auc_gain_by_fold'])} |"
            f" {one['folds_log_loss_gain']:+.4f} | {_shown(one['folds_within_user_auc_gain'], '+.4f')} |"
            f" {one['folds_p_value']:.3f} | {one['folds_user_bootstrap_p']:.3f} |"
            for name, one in variants(row).items()
        ]
    return lines


def _history(rows: Mapping[str, Any], *, key: str) -> list[str]:
    lines = [f"| backbone | features | {' | '.join(HISTORY_GROUPS)} |", "| --- " * (2 + len(HISTORY_GROUPS)) + "|"]
    for backbone, row in rows.items():
        for name, one in variants(row).items():
            shown = " | ".join(_shown(one[key][group], "+.4f") for group in HISTORY_GROUPS)
            lines.append(f"| {_short(backbone)} | {name} | {shown} |")
    return lines


def variants(row: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the feature sets of a backbone's row."""
    return {name: one for name, one in row.items() if isinstance(one, dict)}


def draw(document: Mapping[str, Any]) -> Figure:
    """Return the picture: for each backbone and feature set the gain in AUC, on the folds and on the final block."""
    rows = document["backbones"]
    names = list(variants(next(iter(rows.values()))))
    figure = Figure(figsize=(10, 2 + 0.3 * len(rows) * max(len(names), 1)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    sides = {"rolling folds": ("folds_auc_gain", "folds_user_bootstrap_deviation")}
    if FINAL in document["held"]["test_samples"]:
        sides["final block"] = ("auc_gain", "user_bootstrap_deviation")
    every = figure.subplots(1, len(sides), sharey=True, squeeze=False)[0]
    for axes, (title, (gain, deviation)) in zip(every, sides.items(), strict=True):
        for place, name in enumerate(names):
            at = -np.arange(len(rows)) - place / (len(names) + 1)
            values = [row[name][gain] for row in rows.values()]
            errors = [2 * row[name][deviation] for row in rows.values()]
            axes.errorbar(values, at, xerr=errors, fmt="o", label=name)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel("gain in AUC over the baseline, with two standard errors over users")
        axes.set_title(title)
    every[0].set_yticks(-np.arange(len(rows)) - 0.25, [_short(name) for name in rows])
    if names:
        every[0].legend()
    figure.suptitle(f"{document['held']['data']}, {document['held']['folds']} folds before the last {TENTHS} %")
    return figure


def _gain(value: float, *p_values: float) -> str:
    """Return a gain in AUC, bold where it is one by every test."""
    shown = f"{value:+.4f}"
    return f"**{shown}**" if value > 0 and max(p_values) < SIGNIFICANT else shown


def _short(backbone: str) -> str:
    return backbone.rpartition(":")[2]


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
