"""Every route answers as its OpenAPI schema says: schemathesis makes requests that fit it and requests that do not."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from tests.serving_parts import make_run, make_store
from tests.serving_process import PATIENT_OPTIONS, serving

ROUTES = (
    ("/v1/score", "POST"),
    ("/v1/score:batch", "POST"),
    ("/v1/users/{user_id}/interests", "GET"),
    ("/healthz", "GET"),
    ("/readyz", "GET"),
    ("/metrics", "GET"),
)
TAKING_INPUT = ROUTES[:3]


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("served")
    run = make_run(folder / "din-liber+evidence", features="liber+evidence")
    repo = make_store(folder / "repo", run=run)
    with serving(*PATIENT_OPTIONS, repo=repo, run=run, log=folder / "log") as address:
        yield schemathesis.openapi.from_url(f"{address}/openapi.json")


def test_all_routes_are_tried(schema: Any) -> None:
    described = {(path, method.upper()) for path, methods in schema.raw_schema["paths"].items() for method in methods}
    assert described == set(ROUTES)


@pytest.mark.parametrize(("path", "method"), ROUTES, ids=lambda value: value)
def test_what_fits_the_schema_is_answered_as_it_says(schema: Any, path: str, method: str) -> None:
    check(schema, path, method, mode=GenerationMode.POSITIVE)


@pytest.mark.parametrize(("path", "method"), TAKING_INPUT, ids=lambda value: value)
def test_what_does_not_fit_the_schema_is_refused_as_it_says(schema: Any, path: str, method: str) -> None:
    check(schema, path, method, mode=GenerationMode.NEGATIVE)


def check(schema: Any, path: str, method: str, *, mode: GenerationMode) -> None:
    """Send requests, and let schemathesis judge status, content type, headers and body of each answer."""
    operation = schema[path][method]

    @settings(suppress_health_check=list(HealthCheck))
    @given(st.data())
    def send(data: st.DataObject) -> None:
        case = data.draw(operation.as_strategy(generation_mode=mode))
        case.call_and_validate()

    send()
