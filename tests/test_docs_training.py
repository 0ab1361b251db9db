"""The backbone of docs/training.md, trained and loaded as the page says; and what the page says of ours."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from liber_feast.artifact import find_class, load_artifact
from tests.feature_repo_kit import materialized_repo
from tests.test_training_run import run_command
from training.backbones import BACKBONES
from training.data import load_samples

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "training.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("features", ["baseline", "liber"])
def test_a_backbone_of_ones_own_is_fitted_exported_and_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, features: str
) -> None:
    [source] = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    module = f"own_{features}"
    (tmp_path / f"{module}.py").write_text(source, encoding="utf-8")
    repo = materialized_repo(tmp_path / "feature_repo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["--backbone", f"{module}:Own", "--features", features, "--epochs", "1", "--batch-size", "16"]
    assert run_command(monkeypatch, *arguments, "--json") == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["run"] == f"runs/own-{features}"
    run = load_artifact(tmp_path / figures["run"])
    assert run.facts.backbone == f"{module}:Own"
    assert run.facts.backbone_config == {"width": 16}
    assert (run.folder / "fusion").exists() == (features == "liber")
    rows = load_samples(repo, features=features).table.slice(0, 5)
    rows = rows.append_column("vectors", pa.array([[]] * 5, pa.list_(pa.float32())))
    scores = run.score(run.spec.encode(rows))
    assert scores.shape == (5,)
    assert np.isfinite(scores).all()


def test_the_table_names_every_backbone_and_every_value_of_its_config() -> None:
    for name, reference in BACKBONES.items():
        assert f"| `{name}` |" in PAGE
        assert f"`{reference.partition(':')[0].rpartition('.')[2]}.py`" in PAGE
        for value in find_class(reference).Config.__dataclass_fields__:
            assert f"`{value}`" in PAGE, f"{name}: {value}"
