"""What a run could not do, as one error: texts that failed, or a budget that is out."""

import re
from collections.abc import Mapping, Sequence

from liber_feast.errors import BudgetExhausted, PartitionsFailed
from liber_feast.estimate import missing_text_counts
from liber_feast.interest import SHIFT, SUMMARY
from liber_feast.materialize import Job, Report
from liber_feast.memory.status import failure_reasons

PROMPTS_COUNTED = 200
"""Prompts that are rendered to say what the rest would cost."""
REASONS_SHOWN = 3
NUMBER = re.compile(r"\d+(?:,\d+)*")


def shortfall(job: Job, report: Report) -> PartitionsFailed | BudgetExhausted | None:
    """Return the error that the program ends with once everything else was published; None: nothing is left over."""
    if report.exhausted is not None:
        return _exhausted(job, report)
    if report.failed_count:
        return PartitionsFailed(
            f"{_texts(report.failed_count)} could not be had: {_reasons(job)}. Everything else is published;"
            " `liber retry` tries them again, and so does the next `feast materialize`.",
            failed_count=report.failed_count,
        )
    return None


def _exhausted(job: Job, report: Report) -> BudgetExhausted:
    with job.memory.reading() as connection:
        left = missing_text_counts(connection)
    parts = [f"The budget is out: {report.exhausted}. Left are {left[SUMMARY]:,} summaries and {left[SHIFT]:,} shifts"]
    if job.llm is not None:
        waves = job.waves(with_failed=True)
        with job.memory.reading() as connection:
            cost = job.llm.open_estimator().estimate(
                connection, missing=left, summaries=waves.summary_requests(), at_most=PROMPTS_COUNTED
            )
        money = f" and {cost.dollars:,.4f} dollars" if cost.dollars else ""
        parts.append(f", about {cost.calls:,} calls, {cost.tokens:,} tokens{money}")
    if report.failed_count:
        parts.append(f"; {_texts(report.failed_count)} could not be had ({_reasons(job)})")
    parts.append(
        ". What was learned is published. Run `feast materialize` again, with a larger batch_engine.interest.budget"
        " or on another day if it is the day's."
    )
    return BudgetExhausted("".join(parts), limit=str(report.exhausted))


def _texts(count: int) -> str:
    return f"{count:,} {'text' if count == 1 else 'texts'}"


def _reasons(job: Job) -> str:
    """Return the most frequent reasons of the memory's failed partitions, with their counts."""
    with job.memory.reading() as connection:
        found = alike(failure_reasons(connection))
    by_count = sorted(found.items(), key=lambda reason: -reason[1])
    shown = [f"{count:,} x {reason}" for reason, count in by_count[:REASONS_SHOWN]]
    others = sum(count for _, count in by_count[REASONS_SHOWN:])
    return ", ".join([*shown, *([f"{others:,} x others"] if others else [])])


def alike(reasons: Mapping[str, int]) -> dict[str, int]:
    """Return reasons that differ in their numbers alone as one, with the least and the greatest of each number."""
    groups: dict[str, list[str]] = {}
    for reason in reasons:
        groups.setdefault(NUMBER.sub("0", reason), []).append(reason)
    return {_spanned(some): sum(reasons[reason] for reason in some) for some in groups.values()}


def _spanned(some: Sequence[str]) -> str:
    places = zip(*(NUMBER.findall(reason) for reason in some), strict=True)
    spans = ((min(place, key=_value), max(place, key=_value)) for place in places)
    shown = iter([least if least == most else f"{least} to {most}" for least, most in spans])
    return NUMBER.sub(lambda _: next(shown), some[0])


def _value(number: str) -> int:
    return int(number.replace(",", ""))
