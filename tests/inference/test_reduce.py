"""Labels between network voxels: compiled cells against every class interpolated, and against scipy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from slice3d.inference.decide import Decision
from slice3d.inference.reduce import Reducer, neighbours, window
from slice3d.inference.reduce_cells import CellReducer

SIZE = st.tuples(*[st.integers(1, 7)] * 3)
STEP = st.sampled_from([0.21, 1 / 3, 0.5, 0.77, 1.0, 1.4, 2.6])  # network voxels per study voxel: finer and coarser


def scores_of(shape: tuple[int, ...], classes: int, seed: int, kind: str) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 1, (*shape, classes))
    if kind == "smooth":
        values = ndimage.gaussian_filter(values, (1, 1, 1, 0), mode="nearest") * 5
    if kind == "ties":
        values = rng.integers(0, 3, values.shape)
    return values.astype(np.float32)


def reduced(kind: type[Reducer], scores: np.ndarray, out: tuple[int, ...], steps: Any, orders: Any, decision: Decision,
            box: Any = None) -> tuple[np.ndarray, Reducer]:  # fmt: skip
    low, high = ((0, 0, 0), scores.shape[:3]) if box is None else box
    windows = [
        window(a, b, n_in=n, n_out=m, step=s)
        for a, b, n, m, s in zip(low, high, scores.shape, out, steps, strict=False)
    ]
    labels = np.zeros(out, np.uint8, order="F").transpose(0, 1, 2)
    options: dict[str, Any] = {
        "windows": tuple(windows),
        "steps": steps,
        "orders": orders,
        "device": torch.device("cpu"),
    }
    with ThreadPoolExecutor(2) as pool:
        if kind is CellReducer:
            options["pool"] = pool
        reducer = kind(scores.shape[:3], labels, decision, **options)
        for n in range(high[0] - low[0]):
            here = scores[low[0] + n, low[1] : high[1], low[2] : high[2]]
            reducer.take(n, torch.from_numpy(np.ascontiguousarray(here)))
    return labels, reducer


def interpolated(scores: np.ndarray, out: tuple[int, ...], steps: Any, orders: Any) -> np.ndarray:
    """Every class at every study voxel, float32, one axis after the other as the cells do it."""
    for axis, (m, step, order) in enumerate(zip(out, steps, orders, strict=True)):
        n = scores.shape[axis]
        lower, weight = neighbours(n, window(0, n, n_in=n, n_out=m, step=step), step, order)
        w = weight.reshape([-1 if a == axis else 1 for a in range(4)])
        upper = np.minimum(lower + 1, n - 1)
        scores = (np.float32(1) - w) * scores.take(lower, axis) + w * scores.take(upper, axis)
    return scores


def shape_for(shape: tuple[int, ...], steps: tuple[float, ...]) -> tuple[int, int, int]:
    a, b, c = (max(1, round(n / s)) for n, s in zip(shape, steps, strict=True))
    return a, b, c


@given(
    shape=SIZE, steps=st.tuples(STEP, STEP, STEP), orders=st.tuples(*[st.integers(0, 1)] * 3),
    classes=st.integers(2, 9), seed=st.integers(0, 99), kind=st.sampled_from(["noise", "smooth", "ties"]),
    unwanted=st.integers(0, 9),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_cells_give_what_interpolating_every_class_gives(
    shape: Any, steps: Any, orders: Any, classes: int, seed: int, kind: str, unwanted: int
) -> None:
    scores = scores_of(shape, classes, seed, kind)
    values = tuple(0 if k < unwanted and k else k for k in range(classes))
    decision = Decision("softmax", values, {"one": (1,)})
    out = shape_for(shape, steps)
    labels, _ = reduced(CellReducer, scores, out, steps, orders, decision)
    fine = interpolated(scores, out, steps, orders)
    np.testing.assert_array_equal(labels, np.array(values)[fine.argmax(-1)])  # the first of equal ones, bit for bit
    # and the tensor operations, up to rounding
    other, _ = reduced(Reducer, scores, out, steps, orders, decision)
    best = np.sort(fine, -1)
    clear = best[..., -1] - best[..., -2] > 1e-5
    np.testing.assert_array_equal(labels[clear], other[clear])


@given(
    width=st.sampled_from([1, 2, 15, 40]), classes=st.sampled_from([5, 7, 8, 9, 16, 17, 33]), step=STEP,
    seed=st.integers(0, 99), kind=st.sampled_from(["noise", "blobs", "ties"]),
    activation=st.sampled_from(["softmax", "sigmoid"]),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_more_classes_than_are_worked_out_at_once(
    width: int, classes: int, step: float, seed: int, kind: str, activation: str
) -> None:
    """Vectors of classes, whole ones and with a rest; few borders and many."""
    scores = scores_of((3, 2, width), classes, seed, "noise" if kind == "blobs" else kind)
    if kind == "blobs":  # long runs of one class, borders anywhere
        border = np.random.default_rng(seed).integers(0, width + 1, 2)
        scores[..., 0] += 9
        scores[:, :, border.min() : border.max(), 1] += 20
    steps = (0.6, 1.3, step)
    out = shape_for((3, 2, width), steps)
    decision = Decision(activation, (0, 4, 2, 1, 3, *range(5, classes)), threshold=0.2)
    labels, _ = reduced(CellReducer, scores, out, steps, (1, 1, 1), decision)
    fine = interpolated(scores, out, steps, (1, 1, 1))
    if activation == "softmax":
        np.testing.assert_array_equal(labels, np.array(decision.values)[fine.argmax(-1)])
        return
    expected = np.zeros(out, int)
    for channel, value in enumerate(decision.values):
        expected[fine[..., channel] > np.float32(0.2)] = value
    clear = (np.abs(fine - 0.2) > 1e-5).all(-1)
    np.testing.assert_array_equal(labels[clear], expected[clear])


@given(
    shape=SIZE, steps=st.tuples(STEP, STEP, STEP), classes=st.integers(1, 5), seed=st.integers(0, 99),
    threshold=st.sampled_from([0.0, 0.3]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_regions_are_each_interpolated_and_overwrite_in_order(
    shape: Any, steps: Any, classes: int, seed: int, threshold: float
) -> None:
    scores = scores_of(shape, classes, seed, "smooth")
    values = tuple((3, 1, 0, 2, 5)[:classes])
    decision = Decision("sigmoid", values, threshold=threshold)
    out = shape_for(shape, steps)
    labels, _ = reduced(CellReducer, scores, out, steps, (1, 1, 1), decision)
    fine = interpolated(scores, out, steps, (1, 1, 1))
    expected = np.zeros(out, int)
    for channel, value in enumerate(values):
        expected[fine[..., channel] > threshold] = value
    clear = (np.abs(fine - threshold) > 1e-5).all(-1)
    np.testing.assert_array_equal(labels[clear], expected[clear])
    other, _ = reduced(Reducer, scores, out, steps, (1, 1, 1), decision)
    np.testing.assert_array_equal(labels[clear], other[clear])


@pytest.mark.parametrize("steps", [(0.3, 0.25, 0.4), (1.0, 0.5, 0.5), (2.2, 1.7, 0.6)])
def test_cells_against_scipy(steps: tuple[float, float, float]) -> None:
    scores = scores_of((9, 11, 7), 6, 3, "smooth")
    out = shape_for(scores.shape[:3], steps)
    labels, _ = reduced(CellReducer, scores, out, steps, (1, 1, 1), Decision("softmax", tuple(range(6))))
    offset = [s / 2 - 0.5 for s in steps]
    fine = np.stack(
        [ndimage.affine_transform(c, steps, offset, out, order=1, mode="nearest") for c in np.moveaxis(scores, -1, 0)],
        -1,
    )
    best = np.sort(fine, -1)
    clear = best[..., -1] - best[..., -2] > 1e-5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(labels[clear], fine.argmax(-1)[clear])


@given(seed=st.integers(0, 99), steps=st.tuples(STEP, STEP, STEP))
@settings(max_examples=25, deadline=None)
def test_a_window_gives_its_part_of_the_whole(seed: int, steps: Any) -> None:
    scores = scores_of((8, 9, 7), 5, seed, "noise")
    out = shape_for(scores.shape[:3], steps)
    decision = Decision("softmax", tuple(range(5)))
    whole, _ = reduced(CellReducer, scores, out, steps, (1, 1, 1), decision)
    part, reducer = reduced(CellReducer, scores, out, steps, (1, 1, 1), decision, ((2, 0, 1), (7, 5, 6)))
    np.testing.assert_array_equal(part[reducer.box], whole[reducer.box])
    outside = np.ones(out, bool)
    outside[reducer.box] = False
    assert not part[outside].any()


@given(seed=st.integers(0, 99), classes=st.integers(2, 8))
@settings(max_examples=20, deadline=None)
def test_sums_of_the_compiled_and_the_tensor_reducer_agree(seed: int, classes: int) -> None:
    """What expected Dice, positions and the wanted region's probability are made from."""
    scores = scores_of((5, 6, 9), classes, seed, "smooth")
    groups = {"one": (1,), "all": tuple(range(1, classes)), "last": (classes - 1,)}
    decision = Decision("softmax", tuple(range(classes)), groups, ("all",))
    steps, out = (0.5, 0.4, 0.3), shape_for((5, 6, 9), (0.5, 0.4, 0.3))
    _, cells = reduced(CellReducer, scores, out, steps, (1, 1, 1), decision)
    _, tensors = reduced(Reducer, scores, out, steps, (1, 1, 1), decision)
    for name in groups:
        a, b = cells.tallies[name], tensors.tallies[name]
        assert a.voxels == b.voxels
        assert (a.probability, a.inside) == pytest.approx((b.probability, b.inside), rel=1e-4)
        assert a.entropy == pytest.approx(b.entropy, rel=1e-3, abs=1e-3)
    np.testing.assert_array_equal(cells.census.moments, tensors.census.moments)
    best = scores.argmax(-1)
    for channel in range(classes):
        where = np.argwhere(best == channel)
        assert cells.census.moments[channel, 0] == len(where)
        if len(where):
            np.testing.assert_array_equal(cells.census.box([channel]), [where.min(0), where.max(0) + 1])
            np.testing.assert_allclose(cells.census.centres()[channel][1], where.mean(0))
    np.testing.assert_array_equal(cells.probability["all"], tensors.probability["all"])


def test_sums_do_not_depend_on_threads() -> None:
    scores = scores_of((6, 23, 19), 7, 1, "smooth")
    decision = Decision("softmax", tuple(range(7)), {"one": (1,), "rest": (2, 3)})
    found = []
    for threads in (1, 3):
        with ThreadPoolExecutor(threads) as pool:
            windows = tuple(window(0, n, n_in=n, n_out=n, step=1.0) for n in scores.shape[:3])
            labels = np.zeros(scores.shape[:3], np.uint8)
            reducer = CellReducer(scores.shape[:3], labels, decision, windows=windows, steps=(1.0, 1.0, 1.0),
                                  device=torch.device("cpu"), pool=pool)  # fmt: skip
            for n, plane in enumerate(scores):
                reducer.take(n, torch.from_numpy(plane))
        found.append((reducer.tallies, labels.tobytes()))
    assert found[0] == found[1]
