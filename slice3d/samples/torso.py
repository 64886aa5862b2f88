"""The torso phantom as an image: what a CT scanner would show of equations, with the exact truth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import GeometryError, InputError
from slice3d.grid import Grid, describe
from slice3d.progress import Progress, silent
from slice3d.samples import anatomy
from slice3d.samples.anatomy import BODY, BONE, CORTICAL_SHELL_MM, GROUPS, HU, NAMES, TUMOR, Part, Tissue
from slice3d.samples.painting import paint
from slice3d.samples.solids import Solid, Vector
from slice3d.volume import Segmentation, Volume, freeze

_MOVABLE = ("liver", "spleen", "kidney_left", "kidney_right", "kidneys", "lungs", "aorta", "heart", "stomach", "colon",
            "bladder", "vena_cava")  # fmt: skip
_CHEST_TOP_MM, _FOV_BOTTOM_MM = 688.2, 10.2


@dataclass(frozen=True)
class TorsoPhantom:
    """One patient: the reference trunk, stretched, with organs moved, resized and re-coloured.

    body_scale: factor along right, front, up. fat_mm: subcutaneous fat around the trunk. organ_scale / organ_shift_mm:
    organ name → factor about its own centre / shift in RAS mm ("kidneys", "lungs" move both; also "heart", "stomach",
    "colon", "bladder"). tumor_mm: radius of the liver tumour, 0 for none; tumor_at: its centre in RAS mm of the
    unscaled phantom. hu: tissue → HU, overriding `anatomy.HU`. position_mm: where the middle of the trunk's base lies.

    Raises `InputError` for an unknown organ or tissue and for factors that are not positive.
    """

    body_scale: Vector = (1.0, 1.0, 1.0)
    fat_mm: float = 10.0
    organ_scale: Mapping[str, float] = field(default_factory=dict)
    organ_shift_mm: Mapping[str, Vector] = field(default_factory=dict)
    tumor_mm: float = 18.0
    tumor_at: Vector = (95.0, 15.0, 375.0)
    hu: Mapping[Tissue, float] = field(default_factory=dict)
    position_mm: Vector = (6.5, -171.0, -391.25)

    def __post_init__(self) -> None:
        for given, known, what in (
            (self.organ_scale, _MOVABLE, "organ"), (self.organ_shift_mm, _MOVABLE, "organ"), (self.hu, HU, "tissue"),
        ):  # fmt: skip
            unknown = sorted(set(given) - set(known))
            if unknown:
                raise InputError(f"no {what} {unknown[0]!r} in the phantom; it has: {', '.join(sorted(known))}")
        factors = [*self.body_scale, *self.organ_scale.values()]
        if not all(math.isfinite(f) and f > 0 for f in factors):
            raise InputError(f"phantom scale factors are {factors}; expected positive numbers")
        if self.fat_mm < 0 or self.tumor_mm < 0:
            raise InputError(f"fat is {self.fat_mm} mm, tumour radius {self.tumor_mm} mm; expected 0 or more")

    @classmethod
    def random(cls, seed: int) -> TorsoPhantom:
        """A different patient for every seed: sizes, places, fat, contrast and tumour drawn within plausible ranges."""
        rng = np.random.default_rng([seed, 0x706F])
        scale = {name: float(rng.uniform(0.82, 1.15)) for name in _MOVABLE}
        shift = {name: cast(Vector, tuple(rng.uniform(-8, 8, 3).tolist())) for name in _MOVABLE}
        contrast = float(rng.uniform(-0.8, 1.4))
        soft: tuple[Tissue, ...] = ("liver", "spleen", "kidney", "aorta", "vena_cava", "heart")
        hu: dict[Tissue, float] = {
            t: 55 + (HU[t] - 55) * max(contrast, 0.0) + float(rng.uniform(-12, 12)) for t in soft
        }
        hu["tumor"] = hu["liver"] + float(rng.choice([-1, 1], p=[0.85, 0.15]) * rng.uniform(25, 60))
        for tissue, spread in (
            ("fat", 12.0),
            ("muscle", 10.0),
            ("lung", 60.0),
            ("cortical_bone", 200.0),
            ("marrow", 80.0),
        ):
            hu[cast(Tissue, tissue)] = HU[cast(Tissue, tissue)] + float(rng.uniform(-spread, spread))
        return cls(
            body_scale=cast(Vector, tuple(rng.uniform((0.85, 0.85, 0.88), (1.12, 1.15, 1.08)).tolist())),
            fat_mm=float(rng.uniform(4, 38)),
            organ_scale=scale,
            organ_shift_mm=shift,
            tumor_mm=float(rng.uniform(6, 28)),
            tumor_at=cast(Vector, tuple(rng.uniform((55, -25, 345), (120, 35, 400)).tolist())),
            hu=hu,
            position_mm=cast(Vector, tuple(rng.uniform((-25, -200, -450), (25, -120, -300)).tolist())),
        )

    def parts(self) -> list[Part]:
        """Every solid in world RAS mm, in painting order: a later one replaces what it covers."""
        soft = [*anatomy.soft_parts(), *anatomy.organs()]
        moved = [replace(part, solid=self._moved(part)) for part in soft]
        bones = [self._in_body(solid) for solid in anatomy.skeleton()]
        skeleton = [Part(s, "cortical_bone", BONE, "skeleton") for s in bones]
        skeleton += [Part(s.shrunk(CORTICAL_SHELL_MM), "marrow", BONE, "skeleton") for s in bones]
        liver = next(p for p in moved if p.organ == "liver")
        rest = [p for p in moved if p.organ != "liver"]
        trunk = [replace(p, solid=self._in_body(p.solid)) for p in anatomy.trunk(self.fat_mm)]
        return [*trunk, *rest, *skeleton, liver, *self._tumor()]

    def _in_body(self, solid: Solid) -> Solid:
        return solid.transformed(self.body_scale, self.position_mm)

    def _moved(self, part: Part) -> Solid:
        factor = self.organ_scale.get(part.organ, 1.0)
        shift = np.asarray(self.organ_shift_mm.get(part.organ, (0.0, 0.0, 0.0)))
        anchor = self._anchor(part)
        return self._in_body(part.solid.transformed(factor, anchor * (1 - factor) + shift))

    @staticmethod
    def _anchor(part: Part) -> NDArray[np.float64]:
        low, high = part.solid.bounds()
        return (low + high) / 2

    def _tumor(self) -> list[Part]:
        if not self.tumor_mm:
            return []
        center = np.asarray(self.body_scale) * self.tumor_at + self.position_mm
        sphere = Solid(cast(Vector, tuple(center.tolist())), (self.tumor_mm,) * 3)
        return [Part(sphere, "tumor", TUMOR, "liver_tumor")]

    def grid(self, spacing_mm: Vector = (2.3, 2.3, 3.0)) -> Grid:
        """A square field of view around the trunk from the pelvis to above the lungs, voxels ordered as in DICOM."""
        sx, sy, sz = self.body_scale
        wide = 2 * max(sx * (200 + self.fat_mm), sy * (100 + self.fat_mm)) + 20
        n_x, n_y = math.ceil(wide / spacing_mm[0]), math.ceil(wide / spacing_mm[1])
        n_z = math.ceil((_CHEST_TOP_MM - _FOV_BOTTOM_MM) * sz / spacing_mm[2] - 1e-6)
        x, y, z = self.position_mm
        affine = np.diag([-spacing_mm[0], -spacing_mm[1], spacing_mm[2], 1.0])
        affine[:3, 3] = (
            x + spacing_mm[0] * (n_x - 1) / 2,
            y + spacing_mm[1] * (n_y - 1) / 2,
            z + _FOV_BOTTOM_MM * sz + spacing_mm[2] / 2,
        )
        return Grid((n_x, n_y, n_z), affine)


class Torso(NamedTuple):
    """What `torso` returns: the image, the true labels, and exact volumes in ml.

    `volumes_ml` counts a liver with its tumour, a body with everything in it, and only what the field of view holds.
    """

    volume: Volume
    segmentation: Segmentation
    volumes_ml: dict[str, float]


def torso(
    phantom: TorsoPhantom | None = None,
    *,
    seed: int = 0,
    spacing_mm: Vector = (2.3, 2.3, 3.0),
    noise_hu: float = 12.0,
    grid: Grid | None = None,
    progress: Progress = silent,
) -> Torso:
    """A CT of the phantom (int16 HU) with its truth.

    phantom: which patient; the reference trunk when None. seed: of the noise. grid: where to sample, axis-aligned;
    `phantom.grid(spacing_mm)` when None. noise_hu: standard deviation inside the body, less in air.

    Each voxel is the mean of 48 points (4 × 4 × 3), so borders show partial volume; it is labelled by the majority of
    its points. Volumes come from the equations (`Solid.volume_mm3`); where organs overlap, the part that the later one
    covers is counted by points. Raises `GeometryError` when `grid` is not aligned with the world axes.
    """
    phantom = phantom or TorsoPhantom()
    grid = grid or phantom.grid(spacing_mm)
    if grid.world_axes != (0, 1, 2) or not np.allclose(grid.affine[:3, :3], np.diag(np.diag(grid.affine[:3, :3]))):
        raise GeometryError(
            f"phantom grid is {describe(grid)}; expected axes along the world axes; resample for others"
        )
    parts = phantom.parts()
    painted = paint(parts, phantom.hu, grid, progress)
    noisy = painted.hu + _noise(painted.inside, noise_hu, seed)
    data = np.clip(np.rint(noisy), -1024, 3071).astype(np.int16)
    volume = Volume(freeze(data), grid, modality="CT", metadata={"SliceThickness": grid.spacing_mm[2]})
    truth = Segmentation(freeze(painted.labels), grid, NAMES, groups=GROUPS, metadata={"method": "analytic phantom"})
    return Torso(volume, truth, exact_volumes_ml(parts, grid, painted.lost_mm3))


def exact_volumes_ml(parts: list[Part], grid: Grid, lost_mm3: Mapping[int, float]) -> dict[str, float]:
    """Volume of every structure within the field of view, from the equations, less what other organs cover of it."""
    corners = grid.corners_mm()
    low, high = corners.min(axis=0), corners.max(axis=0)
    total = dict.fromkeys(NAMES, 0.0)
    for part in parts:
        # Muscle lies inside the fat that outlines the body, marrow inside its bone: neither adds to a volume.
        outline = part.label == BODY and part.organ == "trunk" and part.tissue == "fat"
        if outline or (part.label not in (0, BODY) and part.tissue != "marrow"):
            total[part.label] += part.solid.volume_mm3(low=low, high=high)
    return {name: (total[value] - lost_mm3.get(value, 0.0)) / 1000.0 for value, name in NAMES.items()}


def _noise(inside: NDArray[np.float32], noise_hu: float, seed: int) -> NDArray[np.float64]:
    """Gaussian noise, correlated in the slice as a reconstruction filter leaves it, weaker where X-rays meet little."""
    if not noise_hu:
        return np.zeros(inside.shape)
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng([seed, 0x7E57])
    white = rng.standard_normal(inside.shape)
    smooth = gaussian_filter(white, (0.6, 0.6, 0.0), mode="wrap")
    out: NDArray[np.float64] = smooth * (noise_hu / smooth.std()) * (0.4 + 0.6 * inside)
    return out
