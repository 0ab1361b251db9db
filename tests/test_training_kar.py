"""Features `kar` through a fit: texts of the store's own backend in place of LIBER's memory, for every backbone."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional as F

from benchmarks._llm_server import LLMServer
from liber_feast.artifact import load_artifact
from liber_feast.errors import ArtifactError, BudgetExhausted, ConfigError
from serving.ranker import open_ranker
from tests import feature_repo_kit as kit
from tests import llm_repo
from tests.backbone_parts import batch_of, randomize, small, spec
from tests.feature_repo_kit import loaded_repo, materialized_repo
from tests.test_training_fit import OPTIONS, samples
from training.artifact import export_run, find_fusion
from training.backbones import BACKBONES
from training.backbones.kar import KnowledgeAdaptor
from training.backbones.loss import forward_with_loss
from training.data import Samples, load_samples
from training.fit import Prepared, fit, prepare
from training.knowledge import Knowledge, cut_times, plan_knowledge
from training.split import Split, split_by_time

pytestmark = pytest.mark.usefixtures("one_thread")
D = 5


@cache
def with_knowledge() -> Samples:
    """Return samples whose texts' vectors are drawn: text t has the number t as its first value."""
    found = samples("baseline")
    plan = plan_knowledge(
        found.table, cuts=cut_times(found.times), like_above=found.like_above, item_columns=found.item_columns
    )
    vectors = np.random.default_rng(5).normal(size=(len(plan.requests), D)).astype(np.float32)
    vectors[:, 0] = np.arange(len(vectors))
    return replace(found, knowledge=Knowledge(plan=plan, vectors=vectors, encoder="drawn"), encoder_version="drawn")


def texts_of(prepared: Prepared, rows: np.ndarray) -> list[int | None]:
    """Return the number of the text in the batch of each sample."""
    batch = prepared.load(torch.device("cpu")).batch(rows)
    pairs = zip(batch["vectors"][:, 0, 0].tolist(), batch["sealed"][:, 0].tolist(), strict=True)
    return [int(number) if there else None for number, there in pairs]


def test_the_text_of_a_sample_is_of_a_cut_before_it_and_never_after_the_training_part() -> None:
    found = with_knowledge()
    assert found.features == "kar"
    assert found.knowledge is not None
    plan, times = found.knowledge.plan, found.times
    users = found.table["user_id"].to_pylist()
    early = Split(train=np.arange(400), validation=np.arange(400, 500), test=np.arange(500, 1_000))
    for split in (split_by_time(times), early):
        end = times[split.validation[0]]
        prepared = prepare(found, options=OPTIONS, split=split)
        told = texts_of(prepared, np.arange(len(times)))
        assert sum(text is not None for text in told) > 700
        for sample, text in enumerate(told):
            before = [row for row in range(sample) if users[row] == users[sample] and times[row] < end]
            if text is None:
                continue
            request = plan.requests[text]
            shown = [one.item.item_id for one in request.behaviors]
            assert request.user_id == users[sample]
            assert shown == [found.table["item_id"][row].as_py() for row in before[: len(shown)]]


def test_what_users_do_after_a_sample_changes_no_text_of_it() -> None:
    found = with_knowledge()
    assert found.knowledge is not None
    later = found.table.slice(600)
    flipped = later.set_column(later.column_names.index("rating"), "rating", pa.array(6 - later["rating"].to_numpy()))
    changed = plan_knowledge(
        pa.concat_tables([found.table.slice(0, 600), flipped]),
        cuts=cut_times(found.times),
        like_above=found.like_above,
        item_columns=found.item_columns,
    )
    seen = [
        Knowledge(plan=plan, vectors=found.knowledge.vectors, encoder="").seen(found.times, until=int(found.times[-1]))
        for plan in (found.knowledge.plan, changed)
    ]
    told = np.flatnonzero(seen[0].lengths[:601])
    assert len(told) > 400
    for row in told:
        texts = [windows.starts[row] for windows in seen]
        assert found.knowledge.plan.requests[texts[0]] == changed.requests[texts[1]]
    assert found.knowledge.plan.requests != changed.requests


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_takes_the_adaptor_in_place_of_the_fusion(name: str) -> None:
    shape = replace(spec().shape, memory_kind="knowledge")
    model, batch = small(name, shape=shape).train(), batch_of()
    randomize(model)
    assert isinstance(model.inputs.fusion, KnowledgeAdaptor)
    assert find_fusion(model) is None
    labels = torch.arange(64) % 2 * 1.0
    found, added = forward_with_loss(model, batch, labels_B=labels)
    (F.binary_cross_entropy_with_logits(found, labels) + added).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.inputs.fusion.parameters())
    model.eval()
    with torch.no_grad():
        fused = model.inputs.fusion(batch["vectors"], batch["sealed"])
        rest = {field: values for field, values in batch.items() if field not in {"vectors", "sealed"}}
        torch.testing.assert_close(model(rest | {"fused": fused}), model(batch), rtol=0, atol=1e-5)


def test_a_run_is_exported_loaded_and_scores_the_same(tmp_path: Path) -> None:
    prepared = prepare(with_knowledge(), options=OPTIONS)
    run = fit(prepared, options=OPTIONS)
    export_run(run, folder=tmp_path / "din", samples=with_knowledge(), options=OPTIONS)
    loaded = load_artifact(tmp_path / "din")
    assert (loaded.facts.features, loaded.facts.encoder_version, loaded.fusion_version) == ("kar", "drawn", None)
    assert loaded.spec.memory_kind == "knowledge"
    assert not (tmp_path / "din" / "fusion").exists()
    batch = prepared.load(torch.device("cpu")).batch(np.arange(900, 1_000))
    with torch.inference_mode():
        assert torch.equal(loaded.model(batch), run.model(batch))


def test_texts_come_from_the_backend_of_the_repo_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = loaded_repo(tmp_path / "repo")
    learner = kit.WatchedLearner()
    kit.use(learner, monkeypatch)
    found = load_samples(repo, features="kar")
    assert found.knowledge is not None
    assert learner.call_count == len(found.knowledge.plan.requests) > 5
    assert found.knowledge.vectors.shape == (learner.call_count, 384)
    again = load_samples(repo, features="kar")
    assert learner.call_count == len(found.knowledge.plan.requests)
    np.testing.assert_array_equal(again.knowledge.vectors, found.knowledge.vectors)  # type: ignore[union-attr]
    assert found.fingerprint == load_samples(repo, features="baseline").fingerprint


def test_an_llm_is_asked_for_each_text_once_and_within_its_budget(tmp_path: Path) -> None:
    with LLMServer() as server:
        repo = llm_repo.repo_of(tmp_path / "repo", server, budget={"run": {"calls": 3}})
        with pytest.raises(ConfigError, match=r"'kar' would ask .* for \d+ texts. Add --pay if it shall") as refused:
            load_samples(repo, features="kar")
        assert "\n" not in refused.value.message
        assert server.counts()["calls"] == 0
        with pytest.raises(BudgetExhausted) as raised:
            load_samples(repo, features="kar", pay=True)
        assert "\n" not in raised.value.message
        assert server.counts()["calls"] == 3
        llm_repo.set_interest(repo, llm_repo.interest(server))
        found = load_samples(repo, features="kar", pay=True)
        assert found.knowledge is not None
        load_samples(repo, features="kar")  # what is kept costs nothing
        assert server.counts()["calls"] == len(found.knowledge.plan.requests) > 5


def test_a_run_of_kar_is_not_served(tmp_path: Path) -> None:
    repo = materialized_repo(tmp_path / "repo")
    found = load_samples(repo, features="kar")
    options = replace(OPTIONS, batch_size=16, epochs=1)
    export_run(
        fit(prepare(found, options=options), options=options),
        folder=tmp_path / "din-kar",
        samples=found,
        options=options,
    )
    with pytest.raises(ArtifactError, match="din-kar reads the texts of KAR") as raised:
        open_ranker(repo, run=tmp_path / "din-kar")
    assert "\n" not in raised.value.message
