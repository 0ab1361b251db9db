"""What holds for every backbone, whatever its layers are."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.backbone_parts import LENGTH, OF_FIELDS, SMALL, batch_of, randomize, small, spec
from training.backbones import BACKBONES, LONG_HISTORY
from training.backbones.embedding import HISTORY, Batch
from training.backbones.loss import forward_with_loss

pytestmark = pytest.mark.usefixtures("one_thread")
EVERY = pytest.mark.parametrize("name", BACKBONES)
LABELS = torch.arange(64) % 2 * 1.0


def randomized(name: str, **config: Any) -> Any:
    model = small(name, **config)
    randomize(model)
    return model


def logits(model: Any, batch: Batch) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(batch)
    assert found.shape == batch["dense"].shape[:1]
    assert found.isfinite().all()
    return found


def without_history(batch: Batch) -> Batch:
    return batch | {name: torch.zeros_like(batch[name]) for name in HISTORY}


def test_all_seven_are_there_and_the_two_that_search() -> None:
    seven = ["dcn", "deepfm", "xdeepfm", "autoint", "fibinet", "din", "dien"]
    assert list(BACKBONES) == [*seven, "sim", "eta"] == [*seven, *LONG_HISTORY]
    assert SMALL.keys() == BACKBONES.keys()


@EVERY
def test_what_stands_behind_the_mask_does_not_matter(name: str) -> None:
    model, batch = randomized(name), batch_of(0, 40)
    mask_BN = batch["history_mask"]
    assert not mask_BN.all()
    other = dict(batch)
    for field in HISTORY:
        if field != "history_mask":
            values = batch[field]
            noise = torch.randint(0, 2, values.shape).to(values.dtype)
            there = mask_BN.view(*mask_BN.shape, *[1] * (values.dim() - 2))
            other[field] = torch.where(there, values, noise)
    torch.testing.assert_close(logits(model, other), logits(model, batch), rtol=0, atol=1e-6)


@EVERY
def test_more_padding_changes_nothing(name: str) -> None:
    model, batch = randomized(name), batch_of(0, 40)
    wider = batch | {
        field: torch.cat([batch[field], torch.zeros_like(batch[field][:, :3])], dim=1) for field in HISTORY
    }
    assert wider["history_mask"].shape[1] == LENGTH + 3
    torch.testing.assert_close(logits(model, wider), logits(model, batch), rtol=0, atol=1e-6)


@EVERY
def test_samples_without_behaviors_have_finite_logits_and_losses(name: str) -> None:
    model, batch = randomized(name), without_history(batch_of())
    logits(model, batch)
    model.train()
    found, added = forward_with_loss(model, batch, labels_B=LABELS)
    loss = F.binary_cross_entropy_with_logits(found, torch.ones_like(found)) + added
    loss.backward()
    assert loss.isfinite()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())


@EVERY
def test_logits_follow_the_order_of_the_samples_and_no_sample_sees_another(name: str) -> None:
    model, batch = randomized(name), batch_of(0, 40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    whole = logits(model, batch)
    shuffled = {field: values[order] for field, values in batch.items()}
    torch.testing.assert_close(logits(model, shuffled), whole[order], rtol=0, atol=1e-5)
    alone = {field: values[17:18] for field, values in batch.items()}
    torch.testing.assert_close(logits(model, alone), whole[17:18], rtol=0, atol=1e-5)


@EVERY
@pytest.mark.parametrize("memory", [False, True], ids=["baseline", "liber"])
def test_a_gradient_reaches_every_weight(name: str, memory: bool) -> None:
    model = small(name, shape=spec(memory=memory).shape, activation="prelu").train()
    randomize(model)
    batch = batch_of(memory=memory)
    found, added = forward_with_loss(model, batch, labels_B=LABELS)
    (F.binary_cross_entropy_with_logits(found, LABELS) + added).backward()
    unreached = [
        weight_name
        for weight_name, weight in model.named_parameters()
        if weight.numel() and (weight.grad is None or not weight.grad.isfinite().all() or not weight.grad.any())
    ]
    assert unreached == []


@EVERY
def test_candidate_behaviors_and_memory_all_matter(name: str) -> None:
    model, batch = randomized(name), batch_of()
    whole = logits(model, batch)
    changed = {
        "candidate": batch | {"item_codes": batch["item_codes"].flip(0)},
        "behaviors": without_history(batch),
        "memory": batch | {"vectors": batch["vectors"].flip(0), "sealed": batch["sealed"].flip(0)},
        "dense": batch | {"dense": batch["dense"] + 1},
    }
    same = [what for what, other in changed.items() if torch.allclose(logits(model, other), whole, atol=1e-3)]
    assert same == []


@pytest.mark.parametrize("name", OF_FIELDS)
def test_a_backbone_of_fields_alone_can_leave_the_behaviors_out(name: str) -> None:
    model, batch = randomized(name, history="none"), batch_of()
    assert torch.equal(logits(model, batch), logits(model, without_history(batch)))
    pooled = small(name).inputs.field_count
    assert pooled == model.inputs.field_count + model.inputs.item.field_count + 1


@EVERY
def test_a_fused_vector_computed_before_gives_the_same_logits(name: str) -> None:
    model, batch = randomized(name), batch_of()
    with torch.no_grad():
        fused = model.inputs.fusion(batch["vectors"], batch["sealed"])
    rest = {field: values for field, values in batch.items() if field not in {"vectors", "sealed"}}
    torch.testing.assert_close(logits(model, rest | {"fused": fused}), logits(model, batch), rtol=0, atol=1e-5)


@EVERY
def test_a_step_in_bfloat16_is_finite_and_near_that_in_float32(name: str) -> None:
    model, batch = small(name), batch_of()
    whole = logits(model, batch)
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, added = forward_with_loss(model, batch, labels_B=LABELS)
        loss = F.binary_cross_entropy_with_logits(found.float(), torch.ones(64)) + added
    loss.backward()
    assert loss.isfinite()
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)
    model.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(model(batch).float(), whole, rtol=0.1, atol=0.05)


@EVERY
def test_an_exported_backbone_gives_the_same_logits(name: str) -> None:
    model, batch = randomized(name), batch_of(0, 40)
    with torch.no_grad():
        fused = model.inputs.fusion(batch["vectors"], batch["sealed"])
    served = {field: values for field, values in batch.items() if field not in {"vectors", "sealed"}}
    served["fused"] = fused
    is_sized = name == "dien"  # its packed steps are cut by the number of samples
    sizes = {field: {} if is_sized else {0: torch.export.Dim("candidates", min=2)} for field in served}
    exported = torch.export.export(model, (served,), dynamic_shapes=(sizes,), strict=False).module()
    for count in (40,) if is_sized else (40, 7):
        asked = {field: values[:count] for field, values in served.items()}
        torch.testing.assert_close(logits(exported, asked), logits(model, asked), rtol=0, atol=1e-5)
