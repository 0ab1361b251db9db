"""The JSON bodies of requests and replies, with the examples that /docs shows."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from serving.limits import BATCH_ITEM_LIMIT, ID_LENGTH_LIMIT, ITEM_LIMIT, USER_LIMIT

Id = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=ID_LENGTH_LIMIT)]
_QUESTION = {"user_id": "u0001", "item_ids": ["i0001", "i0002"]}
_MODEL = {
    "run": "din-liber",
    "backbone": "training.backbones.din:DIN",
    "feature_service": "ctr_serving",
    "fusion_version": "attention-1a2b3c4d",
}
_MISSING = {
    "store": False,
    "user": False,
    "behaviors": False,
    "interests": False,
    "fusion_version_mismatch": None,
    "evidence": False,
    "evidence_version_mismatch": None,
    "items": ["i0002"],
}
_SCORE = {"item_id": "i0001", "score": 0.71, "title": "Heat (1995)"}
_REPLY = {
    "user_id": "u0001",
    "scores": [_SCORE, {"item_id": "i0002", "score": 0.44, "title": None}],
    "degraded": False,
    "missing": _MISSING,
    "model": _MODEL,
}
_PARTITION = {
    "partition_index": 3,
    "first_time": 1_672_531_200_000_000,
    "last_time": 1_673_740_800_000_000,
    "behavior_count": 20,
    "summary": "The user likes crime dramas of the 1990s.",
    "shift": "From comedies to crime dramas.",
    "weight": 0.31,
    "prompt_version": "movielens-0a1b2c3d",
    "model": "extractive-1",
}


def _with_example(example: Any) -> ConfigDict:
    return ConfigDict(extra="forbid", from_attributes=True, json_schema_extra={"examples": [example]})


class ScoreRequest(BaseModel):
    """One user and the candidates to score."""

    model_config = _with_example(_QUESTION)

    user_id: Id
    item_ids: Annotated[list[Id], Field(min_length=1, max_length=ITEM_LIMIT)]


class BatchRequest(BaseModel):
    """Several users, each with candidates of its own."""

    model_config = _with_example({"requests": [_QUESTION, {"user_id": "u0002", "item_ids": ["i0001"]}]})

    requests: Annotated[list[ScoreRequest], Field(min_length=1, max_length=USER_LIMIT)]

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        count = sum(len(request.item_ids) for request in self.requests)
        if count > BATCH_ITEM_LIMIT:
            raise ValueError(f"at most {BATCH_ITEM_LIMIT} items in all requests together, found {count}")
        return self


class ScoredItemBody(BaseModel):
    """One candidate with the probability that the user likes it."""

    model_config = _with_example(_SCORE)

    item_id: str
    score: Annotated[float, Field(gt=0, lt=1)]
    title: str | None


class MissingBody(BaseModel):
    """What the model reads and the store did not have; the scores were made without it."""

    model_config = _with_example(_MISSING)

    store: Annotated[bool, Field(description="the online store did not answer in time")]
    user: Annotated[bool, Field(description="no attributes of the user")]
    behaviors: Annotated[bool, Field(description="no behavior of the user")]
    interests: Annotated[bool, Field(description="no fused vector that fits the run; false if the run reads none")]
    fusion_version_mismatch: Annotated[
        str | None, Field(description="the version of the user's fused vector, where it is not the run's")
    ]
    evidence: Annotated[bool, Field(description="no evidence that fits the run; false if the run reads none")]
    evidence_version_mismatch: Annotated[
        str | None, Field(description="the encoder version of the user's evidence, where it is not the run's")
    ]
    items: Annotated[list[str], Field(description="candidates that nobody has seen, each once")]


class ModelBody(BaseModel):
    """Which weights answered."""

    model_config = _with_example(_MODEL)

    run: str
    backbone: str
    feature_service: str
    fusion_version: str | None


class ScoreReply(BaseModel):
    """The scores, in the order asked."""

    model_config = _with_example(_REPLY)

    user_id: str
    scores: list[ScoredItemBody]
    degraded: Annotated[bool, Field(description="made without something that the model reads of the user: a baseline")]
    missing: MissingBody
    model: ModelBody


class BatchReply(BaseModel):
    """The replies, in the order of the requests; weights that are swapped meanwhile may answer some of them."""

    model_config = _with_example({"replies": [_REPLY]})

    replies: list[ScoreReply]


class PartitionBody(BaseModel):
    """What was learned of one sealed partition. Times are microseconds since 1970 UTC."""

    model_config = _with_example(_PARTITION)

    partition_index: int
    first_time: int | None
    last_time: int | None
    behavior_count: int | None
    summary: str | None
    shift: str | None
    weight: Annotated[
        float | None,
        Field(description="its share of the fused vector; null where it is not in it, or of other weights"),
    ]
    prompt_version: str | None
    model: str | None


class InterestsReply(BaseModel):
    """The user's interests, newest first: the reason behind a score."""

    model_config = _with_example(
        {"user_id": "u0001", "fusion_version": "attention-1a2b3c4d", "partitions": [_PARTITION]}
    )

    user_id: str
    fusion_version: Annotated[str | None, Field(description="of the user's fused vector; null without one")]
    partitions: list[PartitionBody]


class HealthReply(BaseModel):
    """The process is up and its model is loaded."""

    model_config = _with_example({"status": "ok", "model": _MODEL})

    status: str
    model: ModelBody


class ReadyReply(BaseModel):
    """Whether requests should be sent here, and the line that says why not."""

    model_config = _with_example({"ready": True, "model": None, "store": None, "versions": None})

    ready: bool
    model: Annotated[str | None, Field(description="why other weights that were asked for are not served")]
    store: Annotated[str | None, Field(description="why the online store cannot be read")]
    versions: Annotated[str | None, Field(description="what of the store does not fit the weights")]


class Problem(BaseModel):
    """Why a request was not answered."""

    model_config = _with_example({"detail": "512 questions wait already. Ask again later."})

    detail: str
