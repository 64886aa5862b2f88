"""`slice3d upsample` with several stacks: what it writes, and one line for what cannot be joined."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

Run = Callable[..., tuple[int, str, str]]
AXES = {"ax": (0, 1, 2), "cor": (0, 2, 1), "sag": (1, 2, 0)}


def save(path: Path, data: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(data.astype(np.float32), affine), path)
    return path


@pytest.fixture(scope="module")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three orthogonal stacks of a ball, 2×2×6 mm."""
    folder = tmp_path_factory.mktemp("stacks")
    paths = []
    for name, order in AXES.items():
        shape, spacing = np.array([30, 30, 10]), np.array([2.0, 2.0, 6.0])
        affine = np.eye(4)
        for column, world in enumerate(order):
            affine[:3, column] = np.eye(3)[world] * spacing[column]
        affine[:3, 3] = -affine[:3, :3] @ ((shape - 1) / 2)
        index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
        radius = np.linalg.norm((index @ affine[:3, :3].T + affine[:3, 3]) - (3.0, -2.0, 1.0), axis=-1)
        paths.append(save(folder / f"{name}.nii.gz", 1000 / (1 + np.exp((radius - 18) / 2)), affine))
    return paths


def test_three_stacks_become_one_volume(stacks: list[Path], tmp_path: Path, slice3d: Run) -> None:
    out = tmp_path / "iso.nii.gz"
    code, text, _ = slice3d(
        "upsample", *map(str, stacks), "--spacing", "2", "--thickness", "6", "--out", str(out), "--json"
    )
    assert code == 0
    said = json.loads(text)
    assert said["outputs"] == ["iso.nii.gz", "iso.synthesised.nii.gz", "iso.uncertainty.nii.gz"]
    made = nib.load(out)
    assert nib.affines.voxel_sizes(made.affine) == pytest.approx([2, 2, 2], abs=1e-3)
    # the ball's centre of mass is where it was
    data = np.asarray(made.dataobj, dtype=float)
    weight = np.clip(data - 100, 0, None)
    index = np.stack(np.meshgrid(*map(np.arange, data.shape), indexing="ij"), axis=-1)
    centre = (index * weight[..., None]).sum(axis=(0, 1, 2)) / weight.sum()
    np.testing.assert_allclose(made.affine[:3, :3] @ centre + made.affine[:3, 3], (3.0, -2.0, 1.0), atol=0.2)
    found = next(f for f in said["findings"] if f["code"] == "superres")
    assert len(found["details"]["stacks"]) == 3


def test_what_cannot_be_joined_is_told_in_one_line(stacks: list[Path], tmp_path: Path, slice3d: Run) -> None:
    first = nib.load(stacks[0])
    data = np.asarray(first.dataobj)
    far = first.affine.copy()
    far[:3, 3] += 500
    bad = {
        "0% of the first stack's field of view": save(tmp_path / "far.nii.gz", data, far),
        "3 slices; expected at least 4": save(tmp_path / "few.nii.gz", data[..., :3], first.affine),
    }
    for message, path in bad.items():
        code, _, error = slice3d("upsample", str(stacks[0]), str(path), "--out", str(tmp_path / "no.nii.gz"))
        assert code == 2
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "no.nii.gz").exists()


def test_of_a_4d_series_the_first_volume_is_taken_and_that_is_said(
    stacks: list[Path], tmp_path: Path, slice3d: Run
) -> None:
    second = nib.load(stacks[1])
    data = np.stack([np.asarray(second.dataobj), np.zeros(second.shape)], axis=-1)
    series = save(tmp_path / "series.nii.gz", data, second.affine)
    out = str(tmp_path / "iso.nii.gz")
    code, text, _ = slice3d("upsample", str(stacks[0]), str(series), "--spacing", "2", "--out", out, "--json")
    assert code == 0
    assert "superres-motion" in {f["code"] for f in json.loads(text)["findings"]}
    said = [f["message"] for f in json.loads(text)["findings"]]
    assert any(
        message.startswith("stack 2: ") and "holds 2 volumes; the first was taken" in message for message in said
    ), said
