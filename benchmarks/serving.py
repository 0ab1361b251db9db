"""What LIBER costs where scores are served, over real HTTP on loopback; the load comes from a process of its own.

`python -m benchmarks.serving [--parts ratios,clients,forward,graph,sustained] [--seconds N] [--data synthetic|FOLDER]`.
The servers are `python -m serving` over feature repos that are loaded, materialized, fitted (one epoch of DIN) and
fused by the project's own commands, in a temporary folder. A request is one user with sealed partitions and 100 items;
users and items change from one to the next. Progress goes to stderr, one JSON object to the last line.

`ratios`: one client asks the servers of `baseline`, `liber` and `liber+evidence` in turn, for three times `--seconds`.
`p50_ratio` and `p99_ratio` are the latency with the fused vector over that without (the goal is 1.05 at most),
`p50_ratio_evidence` and `p99_ratio_evidence` that with evidence, too. `baseline` has the match of the recent window, so
all three read vectors of items.

`clients`: p50 and p99 in milliseconds and requests a second of the `liber` server at 1, 16 and 64 clients, on SQLite
and on Redis (null where none answers).

`forward`: the forward pass of DIEN alone, seconds per 1,000 samples and over the base, as in the paper's table 7 (there
LIBER takes 1.147 times the base): with the fused vector, with the fusion in the pass, with KAR's adaptor over one text,
and with an LLM that is called for each request of 100 items, by a stub that takes .2 s (see `_serving_forward`).

`graph`: the forward pass of DIN over 100 candidates as torch exports and compiles it, over the eager one, and how long
that takes to make (see `_serving_graph`; a C++ compiler has to be there).

`sustained`: 64 clients for `--sustained` seconds (60): `errors` (answers other than 200), `sustained_p99_ms`, and
`rss_growth`, the memory of the server at the end over that after five seconds of the same load.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._choices import some_of
from benchmarks._serving_forward import forward_figures
from benchmarks._serving_graph import graph_figures
from benchmarks._serving_load import Answers, Load
from benchmarks._serving_stores import Served, make_served, on_redis, questions, serving

PARTS = ("ratios", "clients", "forward", "graph", "sustained")
CLIENTS = (1, 16, 64)
ITEMS, BODIES = 100, 500
WARM_UP_S = 5.0


def main(*, data: str, users: int, behaviors: int, parts: Sequence[str], seconds: float, sustained_s: float) -> None:
    """Measure the parts and print the figures."""
    found: dict[str, Any] = {}
    if "forward" in parts:
        found |= forward_figures(data=data, users=200 if data == "synthetic" else None, runs=15)
        _tell(found)
    if "graph" in parts:
        found |= graph_figures(data=data, users=200 if data == "synthetic" else None, runs=300)
        _tell(found)
    if {"ratios", "clients", "sustained"} & set(parts):
        with tempfile.TemporaryDirectory() as scratch:
            found |= _http_figures(
                Path(scratch),
                made=make_served(Path(scratch), data=data, users=users, behaviors=behaviors),
                parts=parts,
                seconds=seconds,
                sustained_s=sustained_s,
            )
    print(json.dumps(found))


def _http_figures(
    folder: Path, *, made: Mapping[str, Served], parts: Sequence[str], seconds: float, sustained_s: float
) -> dict[str, Any]:
    bodies, found = questions(made["liber"].repo, count=BODIES, items=ITEMS), dict[str, Any]()
    if "ratios" in parts:
        found |= _ratios(made, bodies=bodies, seconds=3 * seconds)
    if "clients" in parts:
        found["sqlite"] = _by_clients(made["liber"], bodies=bodies, seconds=seconds)
        with on_redis(made["liber"], folder=folder) as served:
            found["redis"] = None if served is None else _by_clients(served, bodies=bodies, seconds=seconds)
    if "sustained" in parts:
        found |= _sustained(made["liber"], bodies=bodies, seconds=sustained_s)
    return found


def _ratios(made: Mapping[str, Served], *, bodies: Sequence[str], seconds: float) -> dict[str, Any]:
    with serving(list(made.values())) as servers:
        ports = [server.port for server in servers]
        answers = Answers.of(Load(ports=ports, bodies=bodies, clients=1, seconds=seconds, warm_up_s=WARM_UP_S))
    quantiles = {
        name: {f"p{int(share * 100)}": answers.quantile(share, port=place) for share in (0.5, 0.99)}
        for place, name in enumerate(made)
    }
    found: dict[str, Any] = {
        f"{quantile}_ratio{suffix}": round(quantiles[name][quantile] / quantiles["baseline"][quantile], 3)
        for name, suffix in (("liber", ""), ("liber+evidence", "_evidence"))
        for quantile in ("p50", "p99")
    }
    found["alternating_ms"] = {
        name: {quantile: round(value, 2) for quantile, value in one.items()} for name, one in quantiles.items()
    }
    found["alternating"] = {"requests": sum(map(len, answers.milliseconds)), "errors": answers.errors}
    _tell(found)
    return found


def _by_clients(served: Served, *, bodies: Sequence[str], seconds: float) -> dict[str, dict[str, float]]:
    found = {}
    with serving([served]) as (server,):
        for clients in CLIENTS:
            answers = Answers.of(Load(ports=[server.port], bodies=bodies, clients=clients, seconds=seconds))
            found[str(clients)] = {
                "p50_ms": round(answers.quantile(0.5), 2),
                "p99_ms": round(answers.quantile(0.99), 2),
                "requests_per_second": round(answers.per_second, 1),
                "errors": answers.errors,
            }
            _tell({f"{clients} clients": found[str(clients)]})
    return found


def _sustained(served: Served, *, bodies: Sequence[str], seconds: float) -> dict[str, Any]:
    with serving([served]) as (server,):
        most = max(CLIENTS)
        Answers.of(Load(ports=[server.port], bodies=bodies, clients=most, seconds=WARM_UP_S))
        before = server.resident_kib
        answers = Answers.of(Load(ports=[server.port], bodies=bodies, clients=most, seconds=seconds, warm_up_s=0.0))
        after = server.resident_kib
    found = {
        "errors": answers.errors,
        "rss_growth": round(after / before, 3),
        "rss_mib": round(after / 1024),
        "sustained_p99_ms": round(answers.quantile(0.99), 2),
        "sustained_requests_per_second": round(answers.per_second, 1),
    }
    _tell(found)
    return found


def _tell(found: Mapping[str, Any]) -> None:
    print(json.dumps(found), file=sys.stderr, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="synthetic")
    parser.add_argument("--users", type=int, default=60, help="of the synthetic data that is served")
    parser.add_argument("--behaviors", type=int, default=6_000, help="of the synthetic data that is served")
    parser.add_argument("--parts", type=some_of(PARTS), default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--sustained", type=float, default=60.0)
    asked = parser.parse_args()
    main(
        data=asked.data,
        users=asked.users,
        behaviors=asked.behaviors,
        parts=asked.parts,
        seconds=asked.seconds,
        sustained_s=asked.sustained,
    )
