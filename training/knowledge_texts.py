"""Make KAR's texts by the interest backend of the feature repo, and keep them: an LLM is asked for each of them once.

They are no features of the store: KAR is a baseline of comparisons, and is not served.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import pyarrow as pa

from liber_feast.errors import DataSetError, StoreFailure
from liber_feast.interest import InterestLearner, LearnedText, SummaryRequest
from liber_feast.parts import readable
from liber_feast.pit import Ints
from liber_feast.repo import open_repo_job
from training.knowledge import Knowledge, cut_times, plan_knowledge
from training.paid import check_paid

FOLDER = "knowledge"
"""Beside the other data of a feature repo."""


class TextFile:
    """The texts of one model and prompt, a JSON line each; lines are added as texts arrive.

    A text is known by what it was made of: the user, the profile and the behaviors beside their items.
    """

    def __init__(self, folder: Path, *, model: str, prompt_version: str) -> None:
        name = hashlib.sha256(f"{model}\x1f{prompt_version}".encode()).hexdigest()[:16]
        self.path = folder / f"{name}.jsonl"

    def read(self) -> dict[str, str]:
        """Return every text by its key; a line that a killed process left half written is none.

        Raises:
            StoreFailure: the file cannot be read.
        """
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise StoreFailure(f"{self.path} cannot be read: {error.strerror}.") from error
        return dict(chain.from_iterable(map(_parsed, lines)))

    def add(self, texts: Sequence[tuple[str, str]]) -> None:
        """Add texts by their keys.

        Raises:
            StoreFailure: the file cannot be written.
        """
        lines = [json.dumps({"key": key, "text": text}) for key, text in texts]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(f"\n{line}" for line in lines))  # behind what may be half a line
        except OSError as error:
            raise StoreFailure(f"{self.path} cannot be written: {error.strerror}.") from error


def text_file(repo: Path, *, learner: InterestLearner) -> TextFile:
    """Return where a feature repo keeps the texts of a learner."""
    return TextFile(repo / "data" / FOLDER, model=learner.model, prompt_version=learner.prompt_version)


def _parsed(line: bytes) -> list[tuple[str, str]]:
    try:
        found = json.loads(line)
        return [(found["key"], found["text"])]
    except (ValueError, KeyError, TypeError):
        return []


def text_key(request: SummaryRequest) -> str:
    """Return what tells one text's origin from another's; the number of its cut does not count."""
    made_of = (request.user_id, request.profile, request.behaviors)
    return hashlib.sha256(repr(made_of).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def learn_texts(
    requests: Sequence[SummaryRequest],
    *,
    learner: InterestLearner,
    file: TextFile,
    progress: Callable[[int], object] = lambda _: None,
) -> list[str]:
    """Return the text of each request, those that `file` has without asking again; new ones are kept as they come.

    Raises:
        DataSetError: a text could not be had.
        LiberError: the budget is out, or the backend refuses every call or is away; what came before is kept.
    """
    keys = [text_key(request) for request in requests]
    known, failures = file.read(), list[str]()
    key_of = {(request.user_id, request.partition_index): key for request, key in zip(requests, keys, strict=True)}
    first = dict(zip(reversed(keys), reversed(requests), strict=True))
    for answers in learner.summarize([request for key, request in first.items() if key not in known]):
        told = [(key_of[one.user_id, one.partition_index], outcome) for one, outcome in answers]
        texts = [(key, outcome.text) for key, outcome in told if isinstance(outcome, LearnedText)]
        failures += [outcome.reason for _, outcome in told if not isinstance(outcome, LearnedText)]
        file.add(texts)
        known |= texts
        progress(len(answers))
    if failures:
        raise DataSetError(
            f"{len(failures)} of {len(requests)} texts of KAR could not be had: {failures[0]}. Fit again to ask for"
            f" them once more; the others are kept in {file.path}."
        )
    return [known[key] for key in keys]


def load_knowledge(
    repo: Path, *, table: pa.Table, times: Ints, like_above: float, item_columns: Sequence[str], pay: bool = False
) -> Knowledge:
    """Return the texts that samples see, the rows of `table` at `times`, as vectors of the repo's BERT, without a PCA.

    `pay` is whether an LLM may be asked for texts that are not kept yet.

    Raises:
        ConfigError: an LLM would be asked, and `pay` is False.
        DataSetError: a text could not be had.
        LiberError: the repo has no usable interest backend or encoder; see `learn_texts`.
    """
    job = open_repo_job(repo)
    try:
        plan = plan_knowledge(table, cuts=cut_times(times), like_above=like_above, item_columns=item_columns)
        file = text_file(repo, learner=job.learner)
        missing = {text_key(request) for request in plan.requests} - file.read().keys()
        if missing:
            check_paid(repo, pay=pay, owner="features 'kar'", what=f"{len(missing):,} texts")
        texts = learn_texts(plan.requests, learner=job.learner, file=file)
        bert = job.encoding.bert()
        prose = [readable(text, form=job.encoding.form) for text in texts]
        return Knowledge(plan=plan, vectors=bert.encode(prose), encoder=bert.model_hash[:16])
    finally:
        job.close()
