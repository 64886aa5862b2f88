"""The cases that `ct-torso` learns from: real, painted from label maps and phantoms, at the voxel sizes of its stages.

`fine` holds them all at 3 mm, `coarse` the same ones at 4.5 mm; `sharp` holds the real ones at 2.5 mm once more, made
from the original images, which show more than an enlarged crop of 3 mm; labels of cases that came with some are of the
original ones too, confirmed outlines are those of 3 mm enlarged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path

import numpy as np

from slice3d.progress import Progress, silent
from slice3d.training import cases
from slice3d.training.annotate import confirmed_case
from slice3d.training.cases import LABELLED, MAPS, UNLABELLED, Case
from slice3d.training.synthesis import Atlas, Deformation

FINE_MM = (3.0, 3.0, 3.0)
COARSE_MM = (4.5, 4.5, 4.5)
SHARP_MM = (2.5, 2.5, 2.5)
ORDER = ("s0011", "s0001", "s0004", "s0006", "s0011", "s0004", "s0001", "s0011", "s0004", "s0006", "s0000", "s0011",
         "s0004")  # fmt: skip
"""Which label map synthetic case n is painted from (n modulo the length): whole trunks more often."""
_WARP = Deformation(scale=0.12, rotation_deg=9.0, elastic_mm=9.0)


def synthetic_case(atlas: Atlas, number: int) -> Case:
    """Synthetic case `number`: its size, geometry, phase and noise all follow from the number."""
    from slice3d.training.synthesis import synthesise

    rng = np.random.default_rng(10_000 + number)
    shape = (
        int(rng.integers(56, 68)) * 2,
        int(rng.integers(44, 52)) * 2,
        int(rng.choice([32, 48, 56, 64])) * 2,
    )
    return cases.cropped_to_body(synthesise(atlas, seed=number, shape=shape, deformation=_WARP))


def prepare_pool(
    data: Path, folder: Path, *, synthetic: int, phantoms: int, progress: Progress = silent,
) -> None:  # fmt: skip
    """Write `folder/<level>/<group>`: groups labelled, ruled, confirmed, synth and phantom; what is there is kept.

    synthetic, phantoms: how many. Raises `InputError` where `data` lacks a case.
    """
    fine, work = _fine_cases(data, folder / "fine", synthetic, phantoms), []
    for (group, name), make in fine.items():
        work.append(("fine", group, name, make))
        work.append(("coarse", group, name, partial(_coarser, folder / "fine" / group, name)))
    for name in LABELLED:
        work.append(("sharp", "labelled", name, partial(cases.labelled_case, data, name, spacing_mm=SHARP_MM)))
    for name in UNLABELLED:
        work.append(("sharp", "confirmed", name, partial(_sharper, data, folder / "fine" / "ruled", name)))
    for done, (level, group, name, make) in enumerate(work):
        if not (folder / level / group / f"{name}.json").exists():
            case = make()
            cases.save(case if level == "coarse" else cases.cropped_to_body(case), folder / level / group)
        progress("preparing cases", (done + 1) / len(work))


def _fine_cases(
    data: Path, folder: Path, synthetic: int, phantoms: int
) -> Mapping[tuple[str, str], Callable[[], Case]]:
    """(group, name) → what makes the case at 3 mm."""
    from slice3d.training.phantoms import phantom_case
    from slice3d.training.synthesis import make_atlas

    @cache
    def atlas(name: str) -> Atlas:
        return make_atlas(name, cases.read(data / MAPS[name].labels)[0])

    def confirmed(name: str) -> Case:
        return confirmed_case(cases.load_case(folder / "ruled", name))

    def painted(number: int) -> Case:
        return synthetic_case(atlas(ORDER[number % len(ORDER)]), number)

    out: dict[tuple[str, str], Callable[[], Case]] = {}
    for name in LABELLED:
        out["labelled", name] = partial(cases.labelled_case, data, name, spacing_mm=FINE_MM)
    for name in UNLABELLED:
        out["ruled", name] = partial(cases.unlabelled_case, data, name, spacing_mm=FINE_MM)
        out["confirmed", name] = partial(confirmed, name)
    for number in range(phantoms):
        out["phantom", f"phantom-{number}"] = partial(phantom_case, number, spacing_mm=FINE_MM)
    for number in range(synthetic):
        out["synth", f"{ORDER[number % len(ORDER)]}-{number}"] = partial(painted, number)
    return out


def _coarser(folder: Path, name: str) -> Case:
    case = cases.load_case(folder, name)
    image = cases.respaced(case.image, case.spacing_mm, COARSE_MM)
    labels = cases.respaced_labels(case.labels, case.spacing_mm, COARSE_MM)
    return Case(case.name, np.rint(image).astype(np.int16), labels, COARSE_MM)


def _sharper(data: Path, folder: Path, name: str) -> Case:
    whole, sharp = (cases.unlabelled_case(data, name, spacing_mm=mm) for mm in (FINE_MM, SHARP_MM))
    return sharper_case(confirmed_case(cases.load_case(folder, name)), whole, sharp)


def sharper_case(confirmed: Case, whole: Case, sharp: Case) -> Case:
    """The CT of `sharp` with the labels of larger voxels, enlarged: its borders are no sharper than theirs.

    confirmed: labels on the part of `whole` that `cases.cropped_to_body` leaves of it. whole: the uncropped case that they
    are of. sharp: the case at smaller voxels, same field of view.
    """
    labels = whole.labels.copy()
    labels[cases.body_box(whole)] = confirmed.labels
    labels = cases.respaced_labels(labels, whole.spacing_mm, sharp.spacing_mm)
    # both grids were rounded up to hold the field of view
    shared = tuple(slice(0, min(a, b)) for a, b in zip(sharp.image.shape, labels.shape, strict=True))
    return Case(sharp.name, sharp.image[shared], labels[shared], sharp.spacing_mm)
