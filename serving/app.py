"""The HTTP routes: requests are checked here and answered by a `Service`.

Scores are made in a thread of the service, and files are read in threads of the server, so that nothing holds the
event loop.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from liber_feast.errors import LiberError
from serving import metrics
from serving.answers import Question
from serving.batcher import QueueFull
from serving.bodies import (
    BatchReply,
    BatchRequest,
    HealthReply,
    InterestsReply,
    ModelBody,
    Problem,
    ReadyReply,
    ScoreReply,
    ScoreRequest,
)
from serving.limits import ID_LENGTH_LIMIT, RETRY_AFTER_S, TOKEN_VARIABLE, Gate
from serving.service import Service

REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The body is no text in UTF-8"},
    401: {"model": Problem, "description": f"No bearer token, or a wrong one, where {TOKEN_VARIABLE} is set"},
    408: {"model": Problem, "description": "The body did not arrive in time"},
    413: {"model": Problem, "description": "The body is too large"},
    429: {"model": Problem, "description": "Too many questions wait; `Retry-After` says when to ask again"},
    503: {"model": Problem, "description": "Not answered in time, or the run or the store is unusable"},
}
PARTITION_LIMIT = 1_000
UserId = Annotated[str, Path(min_length=1, max_length=ID_LENGTH_LIMIT)]
PartitionCount = Annotated[int, Query(ge=1, le=PARTITION_LIMIT, description="How many partitions, newest first")]


def create_app(service: Service, *, token: str | None = None) -> FastAPI:
    """Return the app that answers with `service`; where there is a token, requests must bear it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()
        metrics.leave()

    app = FastAPI(
        title="liber serving", description="Scores candidates with LIBER features read online.", lifespan=lifespan
    )
    _add_scores(app, service)
    _add_probes(app, service)
    app.add_exception_handler(RequestValidationError, _refuse)
    app.add_exception_handler(QueueFull, _ask_later)
    app.add_exception_handler(TimeoutError, _too_late)
    app.add_exception_handler(LiberError, _unavailable)
    app.add_middleware(Gate, limits=service.limits, token=token)
    app.add_middleware(Meter)
    return app


def _add_scores(app: FastAPI, service: Service) -> None:
    timeout_s = service.limits.request_timeout_s

    @app.post("/v1/score", response_model=ScoreReply, responses=REFUSALS)
    async def score(request: ScoreRequest) -> Response:
        """Score up to 1,000 items for one user."""
        async with asyncio.timeout(timeout_s):
            (ranking,) = await service.score([_question(request)])
        return _json(ScoreReply.model_validate(ranking))

    @app.post("/v1/score:batch", response_model=BatchReply, responses=REFUSALS)
    async def score_batch(request: BatchRequest) -> Response:
        """Score up to 10,000 items for up to 256 users."""
        async with asyncio.timeout(timeout_s):
            rankings = await service.score([_question(one) for one in request.requests])
        return _json(BatchReply(replies=[ScoreReply.model_validate(ranking) for ranking in rankings]))

    @app.get("/v1/users/{user_id}/interests", response_model=InterestsReply, responses=REFUSALS)
    async def interests(user_id: UserId, limit: PartitionCount = 50) -> Response:
        """Say what was learned of a user, partition by partition, and how much each counts in the fused vector."""
        async with asyncio.timeout(timeout_s):
            found = await run_in_threadpool(service.interests, user_id, limit=limit)
        return _json(InterestsReply.model_validate(found))


def _add_probes(app: FastAPI, service: Service) -> None:
    @app.get("/healthz")
    async def healthz() -> HealthReply:
        """Say that the process is up, and which model it serves."""
        return HealthReply(status="ok", model=ModelBody.model_validate(service.model))

    @app.get("/readyz", response_model=ReadyReply, responses={503: {"model": ReadyReply}})
    async def readyz() -> Response:
        """Say whether the store answers and fits the model that is loaded."""
        found = await run_in_threadpool(service.readiness)
        return _json(ReadyReply.model_validate(found), status_code=200 if found.ready else 503)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def show_metrics() -> Response:
        """Return the metrics of all worker processes for Prometheus."""
        service.observe()
        content = await run_in_threadpool(metrics.exposition)
        return Response(content, media_type="text/plain; version=0.0.4; charset=utf-8")


def _question(request: ScoreRequest) -> Question:
    return Question(user_id=request.user_id, item_ids=tuple(request.item_ids))


def _json(body: BaseModel, *, status_code: int = 200) -> Response:
    return Response(body.model_dump_json(), status_code=status_code, media_type="application/json")


class Meter:
    """ASGI: counts requests and their seconds by route and status.

    Not a middleware of Starlette's, which hands every message of a request through a queue.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on one connection, and count its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), "500"

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            path = getattr(scope.get("route"), "path", "none")  # what was asked for may be anything
            metrics.REQUESTS.labels(path, status).inc()
            metrics.REQUEST_SECONDS.labels(path).observe(time.perf_counter() - started)


def _refuse(_: Request, error: Exception) -> Response:
    """Answer 422 with the place and the reason of every problem.

    FastAPI's own handler sends the input back, however large, and fails on text that is not valid Unicode.
    """
    problems = error.errors() if isinstance(error, RequestValidationError) else []
    detail = [{"type": found["type"], "loc": found["loc"], "msg": found["msg"]} for found in problems]
    return Response(json.dumps({"detail": detail}), status_code=422, media_type="application/json")


def _ask_later(_: Request, error: Exception) -> Response:
    return JSONResponse({"detail": str(error)}, status_code=429, headers={"Retry-After": str(RETRY_AFTER_S)})


def _too_late(_: Request, __: Exception) -> Response:
    """Answer 503: the question is taken out of the queue, and may be asked again."""
    content = {"detail": "not answered in time. Ask again later."}
    return JSONResponse(content, status_code=503, headers={"Retry-After": str(RETRY_AFTER_S)})


def _unavailable(_: Request, error: Exception) -> Response:
    """Answer 503 where the store or the run turns out to be unusable under a running server."""
    return JSONResponse({"detail": str(error)}, status_code=503)
