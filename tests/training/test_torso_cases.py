"""The real training cases: sides, sizes and names are what anatomy says."""

from pathlib import Path

import numpy as np
import pytest

from slice3d.errors import InputError
from slice3d.training import cases
from slice3d.training.annotate import CHECKED, ORGANS, confirmed_case
from slice3d.training.cases import LABELLED, MAPS, UNLABELLED
from slice3d.training.structures import LABELS, VALUES

pytestmark = pytest.mark.real
SPACING = (3.0, 3.0, 3.0)


def test_every_case_of_the_recipe_is_in_the_data(data: Path) -> None:
    for source in (*LABELLED.values(), *MAPS.values(), *UNLABELLED.values()):
        assert source.licence
        for path in filter(None, (source.image, source.labels)):
            assert (data / path).exists(), path
    assert set(CHECKED) == set(UNLABELLED)
    assert all({*c.keep, *c.structures} <= set(ORGANS) for c in CHECKED.values())


def test_stored_outlines_fit_their_case_and_hold_what_was_confirmed(data: Path) -> None:
    name = "cptac-pda-00189"
    case = cases.cropped_to_body(cases.unlabelled_case(data, name, spacing_mm=SPACING))
    out = confirmed_case(case)
    volumes = {n: np.count_nonzero(out.labels == VALUES[n]) * 0.027 for n in ORGANS}
    assert {n for n, ml in volumes.items() if ml} == set(CHECKED[name].structures)
    assert 1000 < volumes["liver"] < 2000
    assert 100 < volumes["kidney_left"] < 250
    liver = case.image[out.labels == VALUES["liver"]]
    assert 60 < np.median(liver) < 140
    assert np.mean(liver < -50) < 0.01
    with pytest.raises(InputError, match="prepare outlines/ruled anew"):
        confirmed_case(cases.Case(name, case.image[1:], case.labels[1:], SPACING))


def test_atlas_case_has_organs_of_human_size_on_their_sides(data: Path) -> None:
    case = cases.labelled_case(data, "spl", spacing_mm=SPACING)
    middle = {
        name: np.argwhere(case.labels == value).mean(axis=0) for value, name in LABELS.items() if name != "liver_tumor"
    }
    for right, left in (("liver", "spleen"), ("kidney_right", "kidney_left"), ("lung_right", "lung_left")):
        assert middle[right][0] > middle[left][0], f"{right} must lie towards R, the end of axis i"
    assert middle["lung_left"][2] > middle["kidney_left"][2], "axis k grows to S"
    for kidney in ("kidney_left", "kidney_right"):
        volume = np.count_nonzero(case.labels == VALUES[kidney]) * 0.027
        assert 100 < volume < 260


def test_rules_on_an_unlabelled_chest(data: Path) -> None:
    case = cases.unlabelled_case(data, "acrin-flt-breast-013", spacing_mm=SPACING)
    left, right = (case.labels == VALUES[n] for n in ("lung_left", "lung_right"))
    assert np.argwhere(left)[:, 0].mean() < np.argwhere(right)[:, 0].mean()
    assert 600 < np.count_nonzero(left) * 0.027 < 3000
    assert np.median(case.image[left | right]) < -700
    bone = case.labels == VALUES["bone"]
    assert bone.any()
    # compact bone, and the marrow that it encloses: denser than soft tissue but for single noisy voxels
    assert np.median(case.image[bone]) > 200
    assert np.mean(case.image[bone] < 0) < 0.01
