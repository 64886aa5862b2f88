from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.util
import json
import re
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest

from slice3d.errors import InputError, MissingExtraError
from slice3d.findings import Finding
from slice3d.grid import Grid
from slice3d.mesh import Mesh
from slice3d.viewer import ReportSettings, report
from slice3d.viewer.page_data import _factors, image_bytes, label_bytes, shrink, surface_bytes, thin_out
from slice3d.viewer.sections import banner, body, certainty
from slice3d.volume import Segmentation, Volume, freeze
from tests.viewer.study import HOSTILE, study

needs_niivue = pytest.mark.skipif(
    importlib.util.find_spec("ipyniivue") is None, reason="ipyniivue (extra viewer) is not installed"
)


def _data(html: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    assert found
    return json.loads(found[1])


@pytest.fixture(scope="module")
def page() -> str:
    volume, segmentation, meshes = study()
    metrics = {"structures": {"liver": {
        "volume_ml": 7.2, "components": 1, "expected_dice": 0.95,
        "reference": {"dice": 0.912, "hd95_mm": 3.2, "assd_mm": None},
    }}}  # fmt: skip
    return report(volume, segmentation, meshes, metrics=metrics, manifest={"note": HOSTILE, "slice3d": "1"})


@needs_niivue
def test_page_is_one_file_that_may_fetch_and_run_nothing_else(page: str) -> None:
    scripts = re.findall(r'<script type="module">(.*?)</script>', page, re.S)
    styles = re.findall(r"<style>(.*?)</style>", page[: page.index("<body>")], re.S)
    assert len(scripts) == len(styles) == 1
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    rules = policy[1].replace("&#x27;", "'")
    for text in (*scripts, *styles):
        assert "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in rules
    assert "default-src 'none'" in rules
    assert "unsafe" not in rules
    assert "http" not in rules
    head = page[: page.index("<script type=")]
    assert not re.search(r'(src|href)="(?!data:|#)', head)


@needs_niivue
def test_words_from_files_stay_words(page: str) -> None:
    body = page[page.index("<main>") : page.index('<script type="application/json"')]
    assert "<img src=x" not in body
    assert "<script>" not in body
    assert "\u202e" not in page
    assert "&lt;script&gt;" in body
    titles = [s["title"] for s in _data(page)["structures"]]
    assert len(titles) == 4  # the label without a surface, too
    assert page[: page.index('<script type="module">')].count("</title>") == 1
    assert titles[0] in page[page.index("<title>") : page.index("</title>")]


@needs_niivue
def test_numbers_and_certainty_are_in_the_page(page: str) -> None:
    assert "0.912" in page
    assert "7.20" in page
    assert "Dice of about 0.95" in page
    assert "roughly 5 % of the outlined volume" in page
    assert '<a href="#findings-title">1 caution: read them before use</a>' in page
    assert "Not a medical device" in page
    assert "Redistributions in binary form must reproduce" in page  # NiiVue's licence goes with its code
    assert "&quot;slice3d&quot;: &quot;1&quot;" in page
    assert page.index("Caution:") < page.index("Note:")


def test_findings_are_grouped_and_explained() -> None:
    _, segmentation, _ = study()
    text = "{} reaches the border of the field of view ({}) and was closed there"
    found = [
        Finding("closed-at-field-of-view", text.format(name, ", ".join(sides)), details={"sides": sides})
        for name, sides in (("bone", ["lower end", "back"]), ("aorta", ["upper end"]))
    ]
    volume = Volume(np.zeros(segmentation.grid.shape, np.int16), segmentation.grid, modality="CT")
    html = body(volume, segmentation, [], {}, {}, [*found, Finding("odd", "Odd.", "error")])
    assert "Bone reaches the border of the field of view (lower end, back)" in html
    assert "Aorta reaches the border of the field of view (upper end)" in html
    assert html.count("<code>closed-at-field-of-view</code>") == html.count("where the scan ends") == 1
    assert "<strong>2 cautions:</strong><ul>" in html
    assert banner([]) == banner([Finding("a", "A.", "info")]) == ""
    assert "1 problem and 2 cautions" in banner([*found, Finding("odd", "Odd.", "error")])


def test_a_full_size_study_fits_by_the_limits_alone() -> None:
    """512×512×300 is never shown at full size, and whatever it holds, the page stays under 25 MB or is refused."""
    limits = ReportSettings()
    assert limits.most_bytes < 25_000_000
    zeros = np.broadcast_to(freeze(np.zeros(1, np.int16)), (512, 512, 300))
    grid = Grid.from_spacing(zeros.shape, (0.8, 0.8, 1.0))
    factors = _factors(grid, limits.most_voxels)
    assert np.prod(np.ceil(np.divide(grid.shape, factors))) <= limits.most_voxels
    rng = np.random.default_rng(4)
    noise = freeze(rng.normal(40, 12, (128, 128, 75)).astype(np.int16))
    packed = len(image_bytes(Volume(noise, Grid.from_spacing(noise.shape, (1, 1, 1)), modality="CT"), (-150, 250)))
    # what the image takes at most in the page, in base64, leaves room for the viewer and the surfaces
    assert packed / noise.size * limits.most_voxels * 4 / 3 < 15_000_000


@needs_niivue
def test_same_input_same_page() -> None:
    volume, segmentation, meshes = study()
    assert report(volume, segmentation, meshes) == report(volume, segmentation, meshes)


@needs_niivue
def test_page_carries_image_labels_and_surfaces_in_place(page: str) -> None:
    volume, segmentation, meshes = study()
    data = _data(page)
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(data["image"])))
    labels = nibabel.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(data["labels"])))
    assert np.array_equal(np.asarray(image.dataobj), volume.data)
    assert np.allclose(image.affine, volume.grid.affine)
    by_name = {s["name"]: s for s in data["structures"]}
    stored = np.asarray(labels.dataobj)
    assert np.array_equal(np.isin(stored, by_name["liver"]["labels"]), segmentation.labels == 1)
    assert np.array_equal(np.isin(stored, by_name["liver_tumor"]["labels"]), segmentation.labels == 4)
    raw = gzip.decompress(base64.b64decode(by_name["spleen"]["surface"]))
    magic, kind, faces, vertices, skip = struct.unpack("<HHIII", raw[:16])
    assert (magic, kind, faces, vertices, skip) == (23117, 3, 12, 8, 0)
    assert np.allclose(np.frombuffer(raw[16 + 144 :], "<f4").reshape(-1, 3), meshes["spleen"].vertices, atol=0.006)
    assert segmentation.mask("liver")[tuple(np.rint(volume.grid.to_index(data["start"])).astype(int))]


def test_a_smaller_copy_keeps_its_place_and_says_so() -> None:
    rng = np.random.default_rng(1)
    affine = np.array([[-0.6, 0.1, 0, 31], [0.1, 0.6, 0, -12], [0, 0, 2.0, 5], [0, 0, 0, 1]])
    grid = Grid((61, 50, 20), affine)
    data = np.zeros(grid.shape, np.float32)
    data[20:33, 11:29, 6:13] = 50 + rng.random((13, 18, 7))
    labels = (data > 0).astype(np.uint8)
    small, fewer, note = shrink(Volume(data, grid), Segmentation(labels, grid, {1: "liver"}), most_voxels=9000)
    assert np.prod(small.grid.shape) <= 9000
    assert small.grid.spacing_mm[0] == pytest.approx(small.grid.spacing_mm[1])
    assert "smaller copy" in note

    def centre(values: np.ndarray, where: Grid) -> np.ndarray:
        index = np.indices(where.shape).reshape(3, -1).T
        return np.average(where.to_world(index), axis=0, weights=values.reshape(-1))

    assert np.linalg.norm(centre(small.data, small.grid) - centre(data, grid)) < 0.05
    assert np.linalg.norm(centre(fewer.labels, fewer.grid) - centre(labels, grid)) < 0.7
    same, _, nothing = shrink(Volume(data, grid), Segmentation(labels, grid, {1: "liver"}), most_voxels=10**6)
    assert same.data is not None
    assert nothing == ""


def test_any_modality_is_stored_within_one_step() -> None:
    rng = np.random.default_rng(2)
    data = rng.gamma(2, 3e4, (20, 21, 22)).astype(np.float32)
    data[0, 0, 0] = np.nan
    packed = image_bytes(Volume(data, Grid.from_spacing((20, 21, 22), (1, 1, 1)), modality="MR"), (0.0, 2e5))
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(packed))
    error = np.abs(np.asarray(image.dataobj) - data)[np.isfinite(data) & (data < 2e5)]
    assert error.max() < 2e5 / 1000


def test_labels_are_renumbered() -> None:
    labels = np.zeros((4, 5, 6), np.uint16)
    labels[1, 2, 3], labels[2, 2, 2], labels[3, 3, 3] = 3000, 7, 9
    grid = Grid.from_spacing((4, 5, 6), (1, 2, 3))
    packed = label_bytes(Segmentation(labels, grid, {3000: "a", 7: "b", 9: "c"}), [7, 3000])
    stored = np.asarray(nibabel.Nifti1Image.from_bytes(gzip.decompress(packed)).dataobj)
    assert (stored[2, 2, 2], stored[1, 2, 3], stored[3, 3, 3]) == (1, 2, 0)


def test_thinned_surfaces_keep_their_volume() -> None:
    from skimage.measure import marching_cubes

    x, y, z = np.mgrid[-1:1:40j, -1:1:40j, -1:1:40j]
    vertices, faces, _, _ = marching_cubes(1 - (x**2 + y**2 + z**2) * 1.4, 0.0)
    ball = Mesh(vertices, faces[:, ::-1] if Mesh(vertices, faces).volume_mm3 < 0 else faces, "ball")
    (thin,), note = thin_out([ball], most_triangles=len(faces) // 5)
    assert len(thin.faces) <= len(faces) // 5 + 2
    assert thin.volume_mm3 == pytest.approx(ball.volume_mm3, rel=0.01)
    assert f"{len(faces):,}" in note
    assert len(surface_bytes(thin)) < len(surface_bytes(ball)) / 3


@needs_niivue
def test_page_is_made_smaller_until_it_fits() -> None:
    rng = np.random.default_rng(3)
    grid = Grid.from_spacing((128, 128, 64), (0.8, 0.8, 2.5))
    volume = Volume(rng.integers(-1000, 2000, grid.shape).astype(np.int16), grid, modality="CT")
    labels = np.zeros(grid.shape, np.uint8)
    labels[40:80, 40:80, 20:40] = 1
    segmentation = Segmentation(labels, grid, {1: "liver"})
    limit = len(report(*study()).encode()) + 700_000
    html = report(volume, segmentation, settings=ReportSettings(most_bytes=limit))
    assert len(html.encode()) <= limit
    assert "smaller copy" in html
    with pytest.raises(InputError, match="the page takes"):
        report(volume, segmentation, settings=ReportSettings(most_bytes=100_000))


def test_missing_extra_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "ipyniivue" else real(name, *a))
    with pytest.raises(MissingExtraError, match=r"pip install 'slice3d\[viewer\]'"):
        report(*study())


@needs_niivue
def test_bad_calls_are_named(tmp_path: Path) -> None:
    volume, segmentation, meshes = study()
    other = Segmentation(segmentation.labels, Grid.from_spacing(volume.grid.shape, (1, 1, 1)), {1: "liver"})
    with pytest.raises(InputError, match="different grids"):
        report(volume, other)
    with pytest.raises(InputError, match=r"cannot write report\.html"):
        report(volume, segmentation, meshes, tmp_path / "nowhere" / "report.html")


def test_what_is_uncertain_is_said() -> None:
    volume, segmentation, _ = study()
    chance = np.where(segmentation.mask("spleen"), 0.9, 0.0).astype(np.float32)
    chance[25:35, 5:12, 5] = 0.4
    made = np.zeros(volume.grid.shape, bool)
    made[..., ::2] = True
    from dataclasses import replace

    sure = replace(
        segmentation, probabilities={"spleen": chance}, metadata={"model": "ct-torso", "model_version": "1.0"}
    )
    text = " ".join(certainty(replace(volume, synthesised=made), sure, ["spleen"], {"spleen": {"expected_dice": 0.9}}))
    assert "neural network ct-torso 1.0" in text
    assert "Dice of about 0.90" in text
    assert "between 5.25 and 6.30 ml" in text
    assert "50 % of the image was computed" in text
    assert "5 mm" in text
