"""`python -m serving`: serve a trained run over the online features of a feature repo."""

import copy
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import uvicorn
from uvicorn.config import LOGGING_CONFIG

from liber_feast.errors import LiberError
from liber_feast.fast_start import leave_out_type_checks

leave_out_type_checks()
from serving.app import MODEL_VARIABLE, REPO_VARIABLE, create_app  # noqa: E402 (they import Feast)
from serving.ranker import open_ranker, use_one_thread_per_forward  # noqa: E402

cli = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@cli.command()
def serve(
    *,
    repo: Annotated[Path, typer.Option(help="The feature repo.")] = Path("feature_repo"),
    model: Annotated[Path, typer.Option(help="The run folder that training wrote.")] = Path("runs/din-liber+evidence"),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65_535)] = 8080,
    workers: Annotated[int, typer.Option(help="Processes; each loads the run.", min=1)] = 1,
) -> None:
    """Serve a trained run: POST /v1/score, GET /healthz, GET /docs."""
    ranker = open_ranker(repo, run=model)  # workers too start only if one process can
    served = ranker.model
    typer.echo(
        f"serving {served.run} ({served.backbone}, {served.feature_service}, fusion {served.fusion_version or 'none'})"
        f" on http://{host}:{port}",
        err=True,
    )
    if workers == 1:
        use_one_thread_per_forward()
        uvicorn.run(create_app(ranker), host=host, port=port, log_config=_log_config())
        return
    os.environ[REPO_VARIABLE], os.environ[MODEL_VARIABLE] = str(repo.resolve()), str(model.resolve())
    uvicorn.run(
        "serving.app:app_from_environment",
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
    try:
        cli(arguments)
    except LiberError as error:
        sys.stderr.write(f"Error: {error.format_message()}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
