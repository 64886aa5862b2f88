from __future__ import annotations

import numpy as np
import pytest

from slice3d.errors import GeometryError, InputError
from slice3d.grid import Grid
from slice3d.progress import silent
from slice3d.samples import Torso, TorsoPhantom, torso
from slice3d.samples.anatomy import HU, NAMES
from slice3d.samples.painting import paint

# Holds liver, spleen and kidneys; odd spacings, so that no organ lies well on the voxels.
_UPPER_ABDOMEN = Grid.from_spacing((118, 70, 71), (3.3, 2.9, 2.7), (-190.0, -270.0, -141.0))


@pytest.fixture(scope="module")
def clean() -> Torso:
    """The reference patient without noise on a coarse, anisotropic grid."""
    return torso(spacing_mm=(3.1, 3.7, 4.3), noise_hu=0)


def test_sides_are_the_patients(clean: Torso) -> None:
    grid, truth = clean.volume.grid, clean.segmentation
    assert grid.orientation == "LPS"

    def centre(name: str) -> np.ndarray:
        return grid.to_world(np.argwhere(truth.mask(name)).mean(axis=0)) - (6.5, -171.0, -391.25)

    assert centre("liver")[0] > 40
    assert centre("kidney_right")[0] > 40
    assert centre("lung_right")[0] > 40
    assert centre("spleen")[0] < -40
    assert centre("kidney_left")[0] < -40
    assert centre("aorta")[0] < 0
    assert centre("bone")[1] < centre("aorta")[1] < centre("liver")[1]  # spine behind
    assert centre("lung_left")[2] > centre("liver")[2] > centre("kidney_left")[2]


def test_reference_organs_do_not_touch_each_other() -> None:
    phantom = TorsoPhantom()
    assert paint(phantom.parts(), {}, phantom.grid((4.1, 4.1, 4.1)), silent).lost_mm3 == {}


def test_label_map_and_exact_volumes_agree(clean: Torso) -> None:
    # A label map rounds borders to voxels; flat faces (liver dome) dominate the difference.
    for name in ("liver", "spleen", "kidney_left", "kidney_right", "lung_left", "lung_right", "body", "liver_tumor"):
        assert clean.segmentation.volume_ml(name) == pytest.approx(clean.volumes_ml[name], rel=0.04), name
    assert set(clean.volumes_ml) == set(NAMES.values())
    assert clean.volumes_ml["liver"] > clean.volumes_ml["liver_tumor"] == pytest.approx(24.43, abs=0.01)


def test_partial_volume_carries_the_exact_volume() -> None:
    # Only the liver differs from water: the sum of HU is its volume, better than any label map.
    phantom = TorsoPhantom(tumor_mm=0, hu=dict.fromkeys(HU, 0.0) | {"liver": 100.0})
    made = torso(phantom, grid=_UPPER_ABDOMEN, noise_hu=0)
    ml = made.volume.data.sum() / 100 * made.volume.grid.voxel_volume_mm3 / 1000
    assert ml == pytest.approx(made.volumes_ml["liver"], rel=2e-3)
    borders = (made.volume.data > 0) & (made.volume.data < 100)
    assert 0.05 < borders.mean() / (made.volume.data > 0).mean() < 0.6


def test_tissues_have_their_hu_and_the_noise_asked_for() -> None:
    made = torso(spacing_mm=(4.0, 4.0, 5.0), noise_hu=15)
    from scipy.ndimage import binary_erosion

    for name, tissue in (("liver", "liver"), ("spleen", "spleen"), ("lung_left", "lung"), ("liver_tumor", "tumor")):
        core = binary_erosion(made.segmentation.labels == {v: k for k, v in NAMES.items()}[name], iterations=1)
        values = made.volume.data[core]
        assert values.mean() == pytest.approx(HU[tissue], abs=3), name
        assert values.std() == pytest.approx(15, rel=0.2), name


def test_seed_changes_the_noise_and_nothing_else() -> None:
    small = Grid.from_spacing((40, 30, 9), (5, 6, 7), (-20.0, -240.0, -80.0))
    made, again, other = torso(grid=small), torso(grid=small), torso(grid=small, seed=1)
    assert np.array_equal(made.volume.data, again.volume.data)
    assert not np.array_equal(made.volume.data, other.volume.data)
    assert np.array_equal(made.segmentation.labels, other.segmentation.labels)


@pytest.mark.parametrize("seed", [1, 2])
def test_random_patients_differ_and_keep_exact_truth(seed: int) -> None:
    phantom = TorsoPhantom.random(seed)
    assert phantom == TorsoPhantom.random(seed)
    assert phantom != TorsoPhantom.random(seed + 100)
    made = torso(phantom, spacing_mm=(4.5, 4.5, 4.5), seed=seed)
    for name in ("liver", "spleen", "kidney_left", "kidney_right", "lung_left", "lung_right"):
        assert made.segmentation.volume_ml(name) == pytest.approx(made.volumes_ml[name], rel=0.08), name


def test_overlap_is_taken_off_the_covered_organ() -> None:
    # The spleen is pushed into the left kidney, which is painted earlier and loses what it covers.
    phantom = TorsoPhantom(organ_shift_mm={"spleen": (26.0, -20.0, -30.0)})
    made = torso(phantom, grid=_UPPER_ABDOMEN, noise_hu=0)
    assert made.volumes_ml["kidney_left"] < 140
    assert made.volumes_ml["spleen"] == pytest.approx(175.93, rel=1e-3)
    assert made.segmentation.volume_ml("kidney_left") == pytest.approx(made.volumes_ml["kidney_left"], rel=0.02)


def test_any_axis_aligned_grid_will_do() -> None:
    grid = Grid.from_spacing((40, 30, 25), (5, 6, 7), (-20.0, -240.0, -160.0))  # RAS, cuts the trunk
    made = torso(grid=grid, noise_hu=0)
    assert made.volume.grid == grid
    assert made.segmentation.volume_ml("liver") == pytest.approx(made.volumes_ml["liver"], rel=0.05)
    assert 100 < made.volumes_ml["liver"] < 1833


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match=r"no organ 'livre'.*liver"):
        TorsoPhantom(organ_scale={"livre": 1.1})
    with pytest.raises(InputError, match="no tissue 'gold'"):
        TorsoPhantom(hu={"gold": 3000.0})  # type: ignore[dict-item]
    with pytest.raises(InputError, match="positive"):
        TorsoPhantom(body_scale=(1.0, 0.0, 1.0))
    tilted = np.eye(4)
    tilted[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    with pytest.raises(GeometryError, match="along the world axes"):
        torso(grid=Grid((5, 6, 7), tilted))
