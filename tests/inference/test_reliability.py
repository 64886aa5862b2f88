"""What a result says about itself, and what an input is refused for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slice3d.errors import InputError
from slice3d.grid import Grid
from slice3d.inference.checks import check_input, not_hounsfield, unlike_hounsfield
from slice3d.inference.orientation import check_sides
from slice3d.inference.reduce import Tally
from slice3d.inference.reliability import calibrate, check_result, check_tested, measure
from slice3d.models import ModelPackage
from slice3d.volume import Segmentation, Volume
from tests.inference.builders import coarse_labels as labels
from tests.inference.builders import oblique_volume, random_network, write_package


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return write_package(tmp_path_factory.mktemp("models") / "tiny", random_network())


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


def test_a_calibration_is_not_drawn_on_beyond_its_cases_and_few_cases_silence_no_doubt(package: ModelPackage) -> None:
    known = {
        "measure": "soft_dice", "default": {"intercept": 0.5, "slope": 0.5, "cases": 6.0},
        "seen": {"liver": [0.6, 0.9]},
    }  # fmt: skip
    few = replace(package, reliability=known)

    def said(own: float) -> tuple[float | None, list[str]]:
        tally = Tally(voxels=100, probability=100, inside=100 * own)
        measured = measure({"liver": tally}, few)
        found = check_result(labels({1: (slice(10, 40), slice(10, 45), slice(5, 30))}), ["liver"], measured, {})
        return measured["liver"]["expected_dice"], [f.message for f in found]

    low, (doubt,) = said(0.5)
    assert low is None
    assert "less sure (self-agreement 0.50) than on any case it was tested on (0.60 or more)" in doubt
    middle, (doubt,) = said(0.7)
    assert middle == 0.85
    assert "unsure (self-agreement 0.70, calibrated on 6 outlines alone)" in doubt
    assert said(0.98) == (0.95, [])


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


def tissue(shape: tuple[int, int, int] = (48, 60, 52)) -> np.ndarray:
    """Air, fat, muscle and bone in shells, with noise: float32 HU."""
    rng = np.random.default_rng(5)
    index = np.indices(shape).reshape(3, -1).T
    far = np.linalg.norm((index - np.array(shape) / 2) / (np.array(shape) / 2), axis=1).reshape(shape)
    hu = np.select([far < 0.35, far < 0.75, far < 0.95], [700.0, 50.0, -100.0], -1000.0)
    return np.clip(hu + rng.normal(0, 15, shape), -1024, 3071).astype(np.float32)


CHANGED = {
    "x0.1": lambda hu: 0.1 * hu, "x0.5": lambda hu: 0.5 * hu, "x2": lambda hu: 2 * hu, "+300": lambda hu: hu + 300,
    "negated": lambda hu: -hu, "windowed": lambda hu: np.clip(hu, -160, 240), "cut above": lambda hu: np.minimum(hu, 300),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGED)
def test_scaled_shifted_negated_and_windowed_values_are_a_warning(package: ModelPackage, change: str) -> None:
    hu = tissue()
    grid = Grid(hu.shape, np.diag([2.0, 3.0, 4.0, 1.0]))
    assert check_input([Volume(hu, grid, modality="CT")], package) == ()
    changed = CHANGED[change](hu).astype(np.float32)
    (finding,) = check_input([Volume(changed, grid, modality="CT")], package, allow=True)
    assert (finding.code, finding.severity) == ("intensity-range-not-trained-on", "warning")
    assert "\n" not in finding.message
    assert not not_hounsfield(hu)


def test_padding_below_air_and_crops_without_air_are_no_warning() -> None:
    hu = tissue()
    padded = hu.copy()
    padded[:9] = -3024
    assert unlike_hounsfield(padded) == ""
    assert unlike_hounsfield(hu[9:-9, 12:-12, 10:-10]) == ""


@pytest.mark.real
def test_changed_values_of_a_real_ct_are_noticed(data: Path) -> None:
    from slice3d.io import load

    hu = load(data / "ct-torso/labelled/s0009/ct.nii.gz").data.astype(np.float32)
    assert unlike_hounsfield(hu) == ""
    for name, change in CHANGED.items():
        changed = change(hu)
        assert not_hounsfield(changed) or unlike_hounsfield(changed), name


@pytest.mark.real
def test_real_ct_passes_and_real_mr_does_not(data: Path) -> None:
    from slice3d.io import load

    for name in ("ct-torso/ts-example/ct_30slices.nii.gz", "ct-torso/labelled/s0002/ct.nii.gz", "dicom/ct-20slices"):
        hu = load(data / name).data
        assert not not_hounsfield(hu), name
        assert not unlike_hounsfield(hu), name
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
