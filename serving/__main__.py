"""`python -m serving`: serve a trained run over the online features of a feature repo."""

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import uvicorn
from uvicorn.config import LOGGING_CONFIG

from liber_feast.errors import ended_in_one_line
from liber_feast.fast_start import leave_out_type_checks

leave_out_type_checks()
from serving.limits import TOKEN_VARIABLE, Limits, open_token  # noqa: E402 (they import Feast)
from serving.service import open_service  # noqa: E402
from serving.worker import VARIABLE, WorkerSettings, build_app  # noqa: E402

cli = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@cli.command()
def serve(
    *,
    repo: Annotated[Path, typer.Option(help="The feature repo.")] = Path("feature_repo"),
    model: Annotated[Path, typer.Option(help="The run folder that training wrote.")] = Path("runs/din-liber+evidence"),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65_535)] = 8080,
    workers: Annotated[int, typer.Option(help="Processes; each loads the run.", min=1)] = 1,
    request_timeout_s: Annotated[float, typer.Option(help="Until a request is answered with 503.", min=0.01)] = 2.0,
    store_timeout_s: Annotated[float, typer.Option(help="Until a request is scored without the store.", min=0.001)] = (
        0.25
    ),
    waiting_questions: Annotated[int, typer.Option(help="Users in a process's queue; 429 beyond.", min=1)] = 512,
    look_every_s: Annotated[
        float, typer.Option(help="How often to look for other weights at --model.", min=0.05)
    ] = 2.0,
    body_bytes: Annotated[int, typer.Option(help="The longest body of a request.", min=1)] = 4 << 20,
) -> None:
    """Serve a trained run: POST /v1/score, POST /v1/score:batch, GET /v1/users/{id}/interests, GET /docs."""
    token = open_token(host, environment=os.environ.get(TOKEN_VARIABLE))
    limits = Limits(
        body_bytes=body_bytes,
        request_timeout_s=request_timeout_s,
        store_timeout_s=store_timeout_s,
        waiting_questions=waiting_questions,
        look_every_s=look_every_s,
    )
    settings = WorkerSettings(repo=repo, run=model, limits=limits)
    service = open_service(repo, run=model, limits=limits)  # workers too start only if one process can
    served = service.model
    typer.echo(
        f"serving {served.run} ({served.backbone}, {served.feature_service}, fusion {served.fusion_version or 'none'})"
        f" on http://{host}:{port}",
        err=True,
    )
    if workers == 1:
        uvicorn.run(build_app(service, settings=settings, token=token), host=host, port=port, log_config=_log_config())
        return
    service.close()
    os.environ[VARIABLE] = settings.to_json()
    uvicorn.run(
        "serving.worker:app_from_environment",
        factory=True,
        host=host,
        port=port,
        workers=workers,
        log_config=_log_config(),
    )


def _log_config() -> dict[str, Any]:
    """Return uvicorn's logging with everything on stderr, where logs belong."""
    config = copy.deepcopy(LOGGING_CONFIG)
    config["handlers"]["access"]["stream"] = "ext://sys.stderr"
    return config


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an error of ours ends in one line on stderr and exit code 1."""
    with ended_in_one_line():
        cli(arguments)


if __name__ == "__main__":
    main()
