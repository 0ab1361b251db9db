"""An ablation as Markdown and as a picture."""

from collections.abc import Mapping
from pathlib import Path

from liber_feast.errors import MissingExtra
from training.ablate import BASELINE, VARIANTS, Ablation, Figures, partition_size, rows_of
from training.id_dropout import user_id_told

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingExtra(package="matplotlib", extra="train") from error

TABLE, PICTURE = "ablation.md", "ablation.png"


def write_report(folder: Path, *, ablation: Ablation, found: Mapping[str, Figures]) -> None:
    """Write ablation.md and ablation.png into `folder`."""
    (folder / TABLE).write_text(markdown(ablation, found=found), encoding="utf-8")
    draw(ablation, found=found).savefig(folder / PICTURE)


def markdown(ablation: Ablation, *, found: Mapping[str, Figures]) -> str:
    """Return the table, with what all fits had in common above it."""
    options = ablation.options
    backbone = options.backbone.rpartition(":")[2]
    told = user_id_told(is_field=options.user_id, dropout=options.id_dropout)
    seeds = ", ".join(map(str, ablation.seeds))
    lines = [
        f"{backbone}, user id {told}, last {options.sequence_length} behaviors, the memory hidden from"
        f" {options.memory_dropout:.0%} of a step's samples, seeds {seeds};"
        " means over the seeds on the last tenth by time. p: paired t-test over the seeds against the baseline. Calls"
        " are those of the interest backend.",
        "",
        "| variant | AUC | over baseline | p | log loss | validation AUC | calls a user | texts |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows_of(found).items():
        gain = "" if row["auc_gain"] is None or name == BASELINE else f"{row['auc_gain']:+.4f}"
        p_value = "" if row["p_value"] is None else f"{row['p_value']:.3f}"
        lines.append(
            f"| {described(name)} | {row['auc']:.4f} | {gain} | {p_value} | {row['log_loss']:.4f} |"
            f" {row['validation_auc']:.4f} | {row['calls_per_user']:.2f} | {row['texts']:,} |"
        )
    return "\n".join(lines) + "\n"


def described(name: str) -> str:
    """Return what a variant is."""
    return VARIANTS.get(name) or f"partitions of {partition_size(name)} behaviors"


def draw(ablation: Ablation, *, found: Mapping[str, Figures]) -> Figure:
    """Return the picture: a bar of mean AUC for each variant with a dot for each seed, calls a user beside it."""
    figure = Figure(figsize=(10, 1.5 + 0.4 * len(found)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    rows = rows_of(found)
    places = list(range(len(rows)))[::-1]
    every = [auc for figures in found.values() for auc in figures.auc]
    margin = max(max(every) - min(every), 0.001) / 2
    left.barh(places, [row["auc"] or 0.0 for row in rows.values()], color="tab:blue", alpha=0.5)
    for place, figures in zip(places, found.values(), strict=True):
        left.plot(figures.auc, [place] * len(figures.auc), ".", color="tab:blue")
    left.set_xlim(min(every) - margin, max(every) + margin)
    left.set_yticks(places, [described(name) for name in rows])
    left.set_xlabel("AUC (the axis does not start at 0)")
    right.barh(places, [row["calls_per_user"] or 0.0 for row in rows.values()], color="tab:orange", alpha=0.7)
    right.set_xlabel("calls a user")
    figure.suptitle(f"{ablation.options.backbone.rpartition(':')[2]}: what each part is worth")
    return figure
