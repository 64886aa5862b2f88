"""Resampling on the way in: bands against whole matrices, and an image that does not depend on how it lies in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slice3d.grid import Grid
from slice3d.inference.bands import along_columns, along_rows, band
from slice3d.inference.prepare import axis_matrix, make_frame, network_image
from slice3d.inference.reliability import _counted
from slice3d.models import ModelPackage
from slice3d.volume import Volume, freeze
from tests.inference.builders import random_network, write_package


@given(
    n_in=st.integers(1, 70), n_out=st.integers(1, 70), order=st.sampled_from([0, 1, 3]), average=st.booleans(),
    seed=st.integers(0, 9),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_bands_are_the_matrices_they_come_from(n_in: int, n_out: int, order: int, average: bool, seed: int) -> None:
    matrix = axis_matrix(n_in, n_out, step=n_in / n_out, order=order, average=average)
    if matrix is None:
        return
    values = np.random.default_rng(seed).normal(size=(n_in, 13)).astype(np.float32)
    expected = matrix.astype(np.float64) @ values
    found = band(matrix)
    rows, columns = np.empty((n_out, 13), np.float32), np.empty((13, n_out), np.float32)
    along_rows(*found, values, rows, 0, n_out)
    along_columns(*found, np.ascontiguousarray(values.T), columns)
    np.testing.assert_allclose(rows, expected, atol=3e-6)
    np.testing.assert_allclose(columns.T, expected, atol=3e-6)


@pytest.mark.parametrize("rule", ["nnunet", "average"])
def test_memory_layout_and_threads_do_not_matter(rule: str, tmp_path: Any) -> None:
    values = np.random.default_rng(0).integers(-1000, 1000, (31, 23, 17)).astype(np.int16)
    affine = np.array([[1.1, 0, 0, 3], [0, 0.8, 0, -4], [0, 0, 4.0, 7], [0, 0, 0, 1]])
    package = write_package(
        tmp_path / rule, random_network(), orientation="SAR", sampling={"resampling": rule}, spacing_mm=[3.5, 1.7, 2.2]
    )
    layouts = [np.asarray(values, order=order) for order in ("C", "F")]  # type: ignore[call-overload]
    layouts.append(values.transpose(1, 2, 0).copy().transpose(2, 0, 1))
    layouts.append(values[:, ::-1].copy()[:, ::-1])
    seen = [_seen(layout, affine, package, threads) for layout in layouts for threads in (1, 3)]
    for other in seen[1:]:
        np.testing.assert_allclose(other, seen[0], atol=1e-5)
    np.testing.assert_array_equal(seen[1], seen[0])


def _seen(values: np.ndarray, affine: np.ndarray, package: ModelPackage, threads: int) -> np.ndarray:
    volume = Volume(freeze(values), Grid(values.shape, affine), modality="CT")
    return network_image([volume], package, make_frame([volume], package), threads=threads)


@given(shape=st.tuples(*[st.integers(1, 9)] * 3), most=st.sampled_from([1, 7, 300]), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_labels_are_counted(shape: tuple[int, int, int], most: int, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, most, shape).astype(np.uint8 if most < 256 else np.uint16)
    for layout in (labels, labels.transpose(2, 0, 1), labels[:, ::-1], labels[::2]):
        np.testing.assert_array_equal(_counted(layout), np.bincount(layout.ravel()))
