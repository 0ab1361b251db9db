"""How many LLM calls and prompt tokens a user costs: LIBER, LIBER without shift, a call at every behavior.

`python -m benchmarks.llm_calls [FOLDER]`; the paper's table 6 has 8.96, 4.98, 89.06 and 89.06 calls a user on its
data. LIBER's calls go through the cascade, the call loop and the ledger of the memory, to a backend that answers at
once; they are counted by the ledger and by the backend, and the formula is counted from the behaviors alone:
floor(n/20) summaries and one shift less, for a user of n behaviors. A call at every behavior shows the LLM the user's
last 100 or last 20 behaviors, through the same template.

Tokens are those of the bundled encoder's tokenizer. The prefix cache follows vLLM's rule: whole blocks of 16 tokens,
equal from the first token on, those used longest ago go first. It holds 200,000 tokens, about what a model of 8 billion
parameters in bfloat16 has in 24 GiB.
"""

import json
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import sqlalchemy as sa
from tokenizers import Tokenizer

from benchmarks._memory import PARTITION_SIZE, TableCatalog, cascade_of, memory_of
from liber_feast.behavior import EVENT_TIME, ITEM, RATING, USER
from liber_feast.budget import Budget, Prices
from liber_feast.datasets import DataSet, read_data_set
from liber_feast.encoder import bundled_folder
from liber_feast.interest import SHIFT, SUMMARY, DescribedBehavior, SummaryRequest, learn
from liber_feast.llm.chat import ChatAnswer, ChatCall
from liber_feast.memory import Memory
from liber_feast.memory.call_tables import calls
from liber_feast.prompt import Message, load_prompt

DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "ml-latest-small"
BLOCK = 16
"""Tokens that vLLM caches as one."""
CACHED_BLOCKS = 200_000 // BLOCK
WEIGHTS = np.random.default_rng(0).integers(1 << 63, size=1 << 16, dtype=np.uint64) | np.uint64(1)
"""Of the tokens of a prompt, by place, in the hash of a prefix."""
WINDOWS = (100, 20)
ANSWER = (
    "The user liked character dramas and thrillers of the nineties and gave comedies of the same years low ratings."
    " Directors with a dry voice are preferred over spectacle, war films are watched rarely and rated highly, and the"
    " ratings are generous on the whole, with few below the middle of the scale."
)


class CountingBackend:
    """Answers at once, and counts calls, prompt tokens and what a prefix cache would have had."""

    max_in_flight = 64
    max_output_tokens = 256
    context_tokens = None

    def __init__(self, *, token_ids: Callable[[str], npt.NDArray[np.uint64]]) -> None:
        self.token_ids = token_ids
        self.call_count = self.input_tokens = self.cached_tokens = 0
        self._cached: dict[int, None] = {}  # the block used longest ago first
        self._waiting: deque[ChatCall] = deque()

    def check(self) -> bool:
        return True

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return len(self._ids(messages))

    def most_tokens(self, messages: Sequence[Message]) -> int:
        return self.count_tokens(messages)

    def submit(self, some: Sequence[ChatCall]) -> None:
        self._waiting.extend(some)

    def collect(self, *, timeout_s: float | None) -> Sequence[ChatAnswer]:
        del timeout_s  # nothing is ever waited for
        return [self.answer(self._waiting.popleft()) for _ in range(len(self._waiting))]

    def answer(self, call: ChatCall) -> ChatAnswer:
        """Count a call; its answer differs by call, as an LLM's would."""
        ids = self._ids(call.messages)
        hits = self._hits(ids)
        self.call_count += 1
        self.input_tokens += len(ids)
        self.cached_tokens += hits
        text = f"{ANSWER} That makes {call.call_id} in all."
        return ChatAnswer(
            call_id=call.call_id,
            text=text,
            finish_reason="stop",
            input_tokens=len(ids),
            output_tokens=len(self.token_ids(text)),
            cached_tokens=hits,
            seconds=0.0,
        )

    def close(self) -> None:
        self._waiting.clear()

    def _ids(self, messages: Sequence[Message]) -> npt.NDArray[np.uint64]:
        return np.concatenate([self.token_ids(line) for message in messages for line in message["content"].split("\n")])

    def _hits(self, ids: npt.NDArray[np.uint64]) -> int:
        """Return the tokens of the longest prefix of whole blocks that was seen, and remember all blocks."""
        # A block is known by a hash of all tokens up to its end.
        prefixes = np.cumsum((ids + np.uint64(1)) * WEIGHTS[: len(ids)])[BLOCK - 1 :: BLOCK].tolist()
        hit_count = BLOCK * next((n for n, one in enumerate(prefixes) if one not in self._cached), len(prefixes))
        for one in prefixes:
            self._cached.pop(one, None)
            self._cached[one] = None
        while len(self._cached) > CACHED_BLOCKS:
            del self._cached[next(iter(self._cached))]
        return hit_count


def main(folder: Path) -> None:
    """Count every variant and print the figures."""
    data_set = read_data_set(str(folder))
    prompt = load_prompt(data_set.prompt)
    tokenizer = Tokenizer.from_file(str(bundled_folder() / "tokenizer.json"))
    token_ids = lru_cache(maxsize=1 << 18)(partial(_token_ids, tokenizer=tokenizer))
    counts = np.array(pc.value_counts(data_set.behaviors[USER]).field("counts"))
    summaries = int((counts // PARTITION_SIZE).sum())
    formula = {
        "liber": summaries + int((counts // PARTITION_SIZE - 1).clip(0).sum()),
        "liber_without_shift": summaries,
        **{f"every_behavior_last_{window}": int(counts.sum()) for window in WINDOWS},
    }
    measured = _liber(data_set, CountingBackend(token_ids=token_ids))
    for window in WINDOWS:
        _say(f"a call at every behavior, last {window}")
        backend = CountingBackend(token_ids=token_ids)
        for number, request in enumerate(_at_every_behavior(data_set, window=window)):
            backend.answer(ChatCall(call_id=number, messages=prompt.render_summary(request)))
            if number % 20_000 == 0:
                _say(f"  {number:,} of {len(data_set.behaviors):,} calls")
        measured[f"every_behavior_last_{window}"] = _totals(backend)
    figures: dict[str, object] = {"data_set": data_set.name, "users": len(counts), "prompt_version": prompt.version}
    for variant, total in formula.items():
        key = "formula" if variant == "liber" else f"formula_{variant}"
        figures[variant] = {f"{name}_per_user": round(one / len(counts), 4) for name, one in measured[variant].items()}
        figures[key] = {"calls_per_user": round(total / len(counts), 4)}
    figures["is_equal"] = all(measured[variant]["calls"] == total for variant, total in formula.items())
    print(json.dumps(figures))


def _liber(data_set: DataSet, backend: CountingBackend) -> dict[str, dict[str, int]]:
    """Run the cascade over all users; return the totals of both stages, and of summaries alone."""
    _say("LIBER: the cascade through the call loop")
    with tempfile.TemporaryDirectory() as folder:
        memory = memory_of(data_set.behaviors, Path(folder))
        learner, waves = cascade_of(
            memory,
            data_set,
            model="counting",
            open_backend=lambda: backend,
            max_attempts=1,
            budget=Budget(),
            prices=Prices(),
        )
        learn(learner, waves, progress=lambda _stage, _count, _total: None)
        both = _settled(memory, stages=(SUMMARY, SHIFT))
        summaries = _settled(memory, stages=(SUMMARY,))
        memory.close()
    if both["calls"] != backend.call_count:
        raise SystemExit(f"the ledger has {both['calls']} calls, the backend answered {backend.call_count}")
    return {"liber": both, "liber_without_shift": summaries}


def _settled(memory: Memory, *, stages: Sequence[str]) -> dict[str, int]:
    columns = (sa.func.count(), sa.func.sum(calls.c.input_tokens), sa.func.sum(calls.c.cached_tokens))
    with memory.reading() as connection:
        row = connection.execute(sa.select(*columns).where(calls.c.stage.in_(stages))).one()
    return dict(zip(("calls", "prompt_tokens", "cached_tokens"), (int(value or 0) for value in row), strict=True))


def _at_every_behavior(data_set: DataSet, *, window: int) -> Iterator[SummaryRequest]:
    """Yield, for every behavior, the request of its user's last behaviors, this one included."""
    catalog = TableCatalog(data_set)
    profiles = catalog.profiles(pc.unique(data_set.behaviors[USER]).to_pylist())
    items = catalog.items(pc.unique(data_set.behaviors[ITEM]).to_pylist())
    rows = data_set.behaviors.sort_by([(USER, "ascending"), (EVENT_TIME, "ascending")])
    columns = (rows[USER].to_pylist(), rows[ITEM].to_pylist(), rows[RATING].to_pylist())
    times = rows[EVENT_TIME].cast("int64").to_pylist()
    recent: deque[DescribedBehavior] = deque(maxlen=window)
    of_user = None
    for index, (user, item, rating, time) in enumerate(zip(*columns, times, strict=True)):
        if user != of_user:
            recent.clear()
            of_user = user
        recent.append(
            DescribedBehavior(
                item=items[item],
                rating=rating,
                liked=rating > data_set.scale.like_above,
                event_time=datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time),
            )
        )
        yield SummaryRequest(user_id=user, partition_index=index, profile=profiles[user], behaviors=tuple(recent))


def _totals(backend: CountingBackend) -> dict[str, int]:
    return {
        "calls": backend.call_count,
        "prompt_tokens": backend.input_tokens,
        "cached_tokens": backend.cached_tokens,
    }


def _token_ids(line: str, *, tokenizer: Tokenizer) -> npt.NDArray[np.uint64]:
    return np.array(tokenizer.encode(line, add_special_tokens=False).ids, np.uint64)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_DATA)
