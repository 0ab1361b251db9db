"""The behaviors as fields, the first-order term, and inputs that lack a kind of field."""

import pytest
import torch

from liber_feast.inputs import InputShape
from tests.backbone_parts import SMALL, batch_of, randomize, small
from training.backbones import BACKBONES
from training.backbones.embedding import Batch, InputEmbedding
from training.backbones.fields import FieldEmbedding
from training.backbones.linear import LinearTerm

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = InputShape(
    user_slots=(1,),
    user_code_count=4,
    user_number_count=1,
    item_slots=(1, 2),
    item_code_count=6,
    item_number_count=1,
    sequence_length=3,
    memory_width=5,
    fused_width=5,
)


def one_sample() -> Batch:
    """Return a sample with two behaviors: a like of an item with two categories and a dislike of one with one."""
    return {
        "user_codes": torch.tensor([[2]]),
        "user_numbers": torch.tensor([[[0.5, 1.0]]]),
        "item_codes": torch.tensor([[1, 4, 5]]),
        "item_numbers": torch.tensor([[[0.0, 0.0]]]),
        "history_codes": torch.tensor([[[2, 3, 4], [1, 3, 0], [0, 0, 0]]]),
        "history_numbers": torch.tensor([[[[2.0, 1.0]], [[0.0, 0.0]], [[0.0, 0.0]]]]),
        "history_mask": torch.tensor([[True, True, False]]),
        "history_liked": torch.tensor([[True, False, False]]),
        "history_rating": torch.tensor([[1.0, -2.0, 0.0]]),
        "dense": torch.tensor([[0.1, 0.2, 0.3]]),
        "fused": torch.arange(5.0)[None],
    }


def test_pooled_behaviors_are_the_mean_of_what_is_there_in_each_field() -> None:
    inputs = InputEmbedding(SHAPE, width=4, history="mean")
    code, number, told = inputs.item.codes.weight, inputs.item.numbers[0], inputs.feedback
    [item, categories, price, feedback] = inputs.pooled(one_sample())[0]
    torch.testing.assert_close(item, (code[2] + code[1]) / 2)
    torch.testing.assert_close(categories, (code[3] + code[4] + code[3]) / 3)
    torch.testing.assert_close(price, 2 * number[0] + number[1])
    torch.testing.assert_close(feedback, told[0] + 0.5 * told[1] - 0.5 * told[2])


def test_one_behavior_pooled_is_that_behavior() -> None:
    batch = {name: values[:, :1] if name.startswith("history") else values for name, values in one_sample().items()}
    inputs = InputEmbedding(SHAPE, width=4, history="mean")
    torch.testing.assert_close(inputs.pooled(batch).flatten(1), inputs.behaviors(batch)[:, 0])


def test_the_fused_vector_is_the_last_field_whatever_the_history() -> None:
    for history, count in (("none", 8), ("mean", 12), ("sequence", 8)):
        inputs = InputEmbedding(SHAPE, width=4, history=history)
        fields_BFE = inputs.fields(one_sample())
        assert fields_BFE.shape == (1, inputs.field_count, 4)
        assert inputs.field_count == count + 1
        torch.testing.assert_close(fields_BFE[0, -1], inputs.project(torch.arange(5.0)))


def test_the_linear_term_weighs_codes_numbers_dense_features_and_the_fused_vector() -> None:
    linear = LinearTerm(SHAPE, width=4)
    randomize(linear)
    fields_BFE = torch.randn(1, 3, 4)
    user, item = linear.user.codes.weight[:, 0], linear.item.codes.weight[:, 0]
    expected = user[2] + 0.5 * linear.user.numbers[0, 0, 0] + linear.user.numbers[0, 1, 0]
    expected += item[1] + (item[4] + item[5]) / 2
    expected += torch.tensor([0.1, 0.2, 0.3]) @ linear.dense + fields_BFE[0, -1] @ linear.fused
    torch.testing.assert_close(linear(one_sample(), fields_BFE)[0], expected)


def test_items_without_codes_or_numbers_pool_what_there_is() -> None:
    numbers_alone = FieldEmbedding(slots=(), code_count=1, number_count=2, width=4)
    pooled = numbers_alone.pool(torch.zeros(2, 3, 0, dtype=torch.int32), torch.ones(2, 3, 2, 2))
    torch.testing.assert_close(pooled[0], numbers_alone.numbers.sum(dim=1))


@pytest.mark.parametrize("name", BACKBONES)
def test_inputs_without_user_fields_and_memory_are_enough(name: str) -> None:
    shape = InputShape(
        user_slots=(),
        user_code_count=1,
        user_number_count=0,
        item_slots=(1,),
        item_code_count=6,
        item_number_count=0,
        sequence_length=4,
    )
    batch = one_sample() | {
        "user_codes": torch.zeros(1, 0),
        "user_numbers": torch.zeros(1, 0, 2),
        "item_codes": torch.tensor([[1]]),
        "item_numbers": torch.zeros(1, 0, 2),
        "history_codes": torch.tensor([[[2], [1], [0]]]),
        "history_numbers": torch.zeros(1, 3, 0, 2),
    }
    config = {"search": "soft"} if name == "sim" else {}  # there is no category to search by
    logits = small(name, shape=shape, **config)(batch)
    assert logits.shape == (1,)
    assert logits.isfinite().all()


def test_autoint_without_its_mlp_is_the_attention_alone() -> None:
    model = small("autoint", hidden=None)
    assert not [name for name in model.state_dict() if name.startswith("output")]
    batch = batch_of()
    attended = model.interaction(model.inputs.fields(batch)).flatten(1)
    torch.testing.assert_close(model(batch), model.interaction_output(attended).squeeze(-1))


def test_dcn_without_its_deep_network_is_the_crosses_beside_the_fields() -> None:
    model, batch = small("dcn", hidden=()), batch_of()
    stacked = model.inputs.fields(batch).flatten(1)
    expected = model.output(torch.cat([model.cross(stacked), stacked], dim=1)).squeeze(-1)
    torch.testing.assert_close(model(batch), expected)


def test_the_defaults_are_the_sizes_of_liber() -> None:
    for name in SMALL:
        config = type(small(name)).Config()
        assert (config.embedding_width, config.hidden, config.dropout) == (32, (200, 80), 0.3)
