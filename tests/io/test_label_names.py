"""Names and overlapping groups survive a NIfTI label map, and other tools can read them."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest

from slice3d import Segmentation, anatomy, load_segmentation, save
from tests.builders import oblique_grid

NAMES = {1: "liver", 2: "lung_left", 5: "lung_right", 9: "liver_tumor", 200: "body"}


@pytest.fixture
def labels() -> Segmentation:
    grid = oblique_grid((6, 7, 8))
    values = np.random.default_rng(0).choice([0, *NAMES], size=grid.shape).astype(np.uint8)
    return Segmentation(values, grid, NAMES)


def test_names_come_back(labels: Segmentation, tmp_path: Path) -> None:
    save(labels, tmp_path / "a.nii.gz")
    again = load_segmentation(tmp_path / "a.nii.gz")
    assert dict(again.names) == NAMES
    assert np.array_equal(again.labels, labels.labels)
    assert np.array_equal(again.mask("liver"), np.isin(labels.labels, (1, 9)))
    assert np.array_equal(again.mask("lungs"), np.isin(labels.labels, (2, 5)))
    assert np.array_equal(again.mask("body"), labels.labels > 0)


def test_nibabel_alone_reads_the_table(labels: Segmentation, tmp_path: Path) -> None:
    save(labels, tmp_path / "a.nii.gz")
    image = nib.load(tmp_path / "a.nii.gz")
    root = ElementTree.fromstring(image.header.extensions[0].get_content().rstrip(b"\0 "))
    assert {int(e.get("Key", "")): e.text for e in root.iter("Label")} == NAMES
    assert np.array_equal(np.asarray(image.dataobj), labels.labels)


def test_names_given_win_over_the_file(labels: Segmentation, tmp_path: Path) -> None:
    save(labels, tmp_path / "a.nii.gz")
    again = load_segmentation(tmp_path / "a.nii.gz", names={1: "spleen"})
    assert again.names[1] == "spleen"
    assert again.names[2] == "label_2"


@pytest.mark.parametrize(
    "content",
    [
        b"not xml",
        b"<CaretExtension><LabelTable><Label Key='x'>a</Label></LabelTable></CaretExtension>",
        b"<!DOCTYPE a [<!ENTITY b 'x'>]><a><LabelTable><Label Key='1'>&b;</Label></LabelTable></a>",
        b"<CaretExtension><LabelTable><Label Key='1'>liver",
    ],
)
def test_a_damaged_table_is_passed_over(content: bytes, labels: Segmentation, tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.asarray(labels.labels), labels.grid.affine)
    image.header.extensions.append(nib.nifti1.Nifti1Extension(0, content))
    nib.save(image, tmp_path / "b.nii")
    assert load_segmentation(tmp_path / "b.nii").names[1] == "label_1"


def test_same_labels_same_bytes(labels: Segmentation, tmp_path: Path) -> None:
    save(labels, tmp_path / "a.nii.gz")
    save(labels, tmp_path / "b.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_groups_need_every_member() -> None:
    assert anatomy.standard_groups({1: "liver", 2: "lung_left"}) == {}
    assert anatomy.standard_groups({1: "body"}) == {}
    assert anatomy.standard_groups({3: "liver", 4: "Liver tumour"}) == {"liver": (3, 4)}
