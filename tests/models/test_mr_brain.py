"""The shipped `mr-brain`: chosen for MR, refuses CT, finds what it says in images of maps it never saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from slice3d.errors import InputError
from slice3d.grid import Grid
from slice3d.models import find, package
from slice3d.models.registry import BUILTIN
from slice3d.pipeline import segment
from slice3d.volume import Volume, freeze


def test_brain_structures_are_its_own_and_the_torso_stays_with_the_other() -> None:
    for organ in ("brain", "left hippocampus", "cortex", "white matter", "ventricles", "thalamus_right", "brainstem"):
        assert find(organ, modality="MR").name == "mr-brain"
        assert find(organ).name == "mr-brain"
    assert find("liver", modality="CT").name == "ct-torso"


@pytest.mark.parametrize("organ", ["brain", "hippocampus_left"])
def test_a_ct_is_refused_with_one_line(organ: str) -> None:
    with pytest.raises(InputError, match=r"the image is CT, but .* can only be found in MR by mr-brain"):
        find(organ, modality="CT")


def test_a_ct_that_does_not_say_so_is_refused_too() -> None:
    rng = np.random.default_rng(0)
    hu = np.where(rng.random((40, 44, 36)) < 0.4, -1000, rng.normal(40, 30, (40, 44, 36))).astype(np.int16)
    with pytest.raises(InputError, match="look like Hounsfield units"):
        segment(Volume(freeze(hu), Grid(hu.shape, np.diag([4.0, 4.0, 4.0, 1.0]))), "brain")


def test_package_is_small_and_says_what_it_came_from() -> None:
    shipped = package("mr-brain")
    shipped.verify()
    assert sum(p.stat().st_size for p in (BUILTIN / "mr-brain").iterdir()) < 30e6
    training = shipped.description["training"]
    assert not set(training["held_out"]) & set(training["label_maps_for_synthesis"])
    assert all("Apache-2.0" in licence for licence in training["label_maps_for_synthesis"].values())
    card = (BUILTIN / "mr-brain" / "README.md").read_text()
    assert "never seen a real image" in card


@pytest.mark.timeout(600)
def test_held_out_head_in_a_contrast_of_its_own(data: Path) -> None:
    """The structures lie where the map has them, sides apart, in a picture of odd contrast and 4 mm slices."""
    from scipy import ndimage

    from slice3d.training.brain import HELD_OUT, read_brain_maps
    from slice3d.training.brain_labels import LABELS, VALUES

    source = read_brain_maps(data, HELD_OUT[1:2])[0]
    truth = source.truth[source.index]
    grey = np.random.default_rng(11).uniform(100, 900, int(source.tissue.max()) + 1)
    grey[0] = 0
    image = ndimage.gaussian_filter(grey[source.tissue][source.index], (0.6, 0.6, 1.7))[:, :, 1::4]
    truth = truth[:, :, 1::4]
    volume = Volume(freeze(image.astype(np.float32)), Grid(image.shape, np.diag([1.0, 1.0, 4.0, 1.0])), modality="MR")
    result = segment(volume, list(LABELS.values()), model="mr-brain")
    assert not [f for f in result.findings if f.code == "orientation-implausible"]
    found, brain = result.labels > 0, truth > 0
    assert 2 * np.count_nonzero(found & brain) / (np.count_nonzero(found) + np.count_nonzero(brain)) > 0.75
    for name in ("cerebral_white_matter", "cerebellum"):
        left, right = (np.nonzero(result.mask(f"{name}_{side}"))[0].mean() for side in ("left", "right"))
        assert left < right
        for side in ("left", "right"):
            assert result.mask(f"{name}_{side}")[truth == VALUES[f"{name}_{side}"]].mean() > 0.3
