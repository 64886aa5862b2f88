"""Labels against nnU-Net's own predictor, stored: made by `benchmarks/inference.py --part reference` with nnunetv2 2.8.

Each file holds a phantom, plans, the weights of tiny networks trained on another phantom, and what the predictor made of
it twice: as it is (it adds tiles up in float16), and adding up in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from slice3d.grid import Grid
from slice3d.inference import Engine, InferenceSettings
from slice3d.inference.prepare import axis_matrix
from slice3d.models import ModelPackage
from slice3d.models.install import AddSettings, add
from slice3d.volume import Volume, freeze

REFERENCE = Path(__file__).parent / "reference"


def installed(stored: dict[str, Any], tmp_path: Path) -> ModelPackage:
    folder = tmp_path / "Dataset999_Benchmark" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    folder.mkdir(parents=True)
    for name in ("plans", "dataset"):
        (folder / f"{name}.json").write_text(str(stored[name]))
    weights = {key: value for key, value in stored.items() if "/" in key}
    for fold in sorted({key.partition("/")[0] for key in weights}):
        state = {
            k.partition("/")[2]: torch.from_numpy(v).float() for k, v in weights.items() if k.startswith(f"{fold}/")
        }
        checkpoint = {
            "network_weights": state, "init_args": {"configuration": "3d_fullres"}, "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": tuple(stored["mirror"].tolist()) or None,
        }  # fmt: skip
        (folder / f"fold_{fold}").mkdir()
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return add(folder, settings=AddSettings(folder=tmp_path / "cache"))


@pytest.mark.parametrize(
    ("name", "folds", "spacing"),
    [("plain-isotropic", 1, (6.0, 6.0, 6.0)), ("residual-anisotropic", 2, (10.0, 3.0, 3.0))],
)
def test_labels_are_those_of_nnunet_s_own_predictor(
    name: str, folds: int, spacing: tuple[float, float, float], tmp_path: Path
) -> None:
    with np.load(REFERENCE / f"{name}.npz") as file:
        stored = dict(file)
    package = installed(stored, tmp_path)
    assert (len(package.weights), package.spacing_mm) == (folds, spacing)
    truth = stored["labels_float32"]
    _, count = np.unique(truth, return_counts=True)
    assert len(count) >= 4, "the reference must have structure"
    assert count.max() < 0.7 * truth.size
    volume = Volume(freeze(stored["image"]), Grid(stored["image"].shape, stored["affine"]), modality="CT")
    agreement = {}
    for precision in ("float32", "bfloat16"):
        settings = InferenceSettings(precision=precision, device="cpu", threads=1, allow_unexpected_input=True)  # type: ignore[arg-type]
        ours = Engine(package, settings).predict(volume).labels
        for sums in ("float32", "float16"):
            agreement[precision, sums] = float((ours == stored[f"labels_{sums}"]).mean())
    assert agreement["float32", "float32"] >= 0.9999, agreement
    assert agreement["float32", "float16"] >= 0.999, agreement
    assert min(agreement["bfloat16", s] for s in ("float32", "float16")) >= 0.995, agreement


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize(("n_in", "n_out"), [(40, 47), (47, 40), (9, 31), (31, 9), (5, 1), (1, 4)])
def test_axis_matrices_are_scipy_s_zoom(order: int, n_in: int, n_out: int) -> None:
    """What skimage's `resize`, and so nnU-Net, calls; the outermost samples lie beyond the outermost voxels' centres."""
    values = np.random.default_rng(0).normal(size=n_in)
    matrix = axis_matrix(n_in, n_out, step=n_in / n_out, order=order)
    expected = ndimage.zoom(values, n_out / n_in, order=order, mode="nearest", grid_mode=True)
    assert matrix is not None
    np.testing.assert_allclose(matrix @ values, expected, atol=1e-5)
