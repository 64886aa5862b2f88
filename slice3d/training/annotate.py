"""Labels for CTs that nobody labelled: a network's guess, refined by HU, and only what a person looked at is kept.

How it is used: train on what is labelled, predict the rest, look at pictures of `refine`'s result, write down in
`CHECKED` which structures of which case are right and what the eye added, and train on those. Everything else stays open
(partial labels): a wrong guess that nobody confirmed never becomes truth. The outlines that were looked at are kept in
`outlines.npz`, for another network's guess would have to be looked at again: `write_outlines` and `confirmed_case`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import InputError
from slice3d.training.cases import Case
from slice3d.training.rules import contrast_filled
from slice3d.training.structures import IN_BODY, LABELS, NO_ORGAN, SOFT_TISSUE, SOFT_TISSUE_OR_BONE, VALUES

Array = NDArray[Any]
ORGANS = ("liver", "spleen", "kidney_left", "kidney_right", "aorta")


Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Grown:
    """A structure that the network missed, marked by eye: the largest connected part of an HU window inside a box.

    box: (first, last + 1) along i, j, k on the 3 mm grid of outlines.
    """

    name: str
    box: Box
    window_hu: tuple[float, float]


@dataclass(frozen=True)
class Tube:
    """A vessel marked by eye: discs across the axis k, their centres and radii interpolated between those given.

    discs: (k, i, j, radius in voxels), k ascending. window_hu: smoothed HU of its blood; what is bone is none.
    """

    name: str
    discs: tuple[tuple[float, float, float, float], ...]
    window_hu: tuple[float, float]


@dataclass(frozen=True)
class Drawn:
    """A structure drawn by hand: polygons of (i, j) across the axis k, ascending; between them, distances are averaged.

    window_hu: smoothed HU of the structure; what is bone is none of it. Raises `InputError` for fewer than two polygons.
    """

    name: str
    polygons: tuple[tuple[int, tuple[tuple[float, float], ...]], ...]
    window_hu: tuple[float, float]

    def __post_init__(self) -> None:
        at = [k for k, _ in self.polygons]
        if len(at) < 2 or at != sorted(set(at)):
            raise InputError(f"{self.name}: polygons at slices {at}; expected two or more, ascending")


@dataclass(frozen=True)
class Checked:
    """What was confirmed by eye for one case.

    keep: structures whose refined outline is right. window_hu: structure → (lowest, highest) smoothed HU, where the
    automatic window was wrong. body: whether soft tissue that the network is sure is no organ may count as body.
    aorta: a voxel (i, j, k) inside it, on the 3 mm grid of outlines, with the HU window of its blood, followed
    from slice to slice. grown: structures marked by eye. leaks: (structure, box in which its outline is wrong);
    it stays open there. tubes, drawn: vessels and organs marked by eye. sinus_hu: kidneys are no darker than this outside of `cyst`: what
    lies in their sinus is no kidney. contrast: bright blobs too thick for bone are contrast medium (not where femoral heads are).
    """

    keep: tuple[str, ...] = ()
    window_hu: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    body: bool = True
    aorta: tuple[tuple[int, int, int], tuple[float, float]] | None = None
    contrast: bool = False
    grown: tuple[Grown, ...] = ()
    leaks: tuple[tuple[str, Box], ...] = ()
    tubes: tuple[Tube, ...] = ()
    drawn: tuple[Drawn, ...] = ()
    sinus_hu: float | None = None
    cyst: Box | None = None

    @property
    def structures(self) -> tuple[str, ...]:
        """Everything that is labelled, by name."""
        seen = {
            *self.keep,
            *(one.name for one in self.grown),
            *(one.name for one in self.tubes),
            *(one.name for one in self.drawn),
            *(("aorta",) if self.aorta else ()),
        }
        return tuple(name for name in ORGANS if name in seen)


_ALL = (0, 999)
CHECKED: dict[str, Checked] = {
    "acrin-flt-breast-013": Checked(
        ("liver",), body=False, contrast=True,
        tubes=(
            Tube("aorta", ((0, 63, 40, 3.9), (5, 64, 40, 3.9), (9, 63, 39, 3.9), (13, 62.5, 38, 3.9), (17, 62, 37, 3.9),
                           (21, 62, 36, 3.7), (25, 61.5, 34.5, 3.7), (29, 61, 33, 3.7), (37, 60.3, 32.5, 3.6),
                           (45, 60, 34, 3.6), (49, 60, 35, 3.6), (53, 60, 36, 3.6), (57, 59.3, 37, 4.0)), (5, 95)),
        ),
        drawn=(
            Drawn("spleen", (
                (9, ((24, 40), (26, 41), (29, 37), (31, 33), (35, 31), (41, 30.5), (49, 31), (55, 32), (58, 32), (59, 28), (58, 23),
                     (55, 19.5), (50, 18.5), (46, 17), (42, 16), (38, 17), (35, 19), (31, 23), (27, 27), (25, 31), (24, 36))),
                (13, ((25, 40), (27, 39), (31, 34), (37, 31.5), (44, 31), (52, 32.5), (57, 34), (58.5, 30), (57, 26), (54, 22),
                      (50, 19), (46, 17.5), (41, 17.5), (38, 19.5), (33, 22), (29, 26), (26.5, 30), (25, 35))),
                (17, ((27.5, 38), (30, 36.5), (32, 33), (37, 31.5), (44, 31.5), (51, 32.5), (54, 32), (53.5, 28), (51, 24), (47, 22),
                      (42, 21.5), (37, 22.5), (33, 25), (30, 29), (27.5, 33))),
                (21, ((31, 36), (33, 36), (35, 33.5), (40, 33), (45, 34.5), (49, 34), (50.5, 31), (49.5, 27.5), (46, 25), (41, 24.5),
                      (36, 26), (33, 29), (31, 33))),
            ), (20, 95)),
        ),
    ),
    "cmb-crc-01068": Checked(
        body=False, aorta=((68, 33, 25), (200, 900)), contrast=True,
        grown=(
            Grown("spleen", ((28, 62), (18, 62), (0, 16)), (75, 260)),
            Grown("liver", ((64, 134), (16, 92), (0, 20)), (35, 95)),
        ),
    ),
    "cort-liver": Checked(
        ("liver", "spleen", "aorta"), leaks=(("liver", ((0, 101), _ALL, (99, 999))), ("aorta", (_ALL, _ALL, (108, 119)))),
        sinus_hu=8,
        grown=(
            Grown("kidney_right", ((104, 137), (46, 76), (38, 75)), (8, 70)),
            Grown("kidney_left", ((44, 76), (48, 87), (30, 72)), (8, 70)),
        ),
    ),
    "cptac-pda-00189": Checked(
        ORGANS, contrast=True, leaks=(("liver", ((0, 88), _ALL, (43, 999))),), sinus_hu=30
    ),
    "ct-20slices": Checked(
        ("liver",), body=False, aorta=((80, 46, 7), (128, 185)), contrast=True, window_hu={"liver": (60, 175)},
        leaks=(("liver", (_ALL, (81, 999), _ALL)),), grown=(Grown("spleen", ((34, 66), (14, 66), (0, 14)), (60, 140)),),
    ),
    "ct-abdomen-contrast": Checked(
        ("liver", "spleen", "kidney_left"), contrast=True,
        leaks=(("liver", ((0, 98), _ALL, (98, 999))), ("aorta", (_ALL, _ALL, (50, 67))), ("aorta", (_ALL, _ALL, (113, 127)))),
        aorta=((77, 55, 63), (110, 420)), sinus_hu=60, cyst=((100, 124), (30, 49), (69, 88)),
        grown=(
            Grown("kidney_right", ((92, 131), (32, 60), (44, 92)), (128, 420)),
            Grown("kidney_right", ((100, 131), (31, 50), (70, 92)), (-20, 35)),
        ),
    ),
    "ts-example-whole": Checked(ORGANS, sinus_hu=4),
}  # fmt: skip
"""Seen on pictures of eleven planes per case, predictions of version 0.2.0; what is missing was wrong or doubtful."""

_UNCHANGED = 250  # in outlines.npz only: what rules on HU say (elsewhere this number is NO_ORGAN)


def confirmed_case(case: Case) -> Case:
    """A case labelled by rules, with the outlines that a person confirmed. Raises `InputError` when they don't fit it."""
    source = resources.files("slice3d.training").joinpath("outlines.npz")
    with source.open("rb") as file, np.load(file) as stored:
        outlines = stored[case.name]
    if outlines.shape != case.labels.shape:
        raise InputError(
            f"the confirmed outlines of {case.name} are {outlines.shape} voxels, the prepared case {case.labels.shape}; "
            "prepare outlines/ruled anew from the project's data"
        )
    # body was confirmed before heart, gut and the like were told apart from it
    known = np.where(outlines == VALUES["body"], NO_ORGAN, outlines)
    labels = np.where(outlines == _UNCHANGED, case.labels, known).astype(np.uint8)
    return Case(case.name, case.image, labels, case.spacing_mm)


def to_store(case: Case, labels: Array) -> Array:
    """What `confirmed_case` turns into `labels` again, for `outlines.npz`. case: labelled by rules."""
    stored = np.where(labels == NO_ORGAN, VALUES["body"], labels)
    return np.where(labels == case.labels, _UNCHANGED, stored).astype(np.uint8)


def write_outlines(ruled: Sequence[Case], confirmed: Sequence[Case], path: Path) -> None:
    """Store outlines that a person looked at, case by case. ruled: the same cases as labelled by rules alone."""
    stored = {case.name: to_store(case, seen.labels) for case, seen in zip(ruled, confirmed, strict=True)}
    np.savez_compressed(path, **stored)  # type: ignore[arg-type]


def refine(case: Case, shares: Array, checked: Checked) -> Case:
    """The case with the confirmed structures of a prediction in place of open soft tissue.

    shares: (C, i, j, k) class probabilities on the case's grid. A structure is the largest connected part of what the
    network finds likely (> 0.5, or > 0.25 within the HU of its sure core), smoothed; voxels around it that were likely
    too stay open. Fat inside the body is body without asking a network.
    """
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(case.image.astype(np.float32), 0.7)
    out = case.labels.copy()
    soft = (out == SOFT_TISSUE) | (out == SOFT_TISSUE_OR_BONE) | (out == IN_BODY)
    likely = np.zeros(out.shape, bool)
    organs = np.zeros(out.shape, np.uint8)
    for name in ORGANS:
        share = shares[VALUES[name]] + (shares[VALUES["liver_tumor"]] if name == "liver" else 0)
        likely |= share > 0.1
        if name in checked.keep:
            allowed = soft & (organs == 0) & ~_leaks(checked, name, out.shape)
            organs[_organ(share, smooth, allowed, checked.window_hu.get(name))] = VALUES[name]
    for one in checked.grown:
        organs[_grown(smooth, soft & (organs == 0), one)] = VALUES[one.name]
    if checked.aorta is not None:
        tracked = track_vessel(smooth, *checked.aorta, spacing_mm=case.spacing_mm) & ~_leaks(
            checked, "aorta", out.shape
        )
        organs[tracked & (organs == 0)] = VALUES["aorta"]
    for tube in checked.tubes:
        organs[marked_vessel(smooth, out == VALUES["bone"], tube) & (organs == 0)] = VALUES[tube.name]
    for shape in checked.drawn:
        organs[drawn_organ(smooth, out == VALUES["bone"], shape) & (organs == 0)] = VALUES[shape.name]
    if checked.contrast:
        out[(out == SOFT_TISSUE_OR_BONE) & contrast_filled(case.image, case.spacing_mm)] = SOFT_TISSUE
    near = ndimage.binary_dilation(organs > 0, iterations=2)
    if checked.body:
        out[(out == SOFT_TISSUE) & (shares[VALUES["body"]] > 0.9) & ~likely & ~near] = VALUES["body"]
    out[(out == SOFT_TISSUE) & (smooth > -160) & (smooth < -40)] = VALUES["body"]
    out[organs > 0] = organs[organs > 0]
    return Case(case.name, case.image, without_sinus(out, smooth, checked), case.spacing_mm)


def inside(box: Box) -> tuple[slice, ...]:
    """The box as an index."""
    return tuple(slice(*bounds) for bounds in box)


def _leaks(checked: Checked, name: str, shape: tuple[int, ...]) -> Array:
    out = np.zeros(shape, bool)
    for leaking, box in checked.leaks:
        if leaking == name:
            out[inside(box)] = True
    return out


def _grown(smooth: Array, allowed: Array, what: Grown) -> Array:
    from scipy import ndimage

    fits = np.zeros(smooth.shape, bool)
    box = inside(what.box)
    fits[box] = allowed[box] & (smooth[box] > what.window_hu[0]) & (smooth[box] < what.window_hu[1])
    parts, n = ndimage.label(ndimage.binary_opening(fits, iterations=1))
    if not n:
        return fits & False
    core = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    grown = ndimage.binary_dilation(core, iterations=1) & fits
    closed = ndimage.binary_closing(np.pad(grown, 3), iterations=2)[3:-3, 3:-3, 3:-3] & allowed
    out: Array = ndimage.binary_fill_holes(closed | grown) & allowed
    return out


def _organ(share: Array, smooth: Array, allowed: Array, window: tuple[float, float] | None) -> Array:
    from scipy import ndimage

    core = (share > 0.8) & allowed
    if np.count_nonzero(core) < 30:
        return np.zeros(share.shape, bool)
    if window is None:
        middle = float(np.median(smooth[core]))
        spread = max(25.0, 3.0 * 1.4826 * float(np.median(np.abs(smooth[core] - middle))))
        window = (middle - spread, middle + spread)
    fits = (smooth > window[0]) & (smooth < window[1])
    mask = allowed & fits & ((share > 0.5) | ((share > 0.25) & ndimage.binary_dilation(core, iterations=2)))
    mask = ndimage.binary_opening(mask, iterations=1)
    parts, n = ndimage.label(mask)
    if not n:
        return np.zeros(share.shape, bool)
    mask = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    closed = ndimage.binary_closing(np.pad(mask, 3), iterations=2)[3:-3, 3:-3, 3:-3] & allowed
    out: Array = ndimage.binary_fill_holes(closed | mask) & (allowed | mask)
    return out


def track_vessel(
    smooth: Array, seed: tuple[int, int, int], window_hu: tuple[float, float], *, spacing_mm: tuple[float, ...],
    reach_mm: float = 15.0,
) -> Array:  # fmt: skip
    """(i, j, k) bool: the vessel through `seed`, followed up and down while its cross-section changes slowly.

    In each slice the connected part of the HU window nearest to the last centre, within `reach_mm` of it. The walk ends
    where the area leaves 0.45 to 1.8 times the running one, fills the reach (a leak), or the centre jumps over 7 mm.
    """
    from scipy import ndimage

    fits = (smooth > window_hu[0]) & (smooth < window_hu[1])
    i, j = np.indices(smooth.shape[:2])
    out = np.zeros(smooth.shape, bool)
    for steps in (range(seed[2], smooth.shape[2]), range(seed[2] - 1, -1, -1)):
        centre, area = np.array(seed[:2], float), 0.0
        for k in steps:
            off = np.hypot((i - centre[0]) * spacing_mm[0], (j - centre[1]) * spacing_mm[1])
            parts, n = ndimage.label(fits[:, :, k] & (off < reach_mm))
            if not n:
                break
            nearest = (
                int(np.argmin([off[parts == v].min() + 0.01 * off[parts == v].mean() for v in range(1, n + 1)])) + 1
            )
            cut = parts == nearest
            middle, size = np.array(ndimage.center_of_mass(cut)), float(np.count_nonzero(cut))
            jump = float(np.hypot(*((middle - centre) * spacing_mm[:2])))
            full = size * spacing_mm[0] * spacing_mm[1] > 0.85 * np.pi * reach_mm**2
            if full or (area and (not 0.45 < size / area < 1.8 or jump > 7)):
                break
            out[:, :, k] = cut
            centre, area = middle, size if not area else 0.7 * area + 0.3 * size
    return out


def marked_vessel(smooth: Array, bone: Array, what: Tube) -> Array:
    """(i, j, k) bool: the discs of `what`, without bone and what is outside its HU window."""
    at = np.array(what.discs)
    i, j = np.indices(smooth.shape[:2])
    out = np.zeros(smooth.shape, bool)
    for k in range(int(at[0, 0]), min(smooth.shape[2], int(at[-1, 0]) + 1)):
        middle_i, middle_j, radius = (np.interp(k, at[:, 0], at[:, column]) for column in (1, 2, 3))
        out[:, :, k] = (i - middle_i) ** 2 + (j - middle_j) ** 2 <= radius**2
    kept: Array = out & ~bone & (smooth > what.window_hu[0]) & (smooth < what.window_hu[1])
    return kept


def drawn_organ(smooth: Array, bone: Array, what: Drawn) -> Array:
    """(i, j, k) bool: what the polygons enclose, from the first one's slice to the last one's."""
    from scipy import ndimage
    from skimage.draw import polygon2mask

    distances = []
    for _, corners in what.polygons:
        inside = polygon2mask(smooth.shape[:2], np.asarray(corners))  # type: ignore[no-untyped-call]
        distances.append(ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside))
    at = [k for k, _ in what.polygons]
    out = np.zeros(smooth.shape, bool)
    for k in range(at[0], min(smooth.shape[2], at[-1] + 1)):
        n = min(int(np.searchsorted(at, k, side="right")) - 1, len(at) - 2)
        share = (k - at[n]) / (at[n + 1] - at[n])
        out[:, :, k] = (1 - share) * distances[n] + share * distances[n + 1] > 0
    kept: Array = out & ~bone & (smooth > what.window_hu[0]) & (smooth < what.window_hu[1])
    return kept


def without_sinus(labels: Array, smooth: Array, checked: Checked) -> Array:
    """Labels whose kidneys leave out the fat, vessels and urine of the renal sinus."""
    out = labels.copy()
    if checked.sinus_hu is not None:
        kidney = np.isin(labels, (VALUES["kidney_left"], VALUES["kidney_right"]))
        if checked.cyst is not None:
            kidney[inside(checked.cyst)] = False
        out[kidney & (smooth < checked.sinus_hu)] = SOFT_TISSUE
        out[kidney & (smooth < -10)] = NO_ORGAN
    return out


def volumes_ml(case: Case) -> dict[str, float]:
    """Volume of each labelled structure, to be read beside the picture when a case is checked."""
    voxel = float(np.prod(case.spacing_mm)) / 1000
    return {name: float(np.count_nonzero(case.labels == value)) * voxel for value, name in LABELS.items()}
