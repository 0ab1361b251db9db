"""SIM and ETA: what they find in a long history is what a plain loop finds, and their layers are those of fuxictr."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from liber_feast.errors import ConfigError
from tests.backbone_parts import SMALL, batch_of, randomize, small, spec
from tests.peers import copy, peer
from training.backbones import HISTORY_LENGTH, LONG_HISTORY, LONG_HISTORY_LENGTH, backbone_reference, history_length
from training.backbones.embedding import HISTORY, Batch
from training.backbones.eta import SimHash
from training.backbones.long_history import AgeEmbedding, TargetAttention, latest, top_k
from training.backbones.loss import forward_with_loss
from training.options import FitOptions

pytestmark = pytest.mark.usefixtures("one_thread")
BOTH = pytest.mark.parametrize("name", LONG_HISTORY)
CATEGORIES = slice(1, 3)
"""The slots of the categories in the items' codes, behind the one of the id."""


def randomized(name: str, **config: Any) -> Any:
    model = small(name, **config)
    randomize(model)
    return model


def behaviors_of(batch: Batch, sample: int, places: list[int]) -> Batch:
    """Return some behaviors of one sample as a batch of it alone, without padding."""
    return {name: batch[name][sample : sample + 1, places] for name in HISTORY}


@given(st.lists(st.tuples(st.integers(-2, 2), st.booleans()), min_size=1, max_size=9), st.integers(1, 12))
def test_the_highest_scores_are_found_and_of_equal_ones_the_latest(rows: list[tuple[int, bool]], count: int) -> None:
    scores, mask = torch.tensor([[score for score, _ in rows]]), torch.tensor([[there for _, there in rows]])
    index, there = top_k(scores, mask, count=count)
    places = [place for place, (_, is_there) in enumerate(rows) if is_there]
    expected = sorted(sorted(places, key=lambda place: (-rows[place][0], -place))[:count])
    assert index[there].tolist() == expected
    assert index.shape == there.shape == (1, min(count, len(rows)))


@pytest.mark.parametrize("count", [1, 3, 6, 9])
def test_the_latest_behaviors_are_those_at_the_end_of_each_history(count: int) -> None:
    batch = batch_of(0, 40)
    found = latest(batch, count=count)
    lengths = batch["history_mask"].sum(dim=1).tolist()
    assert min(lengths) == 0
    assert found["history_mask"].sum(dim=1).tolist() == [min(length, count) for length in lengths]
    for sample, length in enumerate(lengths):
        kept = behaviors_of(batch, sample, list(range(max(length - count, 0), length)))
        for name in HISTORY:
            assert torch.equal(found[name][sample : sample + 1, : min(length, count)], kept[name])


def test_ages_are_groups_of_1_2_4_8_behaviors_back_from_the_latest() -> None:
    ages = AgeEmbedding(1)
    with torch.no_grad():
        ages.weight.copy_(torch.arange(len(ages.weight))[:, None])
    mask = torch.arange(20) < 16
    found = ages(torch.arange(16)[None], mask[None])
    assert found.flatten().tolist() == [4, *[3] * 8, *[2] * 4, *[1] * 2, 0]


def by_category(batch: Batch, sample: int, model: Any, places: list[int]) -> list[int]:
    wanted = set(batch["item_codes"][sample, CATEGORIES].tolist()) - {0}
    of = [set(batch["history_codes"][sample, place, CATEGORIES].tolist()) for place in places]
    return [place for place in places if wanted & of[place]][-model.config.found :]


def by_inner_product(batch: Batch, sample: int, model: Any, places: list[int]) -> list[int]:
    wanted = model.search.candidate(item(model, batch["item_codes"][sample], batch["item_numbers"][sample]))
    scores = {
        place: float(
            wanted
            @ model.search.behavior(
                item(model, batch["history_codes"][sample, place], batch["history_numbers"][sample, place])
            )
        )
        for place in places
    }
    return sorted(sorted(places, key=lambda place: -scores[place])[: model.config.found])


def by_hash(batch: Batch, sample: int, model: Any, places: list[int]) -> list[int]:
    def bits(embedded: Tensor) -> list[bool]:
        return [float(embedded @ model.hash.rotation[:, bit]) > 0 for bit in range(model.config.hash_bits)]

    wanted = bits(item(model, batch["item_codes"][sample], batch["item_numbers"][sample]))
    distance = {
        place: sum(
            one != other
            for one, other in zip(
                wanted,
                bits(item(model, batch["history_codes"][sample, place], batch["history_numbers"][sample, place])),
                strict=True,
            )
        )
        for place in places
    }
    return sorted(sorted(places, key=lambda place: (distance[place], -place))[: model.config.found])


def item(model: Any, codes: Tensor, numbers: Tensor) -> Tensor:
    embedded: Tensor = model.inputs.item(codes[None], numbers[None]).flatten()
    return embedded


def attended(attention: TargetAttention, candidate: Tensor, behaviors: Tensor) -> Tensor:
    """Return the attention of one candidate over behaviors that are all there, head by head."""
    heads = []
    for query, key, value in zip(
        *(layer.weight.chunk(attention.heads) for layer in (attention.query, attention.key, attention.value)),
        strict=True,
    ):
        scores = (behaviors @ key.T) @ (query @ candidate) / len(query) ** 0.5
        heads.append(scores.softmax(dim=0) @ (behaviors @ value.T))
    return attention.output.weight @ torch.cat(heads)


@pytest.mark.parametrize(
    ("name", "config", "find"),
    [("sim", {"found": 2}, by_category), ("sim", {"search": "soft"}, by_inner_product), ("eta", {}, by_hash)],
    ids=["sim-hard", "sim-soft", "eta"],
)
@torch.no_grad()
def test_logits_are_those_of_a_loop_that_searches_sample_by_sample(
    name: str, config: dict[str, Any], find: Callable[..., list[int]]
) -> None:
    model, batch = randomized(name, **config), batch_of(0, 60)
    fields, candidates = model.inputs.fields_and_candidate(batch)
    expected, found_counts = [], set()
    for sample, length in enumerate(batch["history_mask"].sum(dim=1).tolist()):
        places = list(range(length))
        found = find(batch, sample, model, places)
        found_counts.add(len(found))
        recent, candidate = behaviors_of(batch, sample, places[-model.config.window :]), candidates[sample]
        pooled = [torch.zeros_like(candidate), torch.zeros_like(candidate)]
        if length and name == "sim":
            wanted, parts = model.inputs.wanted, model.inputs.behavior_parts(recent)
            pooled[0] = model.attention(candidate[None, : model.item_width], wanted, parts, recent["history_mask"])[0]
        elif length:
            pooled[0] = attended(model.short, candidate, model.inputs.behaviors(recent)[0])
        if found:
            behaviors = model.inputs.behaviors(behaviors_of(batch, sample, found))[0]
            if name == "sim":
                ages = [(length - place).bit_length() - 1 for place in found]
                behaviors = torch.cat([behaviors, model.age.weight[ages]], dim=1)
            pooled[1] = attended(model.exact if name == "sim" else model.long, candidate, behaviors)
        expected.append(model.output(torch.cat([fields[sample].flatten(), *pooled])).squeeze())
    assert {0, 1, model.config.found} <= found_counts
    torch.testing.assert_close(model(batch), torch.stack(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "find"), [("sim", by_category), ("eta", by_hash)], ids=LONG_HISTORY)
@torch.no_grad()
def test_a_behavior_before_the_window_matters_where_it_is_found(name: str, find: Callable[..., list[int]]) -> None:
    model, batch = randomized(name), batch_of()
    full = batch["history_mask"].all(dim=1)
    batch = {field: values[full] for field, values in batch.items()}
    other = batch | {"history_liked": batch["history_liked"].clone()}
    other["history_liked"][:, 0] = ~other["history_liked"][:, 0]
    differs = ~torch.isclose(model(other), model(batch), rtol=0, atol=1e-6)
    finds_first = [0 in find(batch, sample, model, list(range(6))) for sample in range(len(differs))]
    assert differs.tolist() == finds_first
    assert 0 < sum(finds_first) < len(finds_first)


def test_target_attention_is_that_of_fuxictr() -> None:
    torch.manual_seed(41)
    mask = torch.arange(5) < torch.tensor([5, 1, 3, 5, 2, 4, 3])[:, None]
    candidate, history = torch.randn(7, 6), torch.randn(7, 5, 6)
    ours = TargetAttention(6, behavior_width=6, attention_width=8, heads=2)
    theirs = peer("fuxictr.pytorch.layers").MultiHeadTargetAttention(6, attention_dim=8, num_heads=2)
    layers = (ours.query, ours.key, ours.value, ours.output)
    for target, source in zip((theirs.W_q, theirs.W_k, theirs.W_v, theirs.W_o), layers, strict=True):
        copy(target.weight, source.weight)
    expected = theirs(candidate, history, mask)
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(ours(candidate, history, mask), expected, rtol=0, atol=1e-6)


def test_the_retrieval_of_eta_is_that_of_fuxictr() -> None:
    theirs = peer("model_zoo.LongCTR.ETA.ETA").ETA

    class Retrieval(theirs):  # type: ignore[misc, valid-type]
        """The peer's retrieval without its embeddings and layers."""

        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.reuse_hash, self.hash_bits = True, 256

    torch.manual_seed(42)
    ours, candidate, items = SimHash(6, bits=256), torch.randn(9, 6), torch.randn(9, 7, 6)
    mask = torch.arange(7) < torch.tensor([7, 3, 4, 7, 5, 6, 3, 7, 7])[:, None]
    index, there = top_k(-ours.distance(candidate, items), mask, count=3)
    assert there.all()
    expected, _ = Retrieval().topk_retrieval(ours.rotation[None], candidate, items, mask, topk=3)
    found = items.gather(1, index[..., None].expand(-1, -1, 6))
    order = [rows[:, :, :1].argsort(dim=1).expand(-1, -1, 6) for rows in (found, expected)]
    torch.testing.assert_close(found.gather(1, order[0]), expected.gather(1, order[1]), rtol=0, atol=0)


def test_equal_items_have_distance_0_and_opposite_ones_every_bit() -> None:
    hashes, items = SimHash(6, bits=32), torch.randn(4, 6)
    found = hashes.distance(items, torch.stack([items, 3 * items, -items], dim=1))
    assert torch.equal(found, torch.tensor([0.0, 0.0, 32.0]).expand(4, 3))


def test_the_projection_of_eta_is_drawn_from_the_seed_kept_and_never_trained() -> None:
    first, again, other = small("eta"), small("eta"), small("eta", seed=2)
    assert torch.equal(first.hash.rotation, again.hash.rotation)
    assert not torch.equal(first.hash.rotation, other.hash.rotation)
    assert "hash.rotation" in first.state_dict()
    assert "hash.rotation" not in dict(first.named_parameters())


def test_the_soft_search_is_trained_by_the_loss_of_its_own_logits() -> None:
    model, batch = randomized("sim", search="soft", auxiliary_weight=0.5), batch_of()
    labels = torch.arange(64) % 2 * 1.0
    found, added = forward_with_loss(model, batch, labels_B=labels)
    assert torch.equal(found, model(batch))
    task = model.forward_with_task(batch)[1]
    torch.testing.assert_close(added, 0.5 * F.binary_cross_entropy_with_logits(task, labels))
    F.binary_cross_entropy_with_logits(found, labels).backward(retain_graph=True)
    searching = [model.search.candidate.weight, model.search.behavior.weight]
    assert [weight.grad for weight in searching] == [None, None]
    added.backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in searching)


@pytest.mark.parametrize("config", [{}, {"search": "soft", "auxiliary_weight": 0.0}], ids=["hard", "weight 0"])
def test_a_search_without_a_task_adds_nothing_to_the_loss(config: dict[str, Any]) -> None:
    model, batch = small("sim", **config), batch_of()
    found, added = forward_with_loss(model, batch, labels_B=torch.zeros(64))
    assert torch.equal(found, model(batch))
    assert added == 0


@BOTH
def test_a_history_no_longer_than_the_window_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} attends to the last 6 .* inputs hold the last 6. Set `sequence_len"):
        small(name, window=6)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("sim", {"search": "fuzzy"}, "search is 'fuzzy'; it must be"),
        ("sim", {"category_field": 3}, "category_field is 3, but items have 3 fields of codes"),
        ("sim", {"heads": 4}, "attention_width 6 cannot be shared out among 4 heads"),
        ("eta", {"heads": 0}, "attention_width 6 cannot be shared out among 0 heads"),
        ("eta", {"found": 0}, "found is 0; it must be at least 1"),
    ],
    ids=["search", "category", "heads", "no heads", "found"],
)
def test_a_config_that_fits_nothing_is_one_line(name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        small(name, **config)
    assert "\n" not in str(raised.value)


def test_items_without_a_category_can_be_searched_softly() -> None:
    shape = replace(spec().shape, item_slots=(1,))
    with pytest.raises(ConfigError, match="category_field is 1, but items have 1 fields"):
        small("sim", shape=shape)
    assert small("sim", shape=shape, search="soft").config.search == "soft"


def test_a_backbone_that_searches_sees_a_long_history_unless_told() -> None:
    assert SMALL.keys() >= set(LONG_HISTORY)
    lengths = [history_length(backbone_reference(name)) for name in ("din", "dien", *LONG_HISTORY)]
    assert lengths == [HISTORY_LENGTH, HISTORY_LENGTH, LONG_HISTORY_LENGTH, LONG_HISTORY_LENGTH]
    assert FitOptions().sequence_length == HISTORY_LENGTH < LONG_HISTORY_LENGTH
