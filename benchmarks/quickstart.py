"""How long the quickstart takes, how much memory its largest step needs, and what both fits give.

`python -m benchmarks.quickstart [DATA]`, in a temporary copy of the feature repo; the install is not counted.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = {"synthetic": 180, "ml-latest-small": 720}
"""What the quickstart may take on two cores."""


def main(data: str) -> None:
    """Run the quickstart once and print its figures."""
    with tempfile.TemporaryDirectory() as folder:
        repo = Path(folder) / "feature_repo"
        shutil.copytree(ROOT / "feature_repo", repo, ignore=shutil.ignore_patterns("data", "data-*", "__pycache__"))
        command = [sys.executable, "-m", "liber_feast.cli", "quickstart", data, "--json"]
        start = time.perf_counter()
        done = subprocess.run(
            [*command, "--repo", str(repo), "--runs", str(Path(folder) / "runs")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            check=True,
        )
        seconds = time.perf_counter() - start
    facts = json.loads(done.stdout.decode().splitlines()[-1])
    kept = (
        "data_set",
        "behaviors",
        "users",
        "sealed_partitions",
        "summaries",
        "shifts",
        "calls_per_user",
        "calls_this_run",
        "texts_encoded",
    )
    figures = {name: facts[name] for name in kept}
    figures |= {name: facts[name] for name in ("step_seconds", "materialize_seconds", "peak_memory_mib", "fits")}
    print(json.dumps({**figures, "seconds": round(seconds, 1), "limit_s": LIMIT_S.get(Path(data).name)}))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "synthetic")
