"""The HTTP routes: requests are checked here and answered by a `Ranker`.

The routes are plain functions, so the server runs them in its threads and the forward pass never holds the event
loop.
"""

import json
import os
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from liber_feast.errors import LiberError
from serving.ranker import Ranker, open_ranker, use_one_thread_per_forward

ITEM_LIMIT = 1_000
ID_LENGTH_LIMIT = 512
REPO_VARIABLE, MODEL_VARIABLE = "LIBER_SERVING_REPO", "LIBER_SERVING_MODEL"
"""How a worker process learns what to serve."""

Id = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=ID_LENGTH_LIMIT)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", from_attributes=True)


class ScoreRequest(_Body):
    """One user and the candidates to score."""

    user_id: Id
    item_ids: Annotated[list[Id], Field(min_length=1, max_length=ITEM_LIMIT)]


class ScoredItemBody(_Body):
    """One candidate with the probability that the user likes it."""

    item_id: str
    score: Annotated[float, Field(gt=0, lt=1)]
    title: str | None


class MissingBody(_Body):
    """What the model reads and the store did not have; the scores were made without it."""

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


class ModelBody(_Body):
    """Which weights answered."""

    run: str
    backbone: str
    feature_service: str
    fusion_version: str | None


class ScoreReply(_Body):
    """The scores, in the order asked."""

    user_id: str
    scores: list[ScoredItemBody]
    missing: MissingBody
    model: ModelBody


class HealthReply(_Body):
    """The process is up and its model is loaded."""

    status: str
    model: ModelBody


def create_app(ranker: Ranker) -> FastAPI:
    """Return the app that answers with `ranker`."""
    app = FastAPI(title="liber serving", description="Scores candidates with LIBER features read online.")

    @app.post("/v1/score")
    def score(request: ScoreRequest) -> ScoreReply:
        """Score up to 1,000 items for one user."""
        return ScoreReply.model_validate(ranker.score(request.user_id, item_ids=request.item_ids))

    @app.get("/healthz")
    def healthz() -> HealthReply:
        """Say that the process is up, and which model it serves."""
        return HealthReply(status="ok", model=ModelBody.model_validate(ranker.model))

    app.add_exception_handler(RequestValidationError, _refuse)
    app.add_exception_handler(LiberError, _unavailable)
    return app


def app_from_environment() -> FastAPI:
    """Return the app of a worker process, which learns from the environment what to serve."""
    use_one_thread_per_forward()
    return create_app(open_ranker(Path(os.environ[REPO_VARIABLE]), run=Path(os.environ[MODEL_VARIABLE])))


def _refuse(_: Request, error: Exception) -> Response:
    """Answer 422 with the place and the reason of every problem.

    FastAPI's own handler sends the input back, however large, and fails on text that is not valid Unicode.
    """
    problems = error.errors() if isinstance(error, RequestValidationError) else []
    detail = [{"type": found["type"], "loc": found["loc"], "msg": found["msg"]} for found in problems]
    return Response(json.dumps({"detail": detail}), status_code=422, media_type="application/json")


def _unavailable(_: Request, error: Exception) -> Response:
    """Answer 503 where the store or the run turns out to be unusable under a running server."""
    return Response(json.dumps({"detail": str(error)}), status_code=503, media_type="application/json")
