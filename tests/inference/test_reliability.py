"""What a result says about itself, and what an input is refused for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from slice3d.errors import InputError
from slice3d.grid import Grid
from slice3d.inference.checks import check_input, not_hounsfield
from slice3d.inference.postprocess import clean
from slice3d.inference.reduce import Tally
from slice3d.inference.reliability import calibrate, check_result, check_sides, check_tested, measure
from slice3d.models import ModelPackage
from slice3d.volume import Segmentation, Volume
from tests.inference.builders import oblique_volume, random_network, write_package


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return write_package(tmp_path_factory.mktemp("models") / "tiny", random_network())


def grid(shape: tuple[int, int, int] = (60, 50, 40)) -> Grid:
    """Axes run to L, A, S; 4 × 3 × 5 mm."""
    affine = np.diag([-4.0, 3.0, 5.0, 1.0])
    affine[:3, 3] = (100, -80, 20)
    return Grid(shape, affine)


def labels(boxes: dict[int, tuple[slice, slice, slice]], shape: tuple[int, int, int] = (60, 50, 40)) -> Segmentation:
    array = np.zeros(shape, np.uint8)
    for value, box in boxes.items():
        array[box] = value
    return Segmentation(array, grid(shape), {1: "liver", 2: "bone", 3: "liver_tumor"})


def codes(result: Segmentation, wanted: list[str]) -> dict[str, str]:
    return {f.code: f.severity for f in check_result(result, wanted, {}, {})}


def test_whole_plausible_organ_has_no_finding() -> None:
    liver = labels({1: (slice(10, 40), slice(10, 45), slice(5, 30))})  # 1575 ml
    assert codes(liver, ["liver"]) == {}


def test_organ_cut_by_the_field_of_view_names_the_anatomical_side() -> None:
    cut = labels({1: (slice(10, 40), slice(10, 45), slice(20, 40))})
    (finding,) = check_result(cut, ["liver"], {}, {})
    assert finding.code == "organ-cut-by-field-of-view"
    assert finding.severity == "warning"
    assert finding.details["contact_cm2"] == {"upper end": pytest.approx(30 * 35 * 12 / 100)}
    left = labels({1: (slice(40, 60), slice(10, 45), slice(5, 30))})
    assert set(check_result(left, ["liver"], {}, {})[0].details["contact_cm2"]) == {"left side"}


def test_bone_at_the_border_is_only_information() -> None:
    assert codes(labels({2: (slice(10, 40), slice(10, 45), slice(20, 40))}), ["bone"]) == {
        "organ-cut-by-field-of-view": "info"
    }


def test_implausible_volume() -> None:
    small = labels({1: (slice(10, 20), slice(10, 20), slice(5, 15))})
    assert codes(small, ["liver"]) == {"volume-implausible": "warning"}


def small_grid() -> Grid:
    return Grid((36, 50, 34), np.diag([1.0, 1.0, 1.0, 1.0]))


def hippocampus(box: tuple[slice, slice, slice]) -> Segmentation:
    array = np.zeros(small_grid().shape, np.uint8)
    array[box] = 1
    return Segmentation(array, small_grid(), {1: "hippocampus_anterior"})


def test_outermost_voxels_that_a_network_leaves_out_hide_no_cut() -> None:
    """Fine ones; a slice of 5 mm is a border of its own."""
    for thickness, cut in ((1.0, True), (5.0, False)):
        array = np.zeros(small_grid().shape, np.uint8)
        array[10:18, 29:49, 10:16] = 1
        grid = Grid(array.shape, np.diag([1.0, thickness, 1.0, 1.0]))
        found = check_result(Segmentation(array, grid, {1: "hippocampus_anterior"}), ["hippocampus_anterior"], {}, {})
        assert [f.details["contact_cm2"] for f in found if f.code == "organ-cut-by-field-of-view"] == (
            [{"front": pytest.approx(0.48)}] if cut else []
        )


def test_small_structure_is_cut_with_little_contact() -> None:
    """1.7 ml with 48 mm² at the border is cut; 12 mm² of the same structure is a touch."""
    (finding,) = check_result(
        hippocampus((slice(10, 18), slice(30, 50), slice(10, 16))), ["hippocampus_anterior"], {}, {}
    )
    assert finding.details["contact_cm2"] == {"front": pytest.approx(0.48)}
    array = np.array(hippocampus((slice(10, 18), slice(29, 49), slice(10, 16))).labels)
    array[10:14, 49, 10:13] = 1
    assert (
        check_result(Segmentation(array, small_grid(), {1: "hippocampus_anterior"}), ["hippocampus_anterior"], {}, {})
        == []
    )


def test_volume_is_judged_by_the_range_of_the_model_where_it_has_one() -> None:
    found = hippocampus((slice(10, 18), slice(20, 40), slice(10, 16)))  # 0.96 ml
    ranges = {"hippocampus_anterior": (1.0, 3.0)}
    (finding,) = check_result(found, ["hippocampus_anterior"], {}, {}, ranges_ml=ranges)
    assert finding.code == "volume-implausible"
    assert "0.96 ml" in finding.message
    assert check_result(found, ["hippocampus_anterior"], {}, {}, ranges_ml={"hippocampus_anterior": (0.5, 3.0)}) == []


def test_hippocampus_back_to_front_is_an_error() -> None:
    turned = {"hippocampus_anterior": (0, -12, 0), "hippocampus_posterior": (0, 3, 0)}
    (finding,) = check_sides(turned)
    assert (finding.code, finding.severity) == ("orientation-implausible", "error")
    assert "back to front" in finding.message
    assert check_sides({"hippocampus_anterior": (0, 3, 0), "hippocampus_posterior": (0, -12, 0)}) == []


def test_liver_on_the_left_is_an_error_and_situs_solitus_is_not() -> None:
    (finding,) = check_sides({"liver": (-60, 0, 0), "spleen": (80, 0, 0)})
    assert (finding.code, finding.severity) == ("orientation-implausible", "error")
    assert check_sides({"liver": (60, 0, 0), "spleen": (-80, 0, 0), "lung_left": (-70, 0, 200)}) == []
    assert check_sides({"lung_left": (0, 0, -50), "kidney_left": (0, 0, 100)})[0].details["first"] == "lung_left"


def test_expected_dice_follows_the_calibration(package: ModelPackage) -> None:
    tally = {"liver": Tally(voxels=100, probability=90, inside=80, entropy=20)}
    raw = measure(tally, package)["liver"]
    assert raw["soft_dice"] == pytest.approx(2 * 80 / 190, abs=1e-4)
    assert raw["mean_entropy"] == pytest.approx(0.2)
    assert raw["expected_dice"] is None
    line = {"measure": "soft_dice", "structures": {"liver": {"intercept": 0.1, "slope": 0.5}}}
    calibrated = measure(tally, replace(package, reliability=line))["liver"]
    assert calibrated["expected_dice"] == pytest.approx(0.1 + 0.5 * raw["soft_dice"], abs=1e-3)


def test_a_structure_that_was_never_tested_says_so_and_has_no_expected_dice(package: ModelPackage) -> None:
    said = {"default": {"intercept": 0.1, "slope": 0.8}, "untested": {"liver_tumor": "learnt this from drawings"}}
    untested = replace(package, reliability=said)
    tally = Tally(voxels=100, probability=90, inside=80, entropy=20)
    found = measure({"liver": tally, "liver_tumor": tally}, untested)
    assert found["liver"]["expected_dice"] is not None
    assert found["liver_tumor"]["expected_dice"] is None
    (finding,) = check_tested(["liver", "liver_tumor"], untested)
    assert (finding.code, finding.severity) == ("structure-untested", "warning")
    assert finding.message.startswith("liver_tumor: model ")
    assert "learnt this from drawings" in finding.message
    assert check_tested(["liver"], untested) == []
    assert check_tested(["liver_tumor"], package) == []


def test_every_result_of_a_structure_that_was_never_tested_says_so(tmp_path: Path) -> None:
    from slice3d.inference import InferenceSettings, predict

    untested = write_package(
        tmp_path / "tiny", random_network(), reliability={"untested": {"spleen": "learnt this from drawings"}}
    )
    said = [
        f.code for f in predict(oblique_volume(), untested, settings=InferenceSettings(precision="float32")).findings
    ]
    assert said.count("structure-untested") == 1
    liver = predict(oblique_volume(), untested, structures=["liver"])
    assert "structure-untested" not in [f.code for f in liver.findings]


def test_calibration_recovers_a_line_and_never_slopes_down() -> None:
    line = calibrate([(x, 0.2 + 0.7 * x) for x in (0.5, 0.7, 0.9, 1.0)])
    assert (line["intercept"], line["slope"]) == (pytest.approx(0.2), pytest.approx(0.7))
    assert calibrate([(0.9, 0.5), (0.8, 0.6), (0.7, 0.9)])["slope"] == 0
    assert calibrate([])["cases"] == 0


def test_second_component_of_an_organ_goes_and_is_reported() -> None:
    two = np.array(labels({1: (slice(10, 40), slice(10, 40), slice(5, 25))}).labels)
    two[45:55, 10:20, 5:15] = 1
    two[44:56, 9:21, 15] = 2
    result = clean(replace(labels({}), labels=two), ["liver"])
    assert not (result.labels[45:55, 10:20, 5:15] == 1).any()
    assert (result.labels[10:40, 10:40, 5:25] == 1).all()
    assert [f.code for f in result.findings] == ["parts-dropped"]


def test_crumbs_take_the_label_around_them() -> None:
    array = np.zeros((60, 50, 40), np.uint8)
    array[5:55, 5:45, 5:35] = 2
    array[10:30, 10:30, 10:30] = 1
    array[45, 40, 30] = 1
    result = clean(replace(labels({}), labels=array), ["liver"])
    assert result.labels[45, 40, 30] == 2
    assert result.findings == ()


def test_lesions_keep_all_their_parts_and_bones_their_large_ones() -> None:
    array = np.zeros((60, 50, 40), np.uint8)
    for n in range(3):
        array[5 + 15 * n : 10 + 15 * n, 5:10, 5:10] = 3
    assert clean(replace(labels({}), labels=array), ["liver_tumor"]).labels.sum() == array.sum()
    array = np.where(array == 3, 2, 0).astype(np.uint8)
    assert clean(replace(labels({}), labels=array), ["bone"]).labels.sum() == array.sum()


def test_a_speck_beside_an_aorta_goes_and_a_second_length_of_it_stays() -> None:
    array = np.zeros((60, 50, 40), np.uint8)
    array[10:20, 10:20, :] = 1  # 4000 voxels
    array[40:46, 20:30, 30:40] = 1  # 600: the ascending part, where the image does not hold the arch
    array[30:35, 40:45, 5:9] = 1  # 100: contrast medium in the heart
    cleaned = clean(Segmentation(array, grid(), {1: "aorta"}), ["aorta"])
    assert np.count_nonzero(cleaned.labels) == 4600
    assert [f.code for f in cleaned.findings] == ["parts-dropped"]


def test_mr_given_to_a_ct_model_is_one_line(package: ModelPackage) -> None:
    with pytest.raises(InputError, match=r"image is MR, model 'tiny' was trained on CT; use a CT study") as caught:
        check_input([oblique_volume(modality="MR")], package)
    assert "\n" not in str(caught.value)
    found = check_input([oblique_volume(modality="MR")], package, allow=True)
    assert [f.code for f in found] == ["modality-not-trained-on"]


def test_a_model_for_crops_refuses_a_whole_head(package: ModelPackage) -> None:
    volume = oblique_volume(modality="CT")
    limited = replace(package, reliability={"largest_field_of_view_mm": max(volume.grid.size_mm) - 1})
    with pytest.raises(InputError, match="trained on crops") as caught:
        check_input([volume], limited)
    assert "\n" not in str(caught.value)
    assert [f.code for f in check_input([volume], limited, allow=True)] == ["field-of-view-not-trained-on"]
    wide = replace(package, reliability={"largest_field_of_view_mm": max(volume.grid.size_mm) + 1})
    assert check_input([volume], wide) == ()


def test_unknown_modality_is_taken_for_ct_only_with_hounsfield_values(package: ModelPackage) -> None:
    volume = oblique_volume(modality="")
    assert [f.code for f in check_input([volume], package)] == ["modality-assumed"]
    for data in (
        np.abs(volume.data),  # magnitudes: an MR
        (volume.data + 1024).astype(np.int16),  # not rescaled
        ((volume.data - volume.data.mean()) / volume.data.std()).astype(np.float32),  # normalised
        np.zeros(volume.grid.shape, np.int16),
        np.full(volume.grid.shape, -1000, np.int16),
    ):
        with pytest.raises(InputError, match="cannot be Hounsfield units"):
            check_input([replace(volume, data=data)], package)


@pytest.mark.real
def test_real_ct_passes_and_real_mr_does_not(data: Path) -> None:
    from slice3d.io import load

    for name in ("ct-torso/ts-example/ct_30slices.nii.gz", "ct-torso/labelled/s0002/ct.nii.gz", "dicom/ct-20slices"):
        assert not not_hounsfield(load(data / name).data), name
    assert not_hounsfield(load(data / "ct-torso/ts-example/mr_20slices.nii.gz").data)


def test_nan_wrong_channels_and_too_few_slices(package: ModelPackage) -> None:
    volume = oblique_volume()
    with pytest.raises(InputError, match=r"2 image\(s\) given, model 'tiny' takes 1"):
        check_input([volume, volume], package)
    flat = Volume(volume.data[:, :, :1], volume.grid.crop((0, 0, 0), (21, 33, 1)), modality="CT")
    with pytest.raises(InputError, match="at least 2 slices"):
        check_input([flat], package)
    broken = volume.data.astype(np.float32)
    broken[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="NaN"):
        check_input([replace(volume, data=broken)], package)


@pytest.mark.parametrize(("axis", "words"), [(0, "mirrored"), (1, "back to front"), (2, "upside down")])
def test_a_head_the_wrong_way_round_is_an_error(axis: int, words: str) -> None:
    centres = {
        "cerebral_white_matter_left": (-30.0, 0.0, 20.0), "cerebral_white_matter_right": (30.0, 0.0, 20.0),
        "thalamus_left": (-10.0, -5.0, 5.0), "thalamus_right": (10.0, -5.0, 5.0), "cerebellum_left": (-20.0, -50.0, -35.0),
    }  # fmt: skip
    assert check_sides(centres) == []
    turned = {name: tuple(-c if n == axis else c for n, c in enumerate(at)) for name, at in centres.items()}
    (finding,) = check_sides(turned)  # type: ignore[arg-type]
    assert finding.code == "orientation-implausible"
    assert words in finding.message


@pytest.fixture(scope="module")
def vessel() -> dict[str, np.ndarray]:
    """A tube along k of 18 mm, an artery of 7 mm that leaves it, a kidney where that ends, and what may become of the tube."""
    i, j, k = (n * s for n, s in zip(np.indices((50, 50, 40)), SPACING, strict=True))
    axis = np.hypot(i - 30, j - 25)
    return {
        "tube": axis < 9,
        "branch": (np.hypot(j - 25, k - 50) < 3.5) & (i > 30) & (i < 60),
        "kidney": np.linalg.norm([i - 66, j - 25, k - 50], axis=0) < 8,
        "child": axis < 3.5,
        "narrowed": axis < np.where(np.abs(k - 50) < 8, 3.5, 9),
        "tapering": axis < np.where(k < 40, 9, 4),
        "far": np.abs(i - 30) > 14,
    }


SPACING = (1.5, 1.2, 2.5)


def aorta(mask: np.ndarray, kidney: np.ndarray | None = None) -> Segmentation:
    array = np.where(mask, 1, 2).astype(np.uint8)
    if kidney is not None:
        array[kidney & ~mask] = 3
    return Segmentation(
        array, Grid(mask.shape, np.diag([-1.5, 1.2, 2.5, 1.0])), {1: "aorta", 2: "body", 3: "kidney_left"}
    )


def test_arteries_that_leave_an_aorta_become_body_and_it_is_said(vessel: dict[str, np.ndarray]) -> None:
    made = aorta(vessel["tube"] | vessel["branch"], vessel["kidney"])
    result = clean(made, ["aorta", "kidney_left"])
    (finding,) = result.findings
    assert finding.code == "thin-parts-dropped"
    assert finding.severity == "info"
    gone = (made.labels == 1) & (result.labels != 1)
    assert finding.details["dropped_ml"] == pytest.approx(np.count_nonzero(gone) * 0.0045, abs=0.01)
    assert (result.labels[vessel["tube"]] == 1).mean() > 0.995, "to both ends of the image"
    assert (result.labels[vessel["branch"] & vessel["far"]] != 1).all()
    assert (result.labels[gone] == 2).all(), "no kidney grows by an artery"
    again = clean(result, ["aorta", "kidney_left"])
    assert np.array_equal(again.labels, result.labels)


def test_a_blob_on_the_end_of_a_branch_goes_with_it(vessel: dict[str, np.ndarray]) -> None:
    result = clean(aorta(vessel["tube"] | vessel["branch"] | vessel["kidney"]), ["aorta"])
    assert ndimage.label(result.labels == 1, structure=np.ones((3, 3, 3)))[1] == 1


@pytest.mark.parametrize("shape", ["child", "narrowed", "tapering"])
def test_a_thin_aorta_stays_whole(vessel: dict[str, np.ndarray], shape: str) -> None:
    made = aorta(vessel[shape])
    result = clean(made, ["aorta"])
    assert np.array_equal(result.labels, made.labels)
    assert not result.findings


@pytest.mark.parametrize("spacing", [(3.0, 3.0, 3.0), (4.5, 4.5, 4.5), (0.8, 0.8, 10.0), (1.0, 5.0, 1.0)])
@pytest.mark.parametrize("diameter", [11.0, 14.0, 24.0])
def test_a_whole_aorta_is_not_gnawed_at(spacing: tuple[float, float, float], diameter: float) -> None:
    shape = tuple(int(n / s) for n, s in zip((60, 60, 120), spacing, strict=True))
    i, j, _ = (n * s for n, s in zip(np.indices(shape), spacing, strict=True))
    for shift in (0.0, 0.37, 0.71):
        tube = np.hypot(i - 30 - shift, j - 30 - 1.3 * shift) < diameter / 2
        array = np.where(tube, 1, 2).astype(np.uint8)
        made = Segmentation(array, Grid(shape, np.diag([*spacing, 1.0])), {1: "aorta", 2: "body"})  # type: ignore[arg-type]
        kept = np.count_nonzero(clean(made, ["aorta"]).labels == 1)
        assert kept > 0.97 * np.count_nonzero(tube)


def test_a_flattened_aorta_keeps_its_sides() -> None:
    shape = (50, 40, 130)
    i, j, _ = (n * 0.8 for n in np.indices(shape))
    flat = ((i - 20) / 14) ** 2 + ((j - 16) / 7) ** 2 < 1
    made = Segmentation(
        np.where(flat, 1, 2).astype(np.uint8), Grid(shape, np.diag([0.8, 0.8, 0.8, 1])), {1: "aorta", 2: "body"}
    )
    assert np.array_equal(clean(made, ["aorta"]).labels, made.labels)
