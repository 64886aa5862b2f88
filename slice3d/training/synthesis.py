"""CT painted from label maps: tissues get Hounsfield units by contrast phase, then blur, thick slices and noise.

The gaps that a label map leaves are filled: fat, abdominal wall and skin out to an outline, mesentery and bowel inside.
HU ranges: Lamba et al. 2014 (doi:10.1016/j.ejrad.2014.05.011) and usual radiology teaching; all are drawn widely, since
a network that must work on any scanner should not rely on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from slice3d.training.cases import Case, mapped
from slice3d.training.lesions import insert_lesions
from slice3d.training.noise import smooth_noise
from slice3d.training.structures import VALUES

Array = NDArray[Any]
DEPTH_UNIT_MM = 0.25
"""Step of `Atlas.depth`."""

PHASES: dict[str, dict[str, tuple[float, float]]] = {
    "native": {"liver": (55, 10), "spleen": (48, 6), "cortex": (34, 6), "medulla": (30, 6), "artery": (40, 6),
               "vein": (40, 6), "portal": (40, 6), "muscle": (52, 9), "gland": (40, 9), "heart": (42, 6)},
    "arterial": {"liver": (70, 12), "spleen": (120, 25), "cortex": (170, 35), "medulla": (75, 25), "artery": (310, 70),
                 "vein": (70, 25), "portal": (85, 30), "muscle": (58, 9), "gland": (90, 20), "heart": (240, 80)},
    "portal": {"liver": (108, 15), "spleen": (120, 14), "cortex": (190, 30), "medulla": (150, 40), "artery": (155, 25),
               "vein": (140, 25), "portal": (170, 22), "muscle": (62, 9), "gland": (95, 15), "heart": (150, 25)},
    "late": {"liver": (95, 12), "spleen": (98, 12), "cortex": (150, 30), "medulla": (170, 50), "artery": (112, 15),
             "vein": (112, 15), "portal": (115, 15), "muscle": (60, 9), "gland": (80, 12), "heart": (110, 15)},
}  # fmt: skip
"""Contrast phase → tissue → (mean, standard deviation between patients) in HU."""

_TISSUE_OF: dict[str, tuple[int, ...]] = {
    "spleen": (1,), "liver": (5,), "kidney": (2, 3), "cyst": (23, 24), "gallbladder": (4,), "hollow": (6, 15, 18, 19),
    "colon": (20,), "gland": (7, 8, 9, 17, 22), "lung": (10, 11, 12, 13, 14), "trachea": (16,), "bladder": (21,),
    "bone": (*range(25, 51), *range(69, 79), *range(91, 117)), "heart": (51, 61),
    "artery": (52, 54, 55, 56, 57, 58, 65, 66),
    "vein": (59, 60, 62, 63, 67, 68, 53), "portal": (64,), "cord": (79, 90), "muscle": tuple(range(80, 90)),
    "cartilage": (117,),
}  # fmt: skip


@dataclass(frozen=True)
class Atlas:
    """A label map made ready for synthesis, at 1.5 mm.

    labels: (i, j, k) uint8 TotalSegmentator numbers. depth: uint8, distance of a voxel from its structure's surface in
    steps of `DEPTH_UNIT_MM`. outline_mm, cavity_mm: float16 at half the resolution, signed distance to the hull of
    everything labelled and of the viscera (negative inside).
    """

    name: str
    labels: Array
    depth: Array
    outline_mm: Array
    cavity_mm: Array
    spacing_mm: float = 1.5


@dataclass(frozen=True)
class Deformation:
    """How far geometry may go: scale is a log-normal width, rotation in degrees, elastic displacement in mm."""

    scale: float = 0.10
    rotation_deg: float = 8.0
    elastic_mm: float = 7.0
    grid_mm: float = 45.0


def make_atlas(name: str, labels: Array, *, spacing_mm: float = 1.5, pad_mm: float = 45.0) -> Atlas:
    """Hulls and depths of one label map (TotalSegmentator numbers, axes growing to R, A, S)."""
    from scipy import ndimage

    pad = 2 * int(pad_mm / spacing_mm / 2)
    labels = np.pad(labels.astype(np.uint8), ((pad, pad), (pad, pad), (0, 0)))
    labels = np.pad(labels, [(0, n % 2) for n in labels.shape])
    depth = np.zeros(labels.shape, np.uint8)
    for members in _TISSUE_OF.values():
        mask = np.isin(labels, members)
        if mask.any():
            box = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in ndimage.find_objects(mask.astype(np.uint8))[0])
            distance = ndimage.distance_transform_edt(mask[box]) * spacing_mm
            depth[box] = np.where(mask[box], np.clip(distance / DEPTH_UNIT_MM, 0, 255), depth[box]).astype(np.uint8)
    half = labels[::2, ::2, ::2]
    viscera = np.isin(half, [*range(1, 25), *range(51, 69), *range(26, 45)])
    outline = _signed_distance(_hull_by_slice(half > 0), 2 * spacing_mm)
    cavity = _signed_distance(_hull_by_slice(viscera), 2 * spacing_mm)
    return Atlas(name, labels, depth, outline, cavity, spacing_mm)


def _hull_by_slice(mask: Array) -> Array:
    from scipy import ndimage
    from skimage.morphology import convex_hull_image

    out = np.zeros(mask.shape, bool)
    for k in range(mask.shape[2]):
        if np.count_nonzero(mask[:, :, k]) > 10:
            out[:, :, k] = convex_hull_image(mask[:, :, k])  # type: ignore[no-untyped-call]
    smooth: Array = ndimage.gaussian_filter(out.astype(np.float32), (2, 2, 4)) > 0.5
    return smooth | out if smooth.any() else out


def _signed_distance(mask: Array, spacing_mm: float) -> Array:
    from scipy import ndimage

    if not mask.any():
        return np.full(mask.shape, 99.0, np.float16)
    outside = ndimage.distance_transform_edt(~mask)
    inside = ndimage.distance_transform_edt(mask)
    out: Array = ((outside - inside) * spacing_mm).clip(-200, 200).astype(np.float16)
    return out


def synthesise(
    atlas: Atlas, *, seed: int, shape: tuple[int, int, int], spacing_mm: float | None = None,
    deformation: Deformation | None = None,
) -> Case:  # fmt: skip
    """One CT of `shape` voxels, painted on voxels of half their size from a warped crop of the atlas.

    spacing_mm: of the case; twice the atlas's where it is None. The same seed gives the same case; at another spacing the
    same patient in the same place (but for lesions), through another scanner: its blur and noise are drawn in voxels.
    """
    rng = np.random.default_rng(seed)
    fine = (2 * shape[0], 2 * shape[1], 2 * shape[2])
    spacing = spacing_mm or 2 * atlas.spacing_mm
    half = spacing / 2
    grid = _sampling_grid(atlas, fine, half, rng, deformation or Deformation())
    labels = _sample(atlas.labels, grid, "nearest").astype(np.int64)
    depth = _sample(atlas.depth, grid, "nearest") * np.float32(DEPTH_UNIT_MM)
    coarse = grid[:, ::2, ::2, ::2]
    outline, cavity = (_doubled(_sample(a, coarse, "bilinear")) for a in (atlas.outline_mm, atlas.cavity_mm))
    beyond = _doubled((coarse.abs() > 1.0).any(dim=-1)[0].numpy().transpose(2, 1, 0).astype(np.float32)) > 0.5
    hu, body = _paint(labels, depth, outline, cavity, half, rng)
    classes = mapped(labels, "totalsegmentator-v2")
    classes[body & (classes == 0)] = VALUES["body"]
    if rng.random() < 0.5:
        insert_lesions(hu, classes, VALUES["liver"], VALUES["liver_tumor"], (half,) * 3, rng)
    hu[beyond], classes[beyond] = -1000.0, 0
    pooled = torch.nn.functional.avg_pool3d(torch.from_numpy(hu)[None, None], 2)[0, 0].numpy()
    image = _acquire(pooled, _pooled_labels(classes), spacing, rng)
    return Case(f"{atlas.name}-{seed}", image, _pooled_labels(classes), (spacing, spacing, spacing))


def _sampling_grid(
    atlas: Atlas, shape: tuple[int, int, int], spacing_mm: float, rng: np.random.Generator, how: Deformation
) -> torch.Tensor:
    """(1, K, J, I, 3) coordinates for `grid_sample` on arrays stored (k, j, i): x along i. spacing_mm: of the samples."""
    size = np.array(atlas.labels.shape, float)
    step = spacing_mm / atlas.spacing_mm
    room = np.maximum(size - np.array(shape) * step, 0) / 2
    centre = size / 2 + rng.uniform(-1, 1, 3) * room * (0.3, 0.3, 1.0)
    angles = np.deg2rad(rng.normal(0, how.rotation_deg / 2, 3))
    scale = np.exp(rng.normal(0, how.scale) + rng.normal(0, how.scale / 2, 3))
    matrix = _rotation(angles) @ np.diag(step / scale)
    axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in shape]
    points = torch.stack(torch.meshgrid(axes[2], axes[1], axes[0], indexing="ij")[::-1], dim=-1)
    cells = [max(4, int(n * spacing_mm / how.grid_mm) + 3) for n in shape[::-1]]
    wobble = torch.from_numpy(rng.normal(0, how.elastic_mm / atlas.spacing_mm, (1, 3, *cells)).astype(np.float32))
    shift = torch.nn.functional.interpolate(wobble, size=shape[::-1], mode="trilinear", align_corners=True)[0]
    points = points @ torch.from_numpy(matrix.T.astype(np.float32)) + shift.permute(1, 2, 3, 0)
    points = points + torch.tensor(centre, dtype=torch.float32)
    return (2 * (points + 0.5) / torch.tensor(size, dtype=torch.float32) - 1)[None]


def _rotation(angles: Array) -> Array:
    from scipy.spatial.transform import Rotation

    out: Array = Rotation.from_euler("xyz", angles).as_matrix()
    return out


def _sample(array: Array, grid: torch.Tensor, mode: str) -> Array:
    source = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 1, 0)).astype(np.float32))[None, None]
    padding = "border" if mode == "bilinear" else "zeros"
    out = torch.nn.functional.grid_sample(source, grid, mode=mode, padding_mode=padding, align_corners=False)
    return out[0, 0].numpy().transpose(2, 1, 0)


def _doubled(array: Array) -> Array:
    source = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None, None]
    return torch.nn.functional.interpolate(source, scale_factor=2, mode="trilinear")[0, 0].numpy()


def _means(rng: np.random.Generator) -> dict[str, float]:
    """HU of each tissue in this patient and phase."""
    phase = PHASES[str(rng.choice(list(PHASES), p=[0.3, 0.2, 0.35, 0.15]))]
    wide = 1.0 if rng.random() < 0.75 else 2.0
    means = {tissue: mean + wide * sd * float(rng.normal()) for tissue, (mean, sd) in phase.items()}
    if rng.random() < 0.15:
        means["liver"] -= float(rng.uniform(20, 60))
    means |= {
        "fat": float(rng.normal(-102, 8)), "lung": float(rng.normal(-830, 50)), "cyst": float(rng.normal(8, 6)),
        "gallbladder": float(rng.normal(12, 10)), "bladder": float(rng.normal(8, 8)), "cord": float(rng.normal(35, 8)),
        "cartilage": float(rng.normal(100, 30)), "trachea": -990.0, "compact": float(rng.uniform(250, 1200)),
        "marrow": float(rng.uniform(-60, 280)), "skin": float(rng.normal(30, 20)), "wall": float(rng.normal(55, 20)),
    }  # fmt: skip
    return means


def _paint(
    labels: Array, depth: Array, outline: Array, cavity: Array, spacing_mm: float, rng: np.random.Generator
) -> tuple[Array, Array]:
    """(HU float32, body bool) at the fine resolution, without texture or noise."""
    means = _means(rng)
    table = np.full(256, means["muscle"], np.float32)
    for tissue, members in _TISSUE_OF.items():
        table[list(members)] = means.get(tissue, means["muscle"])
    hu = table[labels]
    _fill(hu, labels, outline, cavity, spacing_mm, means, rng)
    _paint_kidneys(hu, labels, depth, spacing_mm, means, rng)
    _paint_aorta(hu, labels, depth, spacing_mm, rng)
    _paint_bones(hu, labels, depth, spacing_mm, means, rng)
    _paint_lungs(hu, labels, spacing_mm, rng)
    _paint_bowel(hu, labels, depth, spacing_mm, means, rng)
    _paint_vessels(hu, labels == 5, spacing_mm, means["portal"], rng)
    _paint_heart(hu, labels, spacing_mm, means["heart"], rng)
    inside = (outline < _fat_mm(rng)) | (labels > 0)
    hu[~inside] = -1000.0
    if rng.random() < 0.6:
        _add_table(hu, inside, spacing_mm, rng)
    return hu, inside


def _fat_mm(rng: np.random.Generator) -> float:
    return float(rng.choice([rng.uniform(3, 12), rng.uniform(8, 40)]))


def _fill(
    hu: Array, labels: Array, outline: Array, cavity: Array, spacing_mm: float, means: dict[str, float],
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """Unlabelled tissue: visceral fat with soft strands, abdominal wall, muscle between bones, fat under the skin."""
    empty = labels == 0
    blobs = smooth_noise(labels.shape, rng.uniform(8, 20) / spacing_mm, rng)
    soft = blobs > rng.uniform(-0.3, 1.6)
    tissue = np.where(soft, means["muscle"] + rng.normal(0, 10), means["fat"]).astype(np.float32)
    wall = (cavity >= 0) & (cavity < rng.uniform(6, 20))
    tissue[wall & (blobs < rng.uniform(0.6, 2.0))] = means["muscle"]
    between = (cavity >= 0) & ~wall & (outline < -rng.uniform(0, 12))
    strands = smooth_noise(labels.shape, 25 / spacing_mm, rng) < rng.uniform(-0.5, 1.5)
    tissue[between] = np.where(strands[between], means["muscle"], means["fat"])
    tissue[~wall & ~between & (cavity >= 0)] = means["fat"]
    hu[empty] = tissue[empty]


def _paint_kidneys(
    hu: Array, labels: Array, depth: Array, spacing_mm: float, means: dict[str, float], rng: np.random.Generator
) -> None:
    """Cortex and medulla, now and then both as bright as the liver beside them; what lies in the sinus.

    The sinus is no kidney: fat, vessels and the renal pelvis, whose urine is dark, or bright once contrast is excreted.
    """
    from scipy import ndimage

    kidney = np.isin(labels, _TISSUE_OF["kidney"])
    if not kidney.any():
        return
    cortex, medulla = means["cortex"], means["medulla"]
    if rng.random() < 0.2:
        cortex, medulla = (means["liver"] + float(rng.normal(0, 15)) for _ in range(2))
    hu[kidney] = np.where(depth[kidney] < rng.uniform(5, 9), cortex, medulla)
    noise = smooth_noise(labels.shape, rng.uniform(6, 14) / spacing_mm, rng)
    urine = float(rng.choice([means["cyst"], rng.uniform(150, 900)], p=[0.8, 0.2]))
    reach = max(1, round(rng.uniform(6, 11) / (2 * spacing_mm)))
    vessel, pelvis = rng.uniform(0.0, 1.5, 2)
    for side in (2, 3):
        for part in ndimage.find_objects((labels == side).astype(np.uint8)):
            half = (labels[part] == side)[::2, ::2, ::2]
            closed = ndimage.binary_closing(np.pad(half, reach), ndimage.generate_binary_structure(3, 2), reach)
            inner = closed[(slice(reach, -reach),) * 3].repeat(2, 0).repeat(2, 1).repeat(2, 2)
            sinus = inner[tuple(slice(n) for n in labels[part].shape)] & (labels[part] == 0)
            at = noise[part]
            content = np.where(at > vessel, means["vein"], np.where(at < -pelvis, urine, means["fat"]))
            hu[part][sinus] = content[sinus]


def _paint_aorta(hu: Array, labels: Array, depth: Array, spacing_mm: float, rng: np.random.Generator) -> None:
    """Plaques of lime in the wall of every third aorta: aorta as well, though as bright as bone."""
    wall = (labels == 52) & (depth < rng.uniform(1.0, 3.0))
    if rng.random() < 0.35 and wall.any():
        lime = wall & (smooth_noise(labels.shape, rng.uniform(5, 12) / spacing_mm, rng) > rng.uniform(0.3, 2.0))
        hu[lime] = rng.uniform(250, 1100)


def _paint_bones(
    hu: Array, labels: Array, depth: Array, spacing_mm: float, means: dict[str, float], rng: np.random.Generator
) -> None:
    """A compact shell of varying thickness over marrow that differs between bones and within them.

    In old patients the shell is thinner than a voxel and the marrow as dark as muscle or fat: in the first lumbar
    vertebra less than 110 HU points to osteoporosis (Pickhardt et al. 2013, doi:10.7326/0003-4819-158-8-201304160-00003).
    Parts of a bone can be all fat while the next vertebra is dense: the wings of a sacrum, the shaft of a femur.
    """
    bone = np.isin(labels, _TISSUE_OF["bone"])
    if not bone.any():
        return
    slow, medium, fine = (smooth_noise(labels.shape, mm / spacing_mm, rng)[bone] for mm in (45, 12, 5))
    marrow = means["marrow"] + rng.uniform(0, 90) * slow + rng.uniform(5, 45) * medium + rng.uniform(0, 35) * fine
    if rng.random() < 0.6:
        void = smooth_noise(labels.shape, rng.uniform(20, 50) / spacing_mm, rng)[bone] > rng.uniform(0.0, 1.6)
        marrow[void] = rng.uniform(-95, 30) + rng.uniform(0, 40) * medium[void] + rng.uniform(0, 35) * fine[void]
    thickness = rng.uniform(0.7, 3.0) * (1 + rng.uniform(0, 0.5) * medium)
    compact = means["compact"] * (1 + rng.uniform(0, 0.3) * slow)
    compact = np.maximum(compact, marrow)
    # a shell thinner than a voxel weighs as much as it fills; where voxels are smaller than the steps that `depth` came in,
    # by their difference less than that: 0.25 mm for the cases of `ct-torso`
    share = np.clip((thickness - depth[bone]) / spacing_mm + 1, 0, 1)
    hu[bone] = share * compact + (1 - share) * marrow


def _paint_lungs(hu: Array, labels: Array, spacing_mm: float, rng: np.random.Generator) -> None:
    lung = np.isin(labels, _TISSUE_OF["lung"])
    if not lung.any():
        return
    first, second = (smooth_noise(labels.shape, rng.uniform(9, 16) / spacing_mm, rng) for _ in range(2))
    vessels = lung & (first**2 + second**2 < rng.uniform(0.02, 0.08))
    gradient = np.linspace(60, -60, labels.shape[1], dtype=np.float32)[None, :, None] * rng.uniform(0, 1)
    hu += np.where(lung, gradient + 30 * first, 0).astype(np.float32)
    hu[vessels] = rng.uniform(-300, 60)
    if rng.random() < 0.25:
        cloud = smooth_noise(labels.shape, 40 / spacing_mm, rng) > rng.uniform(1.2, 2.2)
        hu[lung & cloud] = rng.uniform(-500, 50)


def _paint_bowel(
    hu: Array, labels: Array, depth: Array, spacing_mm: float, means: dict[str, float], rng: np.random.Generator
) -> None:
    """Wall, fluid or oral contrast at the back, gas at the front, stool in the colon."""
    for members, gas in ((_TISSUE_OF["hollow"], 0.8), (_TISSUE_OF["colon"], 0.2)):
        bowel = np.isin(labels, members)
        if not bowel.any():
            continue
        noise = smooth_noise(labels.shape, rng.uniform(15, 40) / spacing_mm, rng)[bowel]
        grain = smooth_noise(labels.shape, 5 / spacing_mm, rng)[bowel]
        fluid = rng.uniform(5, 45) if rng.random() < 0.65 else rng.uniform(100, 450)
        content = np.where(noise > gas + rng.uniform(-0.4, 1.0), -900.0, fluid)
        if members == _TISSUE_OF["colon"]:
            content = np.where((noise < 0) & (grain > 0), rng.uniform(-400, -50), content)
        wall = depth[bowel] < rng.uniform(1.5, 4.0)
        hu[bowel] = np.where(wall, means["wall"], content)


def _paint_vessels(hu: Array, organ: Array, spacing_mm: float, value: float, rng: np.random.Generator) -> None:
    if not organ.any():
        return
    first, second = (smooth_noise(hu.shape, rng.uniform(16, 28) / spacing_mm, rng) for _ in range(2))
    tubes = organ & (first**2 + second**2 < rng.uniform(0.01, 0.05))
    hu[tubes] = value


def _paint_heart(hu: Array, labels: Array, spacing_mm: float, value: float, rng: np.random.Generator) -> None:
    """Chambers that contrast has reached, brighter than bone marrow in the arterial phase, next to some it has not."""
    heart = np.isin(labels, _TISSUE_OF["heart"])
    if not heart.any():
        return
    bright = smooth_noise(labels.shape, rng.uniform(30, 60) / spacing_mm, rng)[heart] > rng.uniform(-0.8, 0.8)
    hu[heart] = np.where(bright, value * rng.uniform(1.0, 2.2), max(40.0, value * rng.uniform(0.4, 1.0)))


def _add_table(hu: Array, inside: Array, spacing_mm: float, rng: np.random.Generator) -> None:
    """A curved couch plate behind the patient."""
    columns = inside.any(axis=2)
    back = np.flatnonzero(columns.any(axis=0))
    if len(back) == 0:
        return
    i = np.arange(hu.shape[0]) - hu.shape[0] / 2
    sag = rng.uniform(0, 40) / spacing_mm * (i / (hu.shape[0] / 2)) ** 2
    level = back[0] - rng.uniform(2, 25) / spacing_mm + sag
    j = np.arange(hu.shape[1])
    plate = np.abs(j[None, :] - level[:, None]) < rng.uniform(1.0, 4.0) / spacing_mm
    where = plate[:, :, None] & ~inside
    hu[where] = rng.uniform(-300, 200)
    if rng.random() < 0.4:  # dense rails along its edges
        for edge in rng.uniform(0.1, 0.9, 2) * hu.shape[0]:
            rail = np.abs(np.arange(hu.shape[0]) - edge) < rng.uniform(1.0, 4.0) / spacing_mm
            hu[where & rail[:, None, None]] = rng.uniform(200, 1500)


def _pooled_labels(classes: Array) -> Array:
    best: Array | None = None
    out = np.zeros(tuple(n // 2 for n in classes.shape), np.uint8)
    for value in np.unique(classes):
        share = torch.nn.functional.avg_pool3d(torch.from_numpy((classes == value).astype(np.float32))[None, None], 2)
        plane = share[0, 0].numpy()
        if best is None:
            best, out = plane.copy(), np.full(plane.shape, value, np.uint8)
        else:
            out[plane > best] = value
            np.maximum(best, plane, out=best)
    return out


def _acquire(hu: Array, labels: Array, spacing_mm: float, rng: np.random.Generator) -> Array:
    """The scanner: tissue texture, slow shading, in-plane kernel, slice profile, correlated noise. int16 HU."""
    from scipy import ndimage

    inside = labels > 0
    texture = rng.uniform(0, 9) * smooth_noise(hu.shape, 2.0, rng) + rng.uniform(0, 6) * smooth_noise(hu.shape, 5, rng)
    shading = rng.uniform(0, 8) * smooth_noise(hu.shape, 40, rng)
    out = hu + np.where(inside, texture + shading, 0)
    thick = float(rng.choice([0.0, 0.0, rng.uniform(0.5, 2.0)]))
    kernel = rng.uniform(0.0, 0.7)
    out = ndimage.gaussian_filter(out, (kernel, kernel, 0.5 * thick), mode="nearest")
    noise = ndimage.gaussian_filter(rng.standard_normal(hu.shape).astype(np.float32), rng.uniform(0, 0.8))
    noise *= float(np.exp(rng.uniform(np.log(3), np.log(40)))) / max(1e-6, float(noise.std()))
    image: Array = np.rint(np.clip(out + noise, -1024, 3071)).astype(np.int16)
    return image
