"""What the routes ask: the run that is served now, its queue, and whether it is ready. Knows no web framework."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from liber_feast.artifact import FUSION_FOLDER, load_artifact
from liber_feast.errors import LiberError, OnlineStoreAway
from liber_feast.fuser import load_fusion
from serving.answers import Question, Ranking, ServedModel
from serving.batcher import Batcher
from serving.guard import GuardedFeatures, StoreGuard
from serving.interests import InterestReader, Interests
from serving.limits import Limits
from serving.metrics import CANDIDATES, DEGRADED, PASS_CANDIDATES, STORE_AWAY, WAITING
from serving.online import open_features
from serving.ranker import Ranker


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A run with everything that is opened for it."""

    ranker: Ranker
    interests: InterestReader


@dataclass(frozen=True, kw_only=True, slots=True)
class Readiness:
    """None where all is well, else the line that says what is not."""

    model: str | None = None
    store: str | None = None
    versions: str | None = None

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here; weights that could not be loaded leave the old ones in service."""
        return self.store is None and self.versions is None


class Service:
    """Answers with the run that is current when a forward pass begins."""

    def __init__(self, served: Served, *, guard: StoreGuard, limits: Limits | None = None) -> None:
        self.limits, self.closed = limits or Limits(), threading.Event()
        self.model_problem: str | None = None
        """Why other weights that were asked for are not served."""
        self._served, self.guard = served, guard
        self._batcher = Batcher(
            self._score, question_limit=self.limits.waiting_questions, observe=PASS_CANDIDATES.observe
        )

    @property
    def model(self) -> ServedModel:
        """Which weights answer."""
        return self._served.ranker.model

    def swap(self, served: Served) -> None:
        """Answer with another run from the next forward pass on; the pass that is made now ends with the old one."""
        self._served = served

    async def score(self, questions: Sequence[Question]) -> list[Ranking]:
        """Answer questions, in their order.

        Raises:
            QueueFull: too many questions wait.
            LiberError: the run or the store turns out to be unusable.
        """
        rankings = await self._batcher.ask(questions)
        for ranking in rankings:
            CANDIDATES.inc(len(ranking.scores))
            for name in ranking.missing.of_user:
                DEGRADED.labels(name).inc()
        return rankings

    def interests(self, user_id: str, *, limit: int) -> Interests:
        """Return the newest `limit` partitions of a user; see `InterestReader.read`."""
        return self._served.interests.read(user_id, limit=limit)

    def readiness(self) -> Readiness:
        """Look at the store, and say whether it still fits the run."""
        try:
            self._served.ranker.check_store()
        except OnlineStoreAway as error:
            return Readiness(store=error.message, model=self.model_problem)
        except LiberError as error:
            return Readiness(versions=error.message, model=self.model_problem)
        return Readiness(model=self.model_problem)

    def observe(self) -> None:
        """Bring the gauges up to date."""
        WAITING.set(self._batcher.waiting_count)
        STORE_AWAY.set(self.guard.breaker.is_open)

    def close(self) -> None:
        """End the scoring thread; questions that wait are cancelled."""
        self.closed.set()
        self._batcher.close()

    def _score(self, questions: Sequence[Question]) -> list[Ranking]:
        return self._served.ranker.score_all(questions)


def open_served(repo: Path, *, run: Path, guard: StoreGuard) -> Served:
    """Open the run folder `run` over the feature repo `repo`.

    Raises:
        ArtifactError: the run folder cannot be used, or does not fit the store.
        StoreNotReady: the feature repo was never applied or cannot be read.
    """
    artifact = load_artifact(run)
    features = open_features(repo, service=artifact.feature_service)
    ranker = Ranker(artifact, features=GuardedFeatures(features, guard=guard))
    fusion = artifact.folder / FUSION_FOLDER
    reader = InterestReader(features, fuser=load_fusion(fusion) if fusion.is_dir() else None)
    return Served(ranker=ranker, interests=reader)


def open_service(repo: Path, *, run: Path, limits: Limits | None = None) -> Service:
    """Return the service of a run over a feature repo; raises as `open_served`."""
    chosen = limits or Limits()
    guard = StoreGuard(timeout_s=chosen.store_timeout_s)
    return Service(open_served(repo, run=run, guard=guard), guard=guard, limits=chosen)
