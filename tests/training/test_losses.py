import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slice3d.training.losses import DeepSupervision, PartialDiceCE
from slice3d.training.structures import PARTIAL


def test_without_partial_labels_it_is_monais_dice_plus_cross_entropy() -> None:
    from monai.losses import DiceLoss

    torch.manual_seed(0)
    logits, labels = torch.randn(1, 4, 5, 6, 7), torch.randint(0, 4, (1, 5, 6, 7))
    dice = DiceLoss(include_background=False, softmax=True, to_onehot_y=True, smooth_nr=20.0, smooth_dr=20.0)
    expected = dice(logits, labels[:, None]) + torch.nn.functional.cross_entropy(logits, labels)
    assert float(PartialDiceCE(4)(logits, labels)) == pytest.approx(float(expected), rel=1e-5)


@given(value=st.sampled_from([v for v in PARTIAL if v != 255]), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_partial_label_costs_the_probability_outside_its_classes(value: int, seed: int) -> None:
    logits = torch.randn(1, 16, 2, 3, 4, generator=torch.Generator().manual_seed(seed))
    labels = torch.full((1, 2, 3, 4), value)
    shares = torch.softmax(logits, dim=1)[:, list(PARTIAL[value])].sum(dim=1)
    assert float(PartialDiceCE(16, PARTIAL)(logits, labels)) == pytest.approx(float(-shares.log().mean()), rel=1e-4)


def test_ignored_voxels_have_no_gradient() -> None:
    logits = torch.randn(1, 16, 2, 2, 2, requires_grad=True)
    labels = torch.full((1, 2, 2, 2), 255)
    labels[0, 0, 0, 0] = 3
    PartialDiceCE(16, PARTIAL)(logits, labels).backward()
    assert logits.grad is not None
    touched = logits.grad.abs().sum(dim=1)[0] > 0
    assert touched.sum() == 1
    assert bool(touched[0, 0, 0])


def test_deep_supervision_weighs_finer_heads_more() -> None:
    labels = torch.zeros(1, 2, 2, 2, dtype=torch.long)
    good, bad = torch.zeros(1, 3, 2, 2, 2), torch.zeros(1, 3, 2, 2, 2)
    good[:, 0], bad[:, 1] = 9.0, 9.0
    loss = DeepSupervision(PartialDiceCE(3))
    values = {
        order: float(loss(torch.stack([{"g": good, "b": bad}[c] for c in order], dim=1), labels))
        for order in map("".join, itertools.product("gb", repeat=2))
    }
    assert values["gg"] < values["gb"] < values["bg"] < values["bb"]
    assert np.isclose(float(loss(good, labels)), values["gg"])


@given(seed=st.integers(0, 99), classes=st.integers(2, 7), missing=st.booleans(), weight=st.sampled_from([1.0, 20.0]))
@settings(max_examples=20, deadline=None)
def test_gradient_written_out_is_that_of_automatic_differentiation(
    seed: int, classes: int, missing: bool, weight: float
) -> None:
    from monai.losses import DiceLoss

    source = torch.Generator().manual_seed(seed)
    start = 3 * torch.randn(1, classes, 4, 5, 6, generator=source)
    labels = torch.randint(0, classes - missing, (1, 4, 5, 6), generator=source)
    labels[0, 0, 0, : classes - missing] = torch.arange(classes - missing)[:6]
    found, expected = start.clone().requires_grad_(), start.clone().requires_grad_()
    (2.5 * PartialDiceCE(classes, weights={1: weight})(found, labels)).backward()
    dice = DiceLoss(
        include_background=False, softmax=True, to_onehot_y=True, smooth_nr=20.0, smooth_dr=20.0, reduction="none"
    )
    each = dice(expected, labels[:, None]).reshape(-1)
    present = torch.tensor([bool((labels == c).any()) for c in range(1, classes)])
    weights = torch.ones(classes)
    weights[1] = weight
    loss = torch.nn.functional.cross_entropy(expected, labels, weight=weights, reduction="none").mean()
    (2.5 * (loss + (each[present].mean() if bool(present.any()) else 0.0))).backward()
    assert found.grad is not None
    assert expected.grad is not None
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-7)


@given(seed=st.integers(0, 99), share=st.floats(0.1, 1.0))
@settings(max_examples=30, deadline=None)
def test_gradient_with_partial_labels_is_that_of_automatic_differentiation(seed: int, share: float) -> None:
    torch.manual_seed(seed)
    classes, smooth = 16, 20.0
    logits = (3 * torch.randn(2, classes, 3, 4, 5)).requires_grad_()
    labels = torch.randint(0, classes, (2, 3, 4, 5))
    open_ = torch.rand(labels.shape) < share
    labels[open_] = torch.tensor(list(PARTIAL))[torch.randint(0, len(PARTIAL), labels.shape)][open_]
    loss = PartialDiceCE(classes, PARTIAL, weights={3: 7.0})(logits, labels)
    loss.backward()
    found, logits.grad = logits.grad, None

    shares = logits.movedim(1, -1).reshape(-1, classes).softmax(1)
    costs, dice, flat = [], [], labels.reshape(-1)
    for voxel, label in zip(shares, flat.tolist(), strict=True):
        allowed = list(PARTIAL.get(label, (label,)))
        if len(allowed) < classes:
            costs.append(-voxel[allowed].sum().log() * (7.0 if label == 3 else 1.0))
    known = flat < 250
    for value in range(1, classes):
        if bool((flat == value).any()):
            ruled_out = torch.tensor([value not in PARTIAL.get(label, (value,)) for label in flat.tolist()])
            told = known | ruled_out
            truth, p = (flat[told] == value).float(), shares[told, value]
            dice.append((2 * (p * truth).sum() + smooth) / (p.sum() + truth.sum() + smooth))
    expected = (torch.stack(costs).mean() if costs else 0) + (1 - torch.stack(dice).mean() if dice else 0)
    if not isinstance(expected, torch.Tensor):
        assert loss.item() == 0
        return
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert found is not None
    torch.testing.assert_close(found, logits.grad, rtol=1e-3, atol=1e-6)
