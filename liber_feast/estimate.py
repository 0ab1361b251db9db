"""What the texts that are missing would cost: calls, tokens, seconds and dollars, without a call.

Prompts are rendered and counted; how long answers are, how long they take and how much of a prompt the server has in
its cache is what earlier calls of the same model and stage were like, or else assumed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import sqlalchemy as sa

from liber_feast.budget import NANODOLLARS, Prices
from liber_feast.interest import SHIFT, SUMMARY, ShiftRequest, SummaryRequest
from liber_feast.interest_config import LlmConfig, OpenAIConfig
from liber_feast.llm.fit import Fitter, estimate_tokens
from liber_feast.memory.missing import missing_summaries
from liber_feast.memory.schema import partitions
from liber_feast.memory.spending import TypicalCall, typical_call
from liber_feast.memory.texts import has_text, is_marked
from liber_feast.prompt import Message, Prompt

ASSUMED_OUTPUT_TOKENS = {SUMMARY: 160, SHIFT: 120}
"""Of an answer, before the first one is there; never more than the configuration allows."""
ASSUMED_SECONDS, ASSUMED_CHUNK_SECONDS = 2.0, 20.0
"""Of a call to a server, and of a chunk of calls in this process, before the first one."""
COUNTED_PROMPTS = 20_000
"""Prompts that are rendered at most; of more the rest is taken to be like them."""

CountTokens = Callable[[Sequence[Message]], int]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageEstimate:
    """What the missing texts of one stage would cost."""

    stage: str
    model: str
    calls: int
    """One for each text; retries come on top."""
    input_tokens: int
    output_tokens: int
    seconds: float
    dollars: float
    shortened: int
    """Prompts that have to leave something out to fit the context."""
    too_long: int
    """Prompts that do not fit the context at their shortest: their texts fail without a call."""
    basis: str
    """Whether answers and seconds are those of earlier calls: `measured` or `assumed`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What all missing texts would cost, by stage."""

    stages: tuple[StageEstimate, ...]
    prompt_tokens: str = "counted"
    """`counted`: with the model's tokenizer; `estimated`: high, without it."""

    @property
    def calls(self) -> int:
        """Of all stages."""
        return sum(stage.calls for stage in self.stages)

    @property
    def tokens(self) -> int:
        """Input and output of all stages."""
        return sum(stage.input_tokens + stage.output_tokens for stage in self.stages)

    @property
    def dollars(self) -> float:
        """Of all stages."""
        return sum(stage.dollars for stage in self.stages)

    def facts(self) -> dict[str, Any]:
        """Return the stages and their sums as JSON values."""
        summed = ("calls", "input_tokens", "output_tokens", "seconds", "dollars", "shortened", "too_long")
        stages = [asdict(stage) for stage in self.stages]
        total = {name: sum(stage[name] for stage in stages) for name in summed}
        return {"stages": stages, "total": total, "prompt_tokens": self.prompt_tokens}


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimator:
    """How the calls of a configured LLM are counted."""

    config: LlmConfig
    prompt: Prompt
    count_tokens: CountTokens = estimate_tokens
    """With the model's tokenizer, or estimated high."""

    def estimate(
        self,
        connection: sa.Connection,
        *,
        missing: Mapping[str, int],
        summaries: Iterable[SummaryRequest],
        at_most: int = COUNTED_PROMPTS,
    ) -> Estimate:
        """Return what the missing texts would cost; of the prompts of `summaries` at most `at_most` are counted.

        `missing` are counts of texts by stage, and `summaries` the requests of those that are summaries.
        """
        summary_count, shift_count, prices = missing[SUMMARY], missing[SHIFT], self.config.dollar_prices()
        summary = self._typical(connection, SUMMARY)
        found = [self._fitter.summary(request) for request in islice(summaries, min(at_most, summary_count))]
        share = summary_count / max(len(found), 1)
        fitting = [one for one in found if one is not None]
        too_long = round(share * (len(found) - len(fitting)))
        first = self._stage(
            SUMMARY,
            calls=summary_count - too_long,
            input_tokens=round(share * sum(one.input_tokens for one in fitting)),
            typical=summary,
            prices=prices,
            shortened=round(share * sum(one.brevity > 0 for one in fitting)),
            too_long=too_long,
        )
        template = self.count_tokens(self.prompt.render_shift(_NO_SUMMARIES))
        second = self._stage(
            SHIFT,
            calls=shift_count,
            input_tokens=shift_count * round(template + 2 * summary.output_tokens),
            typical=self._typical(connection, SHIFT),
            prices=prices,
        )
        is_estimated = self.count_tokens is estimate_tokens
        return Estimate(stages=(first, second), prompt_tokens="estimated" if is_estimated else "counted")

    @property
    def _fitter(self) -> Fitter:
        config = self.config
        return Fitter(
            self.prompt,
            count_tokens=self.count_tokens,
            context_tokens=config.context_tokens if isinstance(config, OpenAIConfig) else config.max_model_len,
            max_output_tokens=config.max_output_tokens,
        )

    def _typical(self, connection: sa.Connection, stage: str) -> TypicalCall:
        """Return what a call is like; `calls` is 0 where it is assumed."""
        measured = typical_call(connection, model=self.config.model, stage=stage)
        if measured is not None:
            return measured
        output_tokens = min(ASSUMED_OUTPUT_TOKENS[stage], self.config.max_output_tokens)
        seconds = ASSUMED_SECONDS if isinstance(self.config, OpenAIConfig) else ASSUMED_CHUNK_SECONDS
        return TypicalCall(calls=0, seconds=seconds, output_tokens=output_tokens, cached_share=0.0)

    def _stage(
        self,
        stage: str,
        *,
        calls: int,
        input_tokens: int,
        typical: TypicalCall,
        prices: Prices,
        shortened: int = 0,
        too_long: int = 0,
    ) -> StageEstimate:
        output_tokens = round(calls * typical.output_tokens)
        cached_tokens = round(typical.cached_share * input_tokens)
        nanodollars = prices.nanodollars(
            input_tokens=input_tokens, output_tokens=output_tokens, cached_tokens=cached_tokens
        )
        most_tokens = input_tokens + calls * self.config.max_output_tokens
        return StageEstimate(
            stage=stage,
            model=self.config.model,
            calls=calls,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            seconds=max([calls * typical.seconds / self._at_once(calls), *self._minutes_of_limits(calls, most_tokens)]),
            dollars=nanodollars / NANODOLLARS,
            shortened=shortened,
            too_long=too_long,
            basis="measured" if typical.calls else "assumed",
        )

    def _at_once(self, calls: int) -> int:
        most = self.config.max_concurrency if isinstance(self.config, OpenAIConfig) else self.config.chunk_size
        return max(1, min(calls, most))

    def _minutes_of_limits(self, calls: int, tokens: int) -> Iterator[float]:
        """Yield the seconds that each limit per minute takes at least."""
        if isinstance(self.config, OpenAIConfig):
            for count, most in (
                (calls, self.config.requests_per_minute),
                (tokens, self.config.tokens_per_minute),
            ):
                if most is not None:
                    yield max(0.0, 60.0 * (count / most - 1))  # the first minute's calls go at once


def missing_text_counts(connection: sa.Connection) -> dict[str, int]:
    """Return, by stage, how many texts are still to be written, failed ones and those to be written anew included.

    A shift counts although the summaries that it is made from may be missing too.
    """
    is_due = sa.and_(~has_text(SHIFT), partitions.c.partition_index > 0) | is_marked(SHIFT)
    shifts = connection.scalar(sa.select(sa.func.count()).select_from(partitions).where(is_due))
    return {SUMMARY: len(missing_summaries(connection, with_failed=True)), SHIFT: shifts or 0}


_NO_SUMMARIES = ShiftRequest(
    user_id="",
    partition_index=1,
    previous_partition_index=0,
    previous_summary="",
    summary="",
    previous_behaviors=(),
    behaviors=(),
)
