"""A stylised adult trunk after the ORNL/MIRD mathematical phantoms. World RAS, mm; z = 0 is the base of the trunk.

Source of every number not marked "own": M. Cristy, K. F. Eckerman, "Specific absorbed fractions of energy at various
ages from internal photon sources", ORNL/TM-8381/V1, Oak Ridge National Laboratory 1987, adult (after M. Cristy,
NUREG/CR-1159, 1980, and Snyder, Ford, Warner, MIRD Pamphlet 5 revised, 1978). The reports use centimetres, x to the
phantom's left and y to its back; here x runs to the right and y to the front. Aorta, vena cava, tumour, fat and
the couch are not in the reports and are own additions, as is the heart (an upright ellipsoid here, tilted there).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from slice3d.anatomy import standard_groups
from slice3d.samples.solids import Solid

_INF = math.inf

Tissue = Literal[
    "air", "couch", "fat", "muscle", "bowel_wall", "bowel", "gas", "stomach", "bladder", "heart", "vena_cava", "aorta",
    "kidney", "spleen", "liver", "tumor", "lung", "cortical_bone", "marrow",
]  # fmt: skip

BODY, LIVER, SPLEEN, KIDNEY_LEFT, KIDNEY_RIGHT, LUNG_LEFT, LUNG_RIGHT, BONE, AORTA, TUMOR = (
    10,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
)

NAMES: dict[int, str] = {
    LIVER: "liver", SPLEEN: "spleen", KIDNEY_LEFT: "kidney_left", KIDNEY_RIGHT: "kidney_right",
    LUNG_LEFT: "lung_left", LUNG_RIGHT: "lung_right", BONE: "bone", AORTA: "aorta", TUMOR: "liver_tumor", BODY: "body",
}  # fmt: skip

# A liver holds its tumour, the body holds everything; as for any label map that is loaded.
GROUPS: dict[str, tuple[int, ...]] = standard_groups(NAMES)

# Portal-venous phase at 120 kVp, rounded typical values.
HU: dict[Tissue, float] = {
    "air": -1000, "couch": -150, "fat": -100, "muscle": 55, "bowel_wall": 60, "bowel": 20, "gas": -850, "stomach": 15,
    "bladder": 8, "heart": 140, "vena_cava": 130, "aorta": 160, "kidney": 180, "spleen": 120, "liver": 110, "tumor": 60,
    "lung": -850, "cortical_bone": 700, "marrow": 200,
}  # fmt: skip

CORTICAL_SHELL_MM = 2.0  # own


@dataclass(frozen=True)
class Part:
    """One solid of the phantom: what it is made of, which label it carries (0 none), which organ moves it."""

    solid: Solid
    tissue: Tissue
    label: int
    organ: str


def _ellipsoid(center: tuple[float, float, float], radii: tuple[float, float, float]) -> Solid:
    return Solid(center, radii)


def _column(x: float, y: float, a: float, b: float, z: tuple[float, float]) -> Solid:
    return Solid((x, y, 0.0), (a, b, _INF)).between(2, *z)


def _box(x: tuple[float, float], y: tuple[float, float], z: tuple[float, float]) -> Solid:
    whole = Solid((0.0, 0.0, 0.0), (_INF, _INF, _INF))
    return whole.between(0, *x).between(1, *y).between(2, *z)


def _ring(outer: tuple[float, float], inner: tuple[float, float], z: tuple[float, float]) -> Solid:
    a, b = outer
    ring = _column(0, 0, a, b, z)
    return replace(ring, hole=Solid((0.0, 0.0, 0.0), (*inner, _INF)))


def liver() -> Solid:
    """Elliptical cylinder cut by an oblique plane: x/35 + y/45 - z/43 ≤ -1 in the report's centimetres."""
    whole = _column(0, 0, 165, 80, (270, 430))
    return replace(whole, planes=(*whole.planes, (-1 / 350, -1 / 450, -1 / 430, -1.0)))


def spleen() -> Solid:
    """An ellipsoid of 176 ml."""
    return _ellipsoid((-110, -30, 370), (35, 20, 60))


def kidney(side: int) -> Solid:
    """An ellipsoid whose hilum is cut off 3 cm from the midline; `side` +1 right, -1 left."""
    whole = _ellipsoid((side * 60, -60, 325), (45, 15, 55))
    return whole.between(0, 30, 200) if side > 0 else whole.between(0, -200, -30)


def lung(side: int) -> Solid:
    """The upper half of an ellipsoid less the room for the heart; `side` +1 right, -1 left."""
    room = _box((-200, 54), (-15, 200), (460, 540)) if side > 0 else _box((-80, 200), (-10, 200), (435, 550))
    half = _ellipsoid((side * 85, 0, 435), (50, 75, 240)).between(2, 435, 675)
    return replace(half, hole=room)


def skeleton() -> list[Solid]:
    """Lower and middle spine, twelve pairs of ribs as rings, pelvis, scapulae; clavicles and limbs are left out."""
    spine = _column(0, -55, 20, 25, (220, 700))
    ribs = [_ring((170, 98), (165, 93), (351 + 28 * n, 365 + 28 * n)) for n in range(12)]
    ring = Solid((0, 30, 0), (120, 120, _INF), hole=Solid((0, 38, 0), (113, 113, _INF)))
    # Behind y = 3 cm the ring reaches to the top; below 14 cm it stops 5 cm behind the midline.
    upper = ring.between(2, 140, 220).between(1, -500, 30)
    lower = ring.between(2, 0, 140).between(1, -50, 30)
    blade = _ring((190, 98), (170, 98), (509, 673))
    right = Solid(
        blade.center, blade.radii, (*blade.planes, (0.25, 1, 0, 0), (-0.8, -1, 0, 0), (-1, 0, 0, 0)), blade.hole
    )
    left = Solid(
        blade.center, blade.radii, (*blade.planes, (-0.25, 1, 0, 0), (0.8, -1, 0, 0), (1, 0, 0, 0)), blade.hole
    )
    return [spine, *ribs, upper, lower, right, left]


def soft_parts() -> list[Part]:
    """What lies around the labelled organs and carries no label of its own but `body`."""
    perirenal = [Part(_ellipsoid((s * 60, -60, 325), (54, 24, 68)), "fat", BODY, "kidneys") for s in (1, -1)]
    colon = Solid((0, 23.6, 255), (_INF, 25, 15)).between(0, -105, 105)
    lumen = Solid((0, 23.6, 255), (_INF, 20, 10)).between(0, -100, 100)
    return [
        *perirenal,
        Part(_ellipsoid((-13, 35, 495), (65, 48, 56)), "heart", BODY, "heart"),
        Part(_ellipsoid((-80, 40, 350), (40, 30, 80)), "bowel_wall", BODY, "stomach"),
        Part(_ellipsoid((-80, 40, 350), (34, 24, 74)), "stomach", BODY, "stomach"),
        Part(_column(85, 23.6, 25, 25, (144.5, 240)), "bowel_wall", BODY, "colon"),
        Part(_column(85, 23.6, 18, 18, (150, 240)), "bowel", BODY, "colon"),
        Part(_column(-94, 0, 18.8, 21.3, (87.2, 240)), "bowel_wall", BODY, "colon"),
        Part(_column(-94, 0, 13, 15, (92, 240)), "bowel", BODY, "colon"),
        Part(colon, "bowel_wall", BODY, "colon"),
        Part(lumen, "gas", BODY, "colon"),
        Part(_ellipsoid((0, 45, 80), (49.58, 34.58, 34.58)), "bladder", BODY, "bladder"),
        Part(_column(18, -15, 11, 10, (200, 435)), "vena_cava", BODY, "vena_cava"),
    ]


def organs() -> list[Part]:
    """The labelled organs without skeleton and tumour, in painting order."""
    return [
        Part(_column(-15, -17, 12, 12, (200, 590)), "aorta", AORTA, "aorta"),
        Part(lung(-1), "lung", LUNG_LEFT, "lungs"),
        Part(lung(+1), "lung", LUNG_RIGHT, "lungs"),
        Part(kidney(-1), "kidney", KIDNEY_LEFT, "kidney_left"),
        Part(kidney(+1), "kidney", KIDNEY_RIGHT, "kidney_right"),
        Part(spleen(), "spleen", SPLEEN, "spleen"),
        Part(liver(), "liver", LIVER, "liver"),
    ]


def trunk(fat_mm: float) -> list[Part]:
    """Couch, subcutaneous fat around the reference trunk (40 by 20 cm), muscle."""
    back = -100 - fat_mm
    return [
        Part(_box((-200, 200), (back - 25, back), (-_INF, _INF)), "couch", 0, "couch"),
        Part(Solid((0, 0, 0), (200 + fat_mm, 100 + fat_mm, _INF)), "fat", BODY, "trunk"),
        Part(Solid((0, 0, 0), (200, 100, _INF)), "muscle", BODY, "trunk"),
    ]
