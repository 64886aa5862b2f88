from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from slice3d.errors import InputError
from slice3d.findings import Finding
from slice3d.grid import Grid
from slice3d.mesh import Mesh
from slice3d.viewer import preview
from slice3d.viewer.colors import structure_color
from slice3d.viewer.planes import PLANES, best_slice, hanging, voxels_by_slice, window
from slice3d.viewer.surfaces import draw_surfaces, opacities
from slice3d.viewer.words import in_font, plain, title_of
from slice3d.volume import Segmentation, Volume


def _box(low: tuple[float, float, float], high: tuple[float, float, float], name: str) -> Mesh:
    corner = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=float)
    faces = [(0, 1, 3), (0, 3, 2), (4, 6, 7), (4, 7, 5), (0, 4, 5), (0, 5, 1),
             (2, 3, 7), (2, 7, 6), (0, 2, 6), (0, 6, 4), (1, 5, 7), (1, 7, 3)]  # fmt: skip
    points = np.asarray(low) + corner * (np.asarray(high) - low)
    return Mesh(points, np.array(faces), name)


def _turned(order: tuple[int, int, int], signs: tuple[int, int, int]) -> Grid:
    """A grid whose axes run along world axes `order` with `signs`; unequal shape and spacing."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign, spacing) in enumerate(zip(order, signs, (0.7, 1.3, 4.0), strict=True)):
        affine[world, axis] = sign * spacing
    return Grid((9, 11, 5), affine)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (1, -1, -1), (-1, 1, -1)])
def test_every_orientation_hangs_alike(order: tuple[int, int, int], signs: tuple[int, int, int]) -> None:
    grid = _turned(order, signs)
    world = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
    right, front, up = (world[..., n] for n in range(3))
    expected = {"axial": ("R", "L", "A", "P"), "coronal": ("R", "L", "S", "I"), "sagittal": ("A", "P", "S", "I")}
    for plane in PLANES:
        how = hanging(grid, plane)
        assert (how.left, how.right, how.top, how.bottom) == expected[plane]
        across = how.picture(front if plane == "sagittal" else right, 2)
        down = how.picture(front if plane == "axial" else up, 2)
        assert (np.diff(across, axis=1) < 0).all()  # towards the patient's left, or back, from left to right
        assert (np.diff(down, axis=0) < 0).all()
        assert np.allclose(np.abs(np.diff(across, axis=1)), how.column_mm)
        assert np.allclose(np.abs(np.diff(down, axis=0)), how.row_mm)


def test_oblique_grids_are_shown_along_their_own_axes() -> None:
    angle = np.deg2rad(20)
    affine = np.eye(4)
    affine[:2, :2] = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag([-1, -2])
    how = hanging(Grid((4, 5, 6), affine), "axial")
    assert (how.left, how.right, how.top, how.bottom) == ("R", "L", "A", "P")
    assert (how.column_mm, how.row_mm) == pytest.approx((1, 2))


def _study() -> tuple[Volume, Segmentation]:
    grid = Grid((40, 30, 12), np.array([[-1.5, 0, 0, 30], [0, -2, 0, 20], [0, 0, 5, -10], [0, 0, 0, 1.0]]))
    labels = np.zeros(grid.shape, dtype=np.uint8)
    labels[5:15, 8:20, 3:7] = 1
    labels[8:11, 10:14, 4:6] = 4
    labels[25:35, 5:12, 6:11] = 7
    rng = np.random.default_rng(0)
    data = (rng.normal(0, 10, grid.shape) + 100 * (labels > 0)).astype(np.int16)
    names = {1: "liver", 4: "liver_tumor", 7: "thing_$x^2$"}
    return Volume(data, grid, modality="CT"), Segmentation(labels, grid, names, groups={"liver": (1, 4)})


def test_slices_show_the_most() -> None:
    _, segmentation = _study()
    counts = voxels_by_slice(segmentation)
    for axis in range(3):
        for name in segmentation.structures:
            other = tuple(n for n in range(3) if n != axis)
            assert np.array_equal(counts[axis][name], segmentation.mask(name).sum(axis=other)), (axis, name)
    assert 3 <= best_slice(counts[2], ["liver"], 0) < 7
    assert best_slice(counts[2], ["liver", "thing_$x^2$"], 0) == 6  # the only slices that hold both: 6
    assert best_slice(counts[2], [], 5) == 5


def test_preview_draws_outlines_in_colour_and_survives_hostile_words(tmp_path: Path) -> None:
    volume, segmentation = _study()
    findings = (
        Finding("a", "A \\frac{1}{0} $formula$ \x1b[31m with \u202ereversed\u202c and 中文 and <b>markup</b>"),
        *(Finding(f"f{n}", "word " * 200, "info") for n in range(20)),
    )
    meshes = {"liver": _box((10, 0, 5), (25, 15, 20), "other")}
    path = tmp_path / "preview.png"
    image = preview(volume, segmentation, meshes, path, findings=findings)
    assert image.shape == (1000, 1600, 3)
    assert image.dtype == np.uint8
    from PIL import Image

    with Image.open(path) as stored:
        assert np.array_equal(np.asarray(stored), image)
        assert not getattr(stored, "text", {})
    panel = image[60:480, 20:650].astype(int)
    red, green, blue = structure_color("liver")
    near = np.abs(panel - (red, green, blue)).sum(axis=2) < 60
    assert near.sum() > 150, "the liver's outline is missing from the axial slice"
    plain_image = preview(volume, Segmentation(np.zeros(volume.grid.shape, np.uint8), volume.grid, {1: "liver"}))
    panel = plain_image[60:480, 20:650].astype(int)
    assert (np.abs(panel - (red, green, blue)).sum(axis=2) < 60).sum() < 20


def test_preview_is_the_same_every_time() -> None:
    volume, segmentation = _study()
    assert np.array_equal(preview(volume, segmentation), preview(volume, segmentation))


def test_preview_of_other_modalities_and_odd_values() -> None:
    volume, segmentation = _study()
    data = volume.data.astype(np.float32) * 1e4
    data[0, 0, 0] = np.nan
    mr = Volume(data, volume.grid, modality="MR")
    low, high = window(mr)
    assert -3e5 < low < 0
    assert 5e5 < high < 2e6
    assert preview(mr, segmentation).std() > 5
    flat = Volume(np.zeros(volume.grid.shape, np.int16), volume.grid)
    assert preview(flat, segmentation).shape[2] == 3


def test_window_suits_the_structures() -> None:
    volume, _ = _study()
    assert window(volume, ["liver", "bone"]) == (-150, 250)
    assert window(volume, ["lung_left", "lung_right"]) == (-1350, 150)
    assert window(volume, ["bone"]) == (-500, 1300)


def test_grids_must_match_and_paths_must_be_writable(tmp_path: Path) -> None:
    volume, segmentation = _study()
    other = Segmentation(segmentation.labels, Grid.from_spacing(volume.grid.shape, (1, 1, 1)), {1: "liver"})
    with pytest.raises(InputError, match="different grids"):
        preview(volume, other)
    with pytest.raises(InputError, match="cannot write"):
        preview(volume, segmentation, (), tmp_path / "nowhere" / "preview.png")


def test_surfaces_stand_where_the_patient_does() -> None:
    # Patient's right on the picture's left, head up, front covers back.
    right = Mesh(*_parts(_box((40, -5, -5), (50, 5, 5), "a")), "a", (255, 0, 0))
    left_high = Mesh(*_parts(_box((-50, -5, 30), (-40, 5, 40), "b")), "b", (0, 255, 0))
    hidden = Mesh(*_parts(_box((42, -60, -3), (48, -50, 3), "c")), "c", (0, 0, 255))
    picture = draw_surfaces([right, left_high, hidden], size=(300, 200), towards_viewer=(0, 1, 0))
    assert picture is not None
    image = picture.pixels.astype(int)
    reds, greens = (np.argwhere(image[..., n] > image.sum(axis=2) * 0.7) for n in (0, 1))
    assert reds[:, 1].max() < greens[:, 1].min()
    assert greens[:, 0].max() < reds[:, 0].min()
    assert not (image[..., 2] > image.sum(axis=2) * 0.7).any()
    width_mm = (np.ptp(reds[:, 1]) + 1) * picture.pixel_mm
    assert width_mm == pytest.approx(10, abs=2.5 * picture.pixel_mm)
    assert draw_surfaces([], size=(10, 10)) is None


def _parts(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(mesh.vertices), np.asarray(mesh.faces)


def test_what_hides_others_is_translucent() -> None:
    inner = _box((-5, -5, -5), (5, 5, 5), "liver_tumor")
    outer = _box((-20, -20, -20), (20, 20, 20), "liver")
    both = draw_surfaces([outer, inner], size=(100, 100), towards_viewer=(0, 1, 0))
    alone = draw_surfaces([outer], size=(100, 100), towards_viewer=(0, 1, 0))
    assert both is not None
    assert alone is not None
    middle = both.pixels[50, 50].astype(int)
    assert middle[1] > both.pixels[20, 20, 1], "the tumour's green shows through the liver"
    assert opacities(["liver"]) == {"liver": 1.0}
    assert opacities(["bone", "liver", "body"])["body"] < opacities(["bone", "liver", "body"])["bone"] < 1


def test_words_are_made_harmless() -> None:
    assert plain("a\x00b\n\tc\u202e d") == "ab c d"
    assert len(plain("x" * 5000)) == 600
    assert title_of("kidney_left") == "Kidney, left"
    assert title_of("") == "Unnamed"
    assert in_font("中 µ") == "? µ"
