"""Images of no particular contrast, painted from label maps: domain randomisation for networks that see any sequence.

Every tissue gets a random grey value, the head a random pose, scanner and slice thickness, so that a network can rely on
shape alone (Billot et al. 2023, doi:10.1016/j.media.2023.102789). One sample is a pure function of map, settings and
seed. Steps: `warped` (where each voxel comes from), `draw_contrast` and `paint` (what the tissues look like), `acquire`
(slice profile, noise and the way back to the network's grid), `normalised_by_percentiles`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]
Triple = tuple[int, int, int]
_GAP = 0.1  # least difference between families that are ordered
_CONTROL = 4  # network voxels between the points that carry the deformation


@dataclass(frozen=True)
class GeneratorSettings:
    """How far samples differ. Lengths in mm, angles in degrees, grey values as shares of the image's range.

    elastic_mm: width of the displacement, for features of `elastic_cell_mm`. thick: share of samples with one coarse
    axis of up to `slice_mm`; coarse: share with three coarse axes of up to `coarse_mm`. strip: share of samples in which
    all that is not to be found is removed; centred: share whose middle is the structures' within `jitter_mm`, so that a
    large sample holds them all (the others lie at a random structure or anywhere); cut: share with a smaller field of view. lesion: share with foreign patches.
    tied: share in which the tissues of one family look alike, as in real sequences; in the others each is drawn alone.
    ordered: share of those in which the families are as bright, one after another, as some real sequence has them.
    """

    scale: float = 0.12
    rotation_deg: float = 12.0
    shear: float = 0.03
    elastic_mm: tuple[float, ...] = (4.0, 1.2)
    elastic_cell_mm: tuple[float, ...] = (40.0, 16.0)
    thick: float = 0.45
    slice_mm: tuple[float, float] = (2.0, 8.0)
    coarse: float = 0.1
    coarse_mm: tuple[float, float] = (1.5, 4.0)
    noise: float = 0.05
    texture: float = 0.06
    bias: float = 0.3
    gamma: float = 0.3
    strip: float = 0.2
    centred: float = 0.85
    jitter_mm: float = 15.0
    cut: float = 0.1
    lesion: float = 0.2
    tied: float = 0.7
    ordered: float = 0.0
    flip: bool = True


@dataclass(frozen=True)
class LabelMap:
    """A label map made ready for painting, axes growing to R, A, S.

    index: (i, j, k) uint8, number of the label of each voxel. truth: per number the class to be found there (0: none).
    mirrored: the same for the mirror image, left and right exchanged. tissue: per number its tissue; labels of one
    tissue (left and right) look the same. families: tissue → (family, family, greatest share of the second). orders:
    families from dark to bright, one entry per kind of sequence; what is there twice is drawn twice as often.
    """

    name: str
    index: Array
    truth: Array
    mirrored: Array
    tissue: Array
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    families: Mapping[int, tuple[int, int, float]] = field(default_factory=dict)
    orders: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Contrast:
    """Grey value and its spread for every label number of a map, 0…1; gone: numbers that were taken out of the picture."""

    mean: Array
    spread: Array
    gone: Array


def generate(
    source: LabelMap, *, seed: Sequence[int] | int, shape: Triple, spacing_mm: tuple[float, float, float],
    settings: GeneratorSettings | None = None, around: tuple[float, ...] | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """(image float32 about 0…1, classes uint8), both of `shape` voxels of `spacing_mm`: one random sample.

    around: voxel of the map in the sample's middle; without it a random place.
    """
    how = settings or GeneratorSettings()
    rng = np.random.default_rng(seed)
    grid, flipped = warped(source, rng, shape, spacing_mm, how, around=around)
    contrast = draw_contrast(source, rng, how)
    numbers, image = paint(source, grid, contrast)
    classes: Array = (source.mirrored if flipped else source.truth)[numbers]
    _add_texture(image, numbers, contrast, spacing_mm, rng, how)
    if rng.random() < how.lesion:
        _add_lesions(image, numbers, spacing_mm, rng)
    image *= np.exp(rng.uniform(0, how.bias) * smooth(shape, rng.uniform(30, 90), spacing_mm, rng))
    image = acquire(image, *draw_voxels(spacing_mm, rng, how), spacing_mm, noise=rng.uniform(0, how.noise), rng=rng)
    if contrast.gone.any() and rng.random() < 0.7:
        image[contrast.gone[numbers]] = 0.0
    seen = _field_of_view(shape, rng) if rng.random() < how.cut else np.ones(shape, bool)
    image = normalised_by_percentiles(image, seen) ** np.exp(rng.normal(0, how.gamma))
    image *= rng.uniform(0.7, 1.15)
    image[~seen], classes[~seen] = 0.0, 0
    return image.astype(np.float32), classes


def warped(
    source: LabelMap, rng: np.random.Generator, shape: Triple, spacing_mm: tuple[float, float, float],
    how: GeneratorSettings, *, around: tuple[float, ...] | None = None,
) -> tuple[torch.Tensor, bool]:  # fmt: skip
    """(i, j, k, 3) voxel coordinates in the map for every voxel of the sample, and whether it is mirrored."""
    size = np.array(source.index.shape)
    centre = np.array([rng.uniform(0.2, 0.8) * n for n in size])
    choice = rng.random()
    if choice < how.centred:
        centre = _middle(source) + rng.uniform(-how.jitter_mm, how.jitter_mm, 3) / np.array(source.spacing_mm)
    elif choice < how.centred + 0.75 * (1 - how.centred):
        centre = _somewhere(source, rng) + rng.uniform(-0.2, 0.2, 3) * shape * np.array(spacing_mm) / np.array(
            source.spacing_mm
        )
    if around is not None:
        centre = np.array(around, float)
    angles = np.deg2rad(rng.uniform(-how.rotation_deg, how.rotation_deg, 3))
    zoom = np.exp(rng.uniform(-how.scale, how.scale) + rng.uniform(-how.scale / 3, how.scale / 3, 3))
    shear = np.eye(3) + rng.uniform(-how.shear, how.shear, (3, 3)) * (1 - np.eye(3))
    matrix = _rotation(angles) @ shear @ np.diag(1 / zoom)
    flipped = how.flip and bool(rng.random() < 0.5)
    if flipped:
        matrix = matrix @ np.diag([-1.0, 1.0, 1.0])
    cells = [max(2, (n - 1 + _CONTROL - 1) // _CONTROL + 1) for n in shape]
    ends = [
        (np.arange(c) * (n - 1) / (c - 1) - (n - 1) / 2) * s for c, n, s in zip(cells, shape, spacing_mm, strict=True)
    ]
    points = np.stack(np.meshgrid(*ends, indexing="ij"))
    moved = np.einsum("ab,bijk->aijk", matrix, points)
    step = tuple(float(e[1] - e[0]) for e in ends)
    for width, cell in zip(how.elastic_mm, how.elastic_cell_mm, strict=True):
        amount = width * rng.uniform(0, 1)
        moved += np.stack([amount * smooth(tuple(cells), cell, step, rng) for _ in range(3)])
    moved = moved / np.array(source.spacing_mm)[:, None, None, None] + centre[:, None, None, None]
    coarse = torch.from_numpy(moved.astype(np.float32))[None]
    full = torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear", align_corners=True)[0]
    return full.permute(1, 2, 3, 0), flipped


def _middle(source: LabelMap) -> Array:
    """The middle of the box around all that is to be found, in voxels."""
    found = source.truth[source.index[::4, ::4, ::4]] > 0
    ends = [np.flatnonzero(found.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    if not len(ends[0]):
        return np.array(source.index.shape) / 2
    return np.array([2.0 * (e[0] + e[-1]) for e in ends])


def _somewhere(source: LabelMap, rng: np.random.Generator) -> Array:
    """A voxel of a random class, so that small structures are seen as often as large ones."""
    numbers = rng.permutation(np.flatnonzero(source.truth))
    thin = source.index[::3, ::3, ::3]
    for number in numbers:
        spots = np.flatnonzero(thin == number)
        if len(spots):
            spot = np.unravel_index(int(rng.choice(spots)), thin.shape)
            return np.array(spot) * 3.0
    return np.array(source.index.shape) / 2


def _rotation(angles: Array) -> Array:
    from scipy.spatial.transform import Rotation

    out: Array = Rotation.from_euler("xyz", angles).as_matrix()
    return out


def smooth(
    shape: tuple[int, ...], cell_mm: float, spacing_mm: Sequence[float], rng: np.random.Generator
) -> Array:  # fmt: skip
    """(i, j, k) float32 noise of unit variance whose features are about `cell_mm` wide."""
    from scipy import ndimage

    factor = [max(1, int(cell_mm / 4 / s)) for s in spacing_mm]
    small = [max(2, -(-n // f) + 1) for n, f in zip(shape, factor, strict=True)]
    raw = rng.standard_normal(small, dtype=np.float32)
    sigma = [cell_mm / 2.5 / s / f for s, f in zip(spacing_mm, factor, strict=True)]
    field_: Array = ndimage.gaussian_filter(raw, sigma, mode="reflect")
    field_ /= max(float(field_.std()), 1e-6)
    if tuple(small) == tuple(shape):
        return field_
    out = torch.nn.functional.interpolate(
        torch.from_numpy(field_)[None, None], size=tuple(shape), mode="trilinear", align_corners=True
    )
    grown: Array = out[0, 0].numpy()
    return grown


def draw_contrast(source: LabelMap, rng: np.random.Generator, how: GeneratorSettings) -> Contrast:
    """Random grey values: families of tissues alike (`tied`), or each tissue on its own; air is dark, or nearly."""
    tissues = int(source.tissue.max()) + 1
    means = rng.uniform(0.0, 1.0, tissues)
    families = rng.uniform(0.0, 1.0, tissues)
    if rng.random() < how.tied:
        likeness = rng.uniform(0.01, 0.10)
        if source.orders and rng.random() < how.ordered:
            order = source.orders[int(rng.integers(len(source.orders)))]
            gap = _GAP * np.arange(len(order))
            families[list(order)] = np.sort(rng.uniform(0, 1 - gap[-1], len(order))) + gap
        for tissue, (first, second, most) in source.families.items():
            share = rng.uniform(0, most)
            means[tissue] = (1 - share) * families[first] + share * families[second] + rng.normal(0, likeness)
    spread = rng.uniform(0, how.texture, tissues)
    dark = 0.0 if rng.random() < 0.7 else rng.uniform(0, 0.1)
    mean, width = np.clip(means, 0, 1.2)[source.tissue], spread[source.tissue]
    mean[source.tissue == 0], width[source.tissue == 0] = dark, dark / 4
    gone = np.zeros(len(source.truth), bool)
    outside = (source.truth == 0) & (source.tissue != 0)
    choice = rng.random()
    if choice < how.strip:
        near = outside & np.isin(source.tissue, list(source.families))  # fluid around the organ may stay with it
        gone = (source.truth == 0) if rng.random() < 0.5 else (source.truth == 0) & ~near
    elif choice < 2 * how.strip:
        gone = outside & (rng.random(len(outside)) < 0.25)
    mean[gone], width[gone] = 0.0, 0.0
    return Contrast(mean.astype(np.float32), width.astype(np.float32), gone if choice < how.strip else gone & False)


def paint(source: LabelMap, grid: torch.Tensor, contrast: Contrast) -> tuple[Array, Array]:
    """(label numbers by nearest voxel, grey values by linear interpolation: edges are partial volumes)."""
    size = torch.tensor(source.index.shape)
    flat = grid.reshape(-1, 3)
    low = torch.clamp(flat.amin(0).floor().long() - 1, torch.zeros(3, dtype=torch.long), size - 2).tolist()
    high = torch.minimum(flat.amax(0).ceil().long() + 2, size).tolist()
    box = tuple(slice(a, max(b, a + 2)) for a, b in zip(low, high, strict=True))
    part = np.pad(source.index[box], 1)  # beyond the map there is air
    extent = torch.tensor(part.shape, dtype=torch.float32)
    inside = (grid - torch.tensor(low, dtype=torch.float32) + 1) * (2 / (extent - 1)) - 1
    wanted = inside.flip(-1)[None]  # grid_sample wants the last axis first
    both = torch.nn.functional.grid_sample(
        torch.from_numpy(part.astype(np.float32))[None, None], wanted, mode="nearest", padding_mode="border",
        align_corners=True,
    )  # fmt: skip
    grey = torch.nn.functional.grid_sample(
        torch.from_numpy(contrast.mean[part])[None, None], wanted, mode="bilinear", padding_mode="border",
        align_corners=True,
    )  # fmt: skip
    return both[0, 0].numpy().astype(np.uint8), grey[0, 0].numpy()


def _add_texture(
    image: Array, numbers: Array, contrast: Contrast, spacing_mm: Sequence[float], rng: np.random.Generator,
    how: GeneratorSettings,
) -> None:  # fmt: skip
    """Every tissue varies from voxel to voxel, and slowly."""
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    share = np.float32(rng.uniform(0, 1))
    slow = smooth(image.shape, rng.uniform(6, 25), spacing_mm, rng)
    image += contrast.spread[numbers] * (np.sqrt(1 - share) * grain + np.sqrt(share) * slow)
    np.clip(image, 0, None, out=image)


def _add_lesions(image: Array, numbers: Array, spacing_mm: Sequence[float], rng: np.random.Generator) -> None:
    """Patches that look unlike their tissue (white-matter lesions, tumours, scars): the classes there stay."""
    blobs = smooth(image.shape, rng.uniform(8, 40), spacing_mm, rng)
    where = (blobs > rng.uniform(1.6, 2.6)) & (numbers > 0)
    image[where] = 0.3 * image[where] + 0.7 * rng.uniform(0, 1.2)


def draw_voxels(
    spacing_mm: Sequence[float], rng: np.random.Generator, how: GeneratorSettings
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(slice distance, slice thickness) along each axis in mm: isotropic, one coarse axis, or three."""
    distance = [s * rng.uniform(0.67, 1.2) for s in spacing_mm]
    kind = rng.random()
    if kind < how.thick:
        distance[int(rng.integers(3))] = rng.uniform(*how.slice_mm)
    elif kind < how.thick + how.coarse:
        distance = [rng.uniform(*how.coarse_mm) for _ in range(3)]
    return tuple(distance), tuple(d * rng.uniform(0.7, 1.1) for d in distance)


def acquire(
    image: Array, distance_mm: Sequence[float], thickness_mm: Sequence[float], spacing_mm: Sequence[float], *,
    noise: float, rng: np.random.Generator,
) -> Array:  # fmt: skip
    """The image as measured with such voxels, noise included, back on its own grid by linear interpolation."""
    pairs = [
        _sampling(n, s, d, t) for n, s, d, t in zip(image.shape, spacing_mm, distance_mm, thickness_mm, strict=True)
    ]
    measured = _along_axes(image, [p[0] for p in pairs])
    real = measured + noise * rng.standard_normal(measured.shape, dtype=np.float32)
    imaginary = noise * rng.standard_normal(measured.shape, dtype=np.float32)
    return _along_axes(np.hypot(real, imaginary), [p[1] for p in pairs])


def _sampling(n: int, spacing: float, distance: float, thickness: float) -> tuple[Array, Array]:
    """(slices from voxels, voxels from slices) along one axis: Gaussian profile of that full width, linear way back."""
    distance = max(distance, spacing)
    count = max(2, round(n * spacing / distance))
    centres = (np.arange(count) + 0.5) * (n / count) - 0.5
    sigma = max(thickness / spacing / 2.355, 0.35)
    profile = np.exp(-0.5 * ((np.arange(n)[None] - centres[:, None]) / sigma) ** 2)
    profile /= profile.sum(axis=1, keepdims=True)
    where = np.clip((np.arange(n) - centres[0]) / (n / count), 0, count - 1)
    below = np.minimum(where.astype(int), count - 2)
    back = np.zeros((n, count), np.float32)
    back[np.arange(n), below] = 1 - (where - below)
    back[np.arange(n), below + 1] = where - below
    return profile.astype(np.float32), back


def _along_axes(image: Array, matrices: Sequence[Array]) -> Array:
    for axis, matrix in enumerate(matrices):
        image = np.moveaxis(np.tensordot(matrix, image, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(image)


def _field_of_view(shape: Triple, rng: np.random.Generator) -> Array:
    """A smaller box inside the sample, as slabs and cropped images are."""
    seen = np.zeros(shape, bool)
    box = [slice(None)] * 3
    for axis in rng.permutation(3)[: int(rng.integers(1, 3))]:
        width = max(4, int(shape[axis] * rng.uniform(0.3, 0.95)))
        start = int(rng.integers(0, shape[axis] - width + 1))
        box[axis] = slice(start, start + width)
    seen[tuple(box)] = True
    return seen


def normalised_by_percentiles(image: Array, seen: Array | None = None) -> Array:
    """As a package's scheme `percentiles` does it: the 0.5th percentile becomes 0, the 99.5th 1, cut to 0…1.5.

    seen: bool, the voxels that count.
    """
    low, high = np.percentile(image if seen is None else image[seen], (0.5, 99.5))
    out: Array = np.clip((image - low) / max(float(high - low), 1e-6), 0, 1.5).astype(np.float32)
    return out
