"""What a ranker is asked and what it answers: plain values, known to no web framework."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One user and the candidates to score."""

    user_id: str
    item_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """Which weights answered."""

    run: str
    backbone: str
    feature_service: str
    fusion_version: str | None
    """None where the run reads no LIBER features."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredItem:
    """One candidate with the probability that the user likes it."""

    item_id: str
    score: float
    title: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Missing:
    """What the model reads and the store did not have; the scores were made without it."""

    store: bool
    """The online store did not answer in time: nothing is known of the user, and of items what was kept."""
    user: bool
    """No attributes of the user."""
    behaviors: bool
    """No behavior of the user."""
    interests: bool
    """No fused vector that fits the run; False for a run that reads none."""
    fusion_version_mismatch: str | None
    """The version of the user's fused vector where it is not the run's."""
    evidence: bool
    """No evidence that fits the run; False for a run that reads none."""
    evidence_version_mismatch: str | None
    """The encoder version of the user's evidence where it is not the run's."""
    items: tuple[str, ...]
    """Candidates that nobody has seen, each once."""

    @property
    def of_user(self) -> tuple[str, ...]:
        """The names of what is missing of the user; without it a score is a baseline."""
        return tuple(name for name in ("store", "user", "behaviors", "interests", "evidence") if getattr(self, name))


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """The answer to one question; `scores` are in the order of its items."""

    user_id: str
    scores: tuple[ScoredItem, ...]
    missing: Missing
    model: ServedModel

    @property
    def degraded(self) -> bool:
        """Whether the scores were made without something that the model reads of the user."""
        return bool(self.missing.of_user)
