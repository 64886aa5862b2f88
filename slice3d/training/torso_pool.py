"""The cases that `ct-torso` learns from: real, painted from label maps and phantoms, at the voxel sizes of its stages.

`fine` holds them all at 2.5 mm, `middle` and `coarse` the same ones at 3.2 and 4.5 mm. `outlines` holds, at 3 mm, the CTs that came without
labels as rules on HU label them: the grid that their outlines were confirmed on, to be enlarged for the other levels.
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

FINE_MM = (2.5, 2.5, 2.5)
MIDDLE_MM = (3.2, 3.2, 3.2)
COARSE_MM = (4.5, 4.5, 4.5)
OUTLINES_MM = (3.0, 3.0, 3.0)
WORKING_MM = (2.2, 2.2, 2.2)
"""At which the package runs: a little finer than what it learnt from, which the scaled crops allow. Thin things gain by it."""
ORDER = ("s0011", "s0001", "s0004", "s0006", "s0011", "s0004", "s0001", "s0011", "s0004", "s0006", "s0000", "s0011",
         "s0004")  # fmt: skip
"""Which label map synthetic case n is painted from (n modulo the length): whole trunks more often."""
_WARP = Deformation(scale=0.12, rotation_deg=9.0, elastic_mm=9.0)


def synthetic_case(atlas: Atlas, number: int) -> Case:
    """Synthetic case `number`: its size, geometry, phase and noise all follow from the number."""
    from slice3d.training.synthesis import synthesise

    rng = np.random.default_rng(10_000 + number)
    shape = (
        int(rng.integers(67, 82)) * 2,
        int(rng.integers(53, 63)) * 2,
        int(rng.choice([38, 58, 67, 77])) * 2,
    )
    made = synthesise(atlas, seed=number, shape=shape, spacing_mm=FINE_MM[0], deformation=_WARP)
    return cases.cropped_to_body(made)


def prepare_pool(
    data: Path, folder: Path, *, synthetic: int, phantoms: int, coarser: bool = True, progress: Progress = silent,
) -> None:  # fmt: skip
    """Write `folder/<level>/<group>`: groups labelled, confirmed, synth and phantom, and `outlines/ruled`. What is there is
    kept.

    synthetic, phantoms: how many. coarser: also on larger voxels than the finest. Raises `InputError` where `data` lacks a case.
    """
    outlines = folder / "outlines" / "ruled"
    work: list[tuple[Path, str, Callable[[], Case]]] = [
        (outlines, name, partial(_ruled, data, name)) for name in UNLABELLED
    ]
    for (group, name), make in _fine_cases(data, outlines, synthetic, phantoms).items():
        work.append((folder / "fine" / group, name, make))
        for level, mm in (("middle", MIDDLE_MM), ("coarse", COARSE_MM)) if coarser else ():
            work.append((folder / level / group, name, partial(_coarser, folder / "fine" / group, name, mm)))
    for done, (where, name, make) in enumerate(work):
        if not (where / f"{name}.json").exists():
            cases.save(make(), where)
        progress("preparing cases", (done + 1) / len(work))


def _fine_cases(
    data: Path, outlines: Path, synthetic: int, phantoms: int
) -> Mapping[tuple[str, str], Callable[[], Case]]:
    """(group, name) → what makes the case at `FINE_MM`."""
    from slice3d.training.phantoms import phantom_case
    from slice3d.training.synthesis import make_atlas

    @cache
    def atlas(name: str) -> Atlas:
        return make_atlas(name, cases.read(data / MAPS[name].labels)[0])

    def labelled(name: str) -> Case:
        return cases.cropped_to_body(cases.labelled_case(data, name, spacing_mm=FINE_MM))

    def phantom(number: int) -> Case:
        return cases.cropped_to_body(phantom_case(number, spacing_mm=FINE_MM))

    def painted(number: int) -> Case:
        return synthetic_case(atlas(ORDER[number % len(ORDER)]), number)

    out: dict[tuple[str, str], Callable[[], Case]] = {}
    for name in LABELLED:
        out["labelled", name] = partial(labelled, name)
    for name in UNLABELLED:
        out["confirmed", name] = partial(_confirmed, data, outlines, name)
    for number in range(phantoms):
        out["phantom", f"phantom-{number}"] = partial(phantom, number)
    for number in range(synthetic):
        out["synth", f"{ORDER[number % len(ORDER)]}-{number}"] = partial(painted, number)
    return out


def _coarser(folder: Path, name: str, spacing_mm: tuple[float, float, float]) -> Case:
    case = cases.load_case(folder, name)
    image = cases.respaced(case.image, case.spacing_mm, spacing_mm)
    labels = cases.respaced_labels(case.labels, case.spacing_mm, spacing_mm)
    return Case(case.name, np.rint(image).astype(np.int16), labels, spacing_mm)


def _ruled(data: Path, name: str) -> Case:
    return cases.cropped_to_body(cases.unlabelled_case(data, name, spacing_mm=OUTLINES_MM))


def _confirmed(data: Path, outlines: Path, name: str) -> Case:
    whole, sharp = (cases.unlabelled_case(data, name, spacing_mm=mm) for mm in (OUTLINES_MM, FINE_MM))
    return cases.cropped_to_body(sharper_case(confirmed_case(cases.load_case(outlines, name)), whole, sharp))


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
