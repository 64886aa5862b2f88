"""`segment --superres`: the study is made fine first, and what was estimated is told in every result."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import slice3d
from slice3d.errors import InputError
from slice3d.pipeline import RunResult, RunSettings, run
from slice3d.superres import Superres
from slice3d.volume import Segmentation

SAMPLE = Path(__file__).parents[2] / "sample_data"
ORGANS = ("liver",)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The surroundings of the sample study's liver, slices joined two by two: 6 mm apart."""
    volume = slice3d.load(SAMPLE / "dicom")
    truth = slice3d.load_segmentation(SAMPLE / "truth.nii.gz", reference=volume)
    shown = np.argwhere(truth.mask("liver"))
    first = np.maximum(shown.min(axis=0) - 8, 0)
    last = shown.max(axis=0) + 9
    last[2] -= (last[2] - first[2]) % 2
    data = np.asarray(volume.data, dtype=np.float32)[tuple(map(slice, first, last))]
    thick = (data[..., 0::2] + data[..., 1::2]) / 2
    affine = volume.grid.affine.copy()
    affine[:3, 3] = volume.grid.to_world(np.add(first, (0, 0, 0.5)))
    affine[:3, 2] *= 2
    path = tmp_path_factory.mktemp("study") / "thick.nii.gz"
    slice3d.save(slice3d.Volume(np.rint(thick).astype(np.int16), slice3d.Grid(thick.shape, affine)), path)
    return path


@pytest.fixture(scope="module")
def result(study: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    out = tmp_path_factory.mktemp("superres") / "out"
    return run(study, out, settings=RunSettings(organs=ORGANS, superres=Superres(3.0, "bspline")))


def test_results_lie_on_the_fine_grid_and_keep_their_size(result: RunResult) -> None:
    labels = nib.load(result.out / "segmentation.nii.gz")
    spacing = nib.affines.voxel_sizes(labels.affine)
    assert spacing[2] == pytest.approx(3.0, abs=1e-3)
    exact = json.loads((SAMPLE / "truth.json").read_text())["volumes_ml"]
    for name in ORGANS:
        assert result.meshes[name].volume_ml == pytest.approx(exact[name], rel=0.04)


def test_the_image_and_its_marks_are_written_beside_the_labels(result: RunResult) -> None:
    image, made, doubt = (nib.load(result.out / f"image{part}.nii.gz") for part in ("", ".synthesised", ".uncertainty"))
    assert image.shape == made.shape == doubt.shape == result.segmentation.grid.shape
    marked = np.asarray(made.dataobj).astype(bool)
    np.testing.assert_array_equal(marked, result.volume.synthesised)
    planes = marked.all(axis=(0, 1))
    assert 0 < planes.sum() < len(planes)
    assert (marked.any(axis=(0, 1)) == planes).all()


def test_marks_travel_into_labels_surfaces_and_numbers(result: RunResult) -> None:
    found = result.segmentation
    assert found.synthesised is result.volume.synthesised
    assert found.uncertainty is result.volume.uncertainty
    for name in ORGANS:
        scalars = result.meshes[name].scalars
        assert {"synthesised", "uncertainty"} <= set(scalars)
        assert 0 < scalars["synthesised"].mean() < 1
        row = result.metrics["structures"][name]
        assert row["synthesised_share"] == pytest.approx(found.synthesised[found.mask(name)].mean(), abs=1e-3)
        assert row["mean_uncertainty"] == pytest.approx(found.uncertainty[found.mask(name)].mean(), abs=1e-3)
        assert row["mesh"]["mean_uncertainty"] == pytest.approx(scalars["uncertainty"].mean(), abs=1e-3)


def test_an_independent_reader_finds_the_marks_on_the_surface(result: RunResult) -> None:
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkIOXML import vtkXMLPolyDataReader

    reader = vtkXMLPolyDataReader()
    reader.SetFileName(str(result.out / "liver.vtp"))
    reader.Update()
    data = reader.GetOutput().GetPointData()
    assert data.HasArray("synthesised")
    np.testing.assert_allclose(
        vtk_to_numpy(data.GetArray("uncertainty")), result.meshes["liver"].scalars["uncertainty"], rtol=1e-5
    )


def test_report_and_manifest_say_what_was_estimated(study: Path, result: RunResult) -> None:
    page = (result.out / "report.html").read_text(encoding="utf-8")
    share = round(100 * result.metrics["structures"]["liver"]["synthesised_share"])
    assert f"Liver: {share} % of its voxels lie in computed planes" in page
    manifest = json.loads((result.out / "manifest.json").read_text())
    assert manifest["input"]["shape"] == list(nib.load(study).shape)
    assert manifest["super_resolution"]["method"] == "bspline"
    assert {"image.nii.gz", "liver.vtp", "liver.stl"} <= set(manifest["outputs"])
    assert "super-resolution" in manifest["timings_s"]


def test_what_lies_on_the_acquired_slices_is_refused_before_work(tmp_path: Path) -> None:
    wanted = RunSettings(organs=ORGANS, superres=Superres(3.0, "bspline"), dicom_seg=True)
    with pytest.raises(InputError, match="DICOM SEG lies on the acquired slices"):
        run(tmp_path / "absent", tmp_path / "out", settings=wanted)
    wanted = RunSettings(organs=ORGANS, superres=Superres(3.0, "bspline"))
    with pytest.raises(InputError, match=r"leave --reference out.*evaluate --resample"):
        run(tmp_path / "absent", tmp_path / "out", settings=wanted, reference=tmp_path / "truth.nii.gz")


def test_marks_of_another_shape_are_refused() -> None:
    from slice3d.errors import GeometryError
    from slice3d.grid import Grid

    grid = Grid.from_spacing((5, 7, 11), (0.7, 1.3, 4.0))
    with pytest.raises(GeometryError, match="synthesised"):
        Segmentation(np.zeros(grid.shape, np.uint8), grid, {}, synthesised=np.zeros((5, 7, 10), bool))


def test_new_grid_old_marks_gone() -> None:
    from slice3d.grid import Grid
    from slice3d.resample import resample_labels

    grid = Grid.from_spacing((5, 7, 11), (0.7, 1.3, 4.0))
    marked = Segmentation(np.zeros(grid.shape, np.uint8), grid, {}, synthesised=np.ones(grid.shape, bool))
    assert resample_labels(marked, grid=Grid.from_spacing((5, 7, 20), (0.7, 1.3, 2.0))).synthesised is None
