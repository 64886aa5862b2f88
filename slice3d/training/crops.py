"""Random crops of cases: crop number n is a function of the seed and n alone, so a run resumes exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from slice3d.errors import InputError
from slice3d.training.deformation import RandDeformd
from slice3d.training.lesions import insert_lesions
from slice3d.training.marrow import fade_marrow
from slice3d.training.settings import AugmentSettings, IntensitySettings, TrainSettings, check_hounsfield

Array = NDArray[Any]


class Pool:
    """Cases saved by `cases.save`, in folders that are drawn from with given weights.

    Volumes are memory-mapped. folders: path → weight. without: names of cases that must not be drawn.
    """

    def __init__(self, folders: Mapping[Path, float], *, without: Sequence[str] = ()) -> None:
        self.groups: list[tuple[float, list[Path]]] = []
        for folder, weight in folders.items():
            names = sorted(p.name[: -len(".json")] for p in folder.glob("*.json"))
            kept = [folder / n for n in names if n not in without and (folder / f"{n}.labels.npy").exists()]
            if kept and weight > 0:
                self.groups.append((weight, kept))
        if not self.groups:
            raise InputError("no training cases found; prepare the pool first")

    @property
    def names(self) -> list[str]:
        """Every case by name."""
        return [path.name for _, paths in self.groups for path in paths]

    def draw(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """(image, labels) of a random case, memory-mapped."""
        weights = np.array([w for w, _ in self.groups])
        _, paths = self.groups[int(rng.choice(len(weights), p=weights / weights.sum()))]
        path = paths[int(rng.integers(len(paths)))]
        return (
            np.load(path.with_name(path.name + ".image.npy"), mmap_mode="r"),
            np.load(path.with_name(path.name + ".labels.npy"), mmap_mode="r"),
        )


class CropDataset(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Map-style: item n is (image (1, …) normalised float32, labels (…) int64) of crop n."""

    def __init__(self, pool: Pool, settings: TrainSettings) -> None:
        check_hounsfield(settings.augment, settings.intensity)
        self.pool = pool
        self.settings = settings
        self.transforms = _transforms(settings.augment, settings.patch_size, settings.spacing_mm)

    def __len__(self) -> int:
        return self.settings.steps * self.settings.batch_size * 4096

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng([self.settings.seed, number])
        image, labels = self.pool.draw(rng)
        size = _with_margin(self.settings.patch_size, self.settings.augment)
        how = self.settings.intensity
        air = how.clip[0] if how.scheme == "clip_zscore" else float(image.min())
        hu, truth = _crop(image, labels, size, rng, air=air, wanted=max(self.settings.labels))
        for organ, lesion in self.settings.augment.lesions.items():
            if rng.random() < self.settings.augment.lesion_share:
                insert_lesions(hu, truth, organ, lesion, self.settings.spacing_mm, rng)
        for bone, share in self.settings.augment.marrow.items():
            if rng.random() < share:
                fade_marrow(hu, truth, bone, self.settings.spacing_mm, rng)
        if self.settings.augment.organs and rng.random() < 0.5:
            scale = how.std if how.scheme == "clip_zscore" else 1
            _recolour(hu, truth, self.settings.augment.organs, rng, scale=scale, lesions=self.settings.augment.lesions)
        if rng.random() < self.settings.augment.cut_field_of_view:
            _cut(hu, truth, rng, air=air)
        return _augmented(self.transforms, normalised(hu, how), truth, rng)


def _with_margin(patch: Sequence[int], how: AugmentSettings) -> tuple[int, ...]:
    """The size of what is cut, so that little from outside of it comes into a patch that is scaled and turned."""
    across, deep, high = (n * (1.0 + how.scale + 0.05) for n in patch)
    turns = np.deg2rad(np.linspace(0, how.turn_deg, 19))
    wide, long = (a * np.abs(np.cos(turns)) + b * np.abs(np.sin(turns)) for a, b in ((across, deep), (deep, across)))
    return int(np.ceil(wide.max())), int(np.ceil(long.max())), int(np.ceil(high))


def _crop(
    image: Array, labels: Array, size: Sequence[int], rng: np.random.Generator, *, air: float, wanted: int
) -> tuple[Array, Array]:
    """A box of `size` around a voxel of a random class up to `wanted` (two of three times) or anywhere; air outside."""
    centre = np.array([rng.integers(n) for n in labels.shape])
    if rng.random() < 0.67:
        thin = labels[::3, ::3, ::3]
        values = np.unique(thin)
        values = values[(values > 0) & (values <= wanted)]
        if len(values):
            spots = np.flatnonzero(thin.ravel() == rng.choice(values))
            spot = np.unravel_index(int(rng.choice(spots)), thin.shape)
            centre = np.array(spot) * 3
    shape = np.array(labels.shape)
    slack = np.array([rng.integers(-n // 4, n // 4 + 1) for n in size])
    start = centre - np.array(size) // 2 + slack
    # stay over the volume where it is larger than the box, and hold all of it where it is smaller
    low, high = np.minimum(0, shape - size), np.maximum(0, shape - size)
    start = np.clip(start, low, high)
    hu = np.full(size, air, np.float32)
    truth = np.zeros(size, np.uint8)
    source = tuple(slice(max(0, a), min(n, a + s)) for a, n, s in zip(start, shape, size, strict=True))
    target = tuple(slice(s.start - a, s.stop - a) for s, a in zip(source, start, strict=True))
    hu[target], truth[target] = image[source], labels[source]
    return hu, truth


def _recolour(
    hu: Array, truth: Array, spread: Mapping[int, float], rng: np.random.Generator, *, scale: float,
    lesions: Mapping[int, int] | None = None,
) -> None:  # fmt: skip
    """Shift the intensity of each structure by an amount of its own, fading over a voxel: another contrast phase.

    lesions: organ → its lesions, which are shifted with it before their own shift: they stay to be seen.
    """
    from scipy import ndimage

    offsets = np.zeros(256, np.float32)
    for label, deviation in spread.items():
        offsets[label] = scale * deviation * rng.normal()
    for organ, lesion in (lesions or {}).items():
        offsets[lesion] += offsets[organ]
    hu += ndimage.uniform_filter(offsets[truth], 3)


def _cut(hu: Array, truth: Array, rng: np.random.Generator, *, air: float) -> None:
    """Blank what lies outside a smaller reconstructed field of view: a box, or in plane a disc."""
    shape = hu.shape
    outside = np.zeros(shape, bool)
    for axis in rng.permutation(3)[: int(rng.integers(1, 3))]:
        n = shape[axis]
        width = int(n * rng.uniform(0.35, 0.9))
        start = int(rng.integers(0, n - width + 1))
        index = np.arange(n)
        view = [None, None, None]
        view[axis] = slice(None)  # type: ignore[call-overload]
        outside |= ((index < start) | (index >= start + width))[tuple(view)]
    if rng.random() < 0.3:
        i, j = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape[:2]], indexing="ij")
        outside |= (i**2 + j**2 > rng.uniform(0.6, 1.2))[:, :, None]
    hu[outside], truth[outside] = air, 0


def normalised(hu: Array, how: IntensitySettings) -> Array:
    """What the network sees; only HU are normalised here, other images were when they were prepared."""
    if how.scheme != "clip_zscore":
        return hu.astype(np.float32)
    return ((np.clip(hu, *how.clip) - how.mean) / how.std).astype(np.float32)


def _angles(how: AugmentSettings, spacing_mm: Sequence[float]) -> tuple[float, float, float]:
    """Largest turn about each axis, in radians of voxels.

    Where these are longer than wide it is as much less as keeps what lies in one slice near it: counted in voxels, the
    full angle would shear a patient by many times that.
    """
    out = []
    for axis, deg in enumerate((how.rotate_deg, how.rotate_deg, max(how.rotate_deg, how.turn_deg))):
        a, b = (s for n, s in enumerate(spacing_mm) if n != axis)
        out.append(float(np.deg2rad(deg)) * min(a, b) / max(a, b))
    return out[0], out[1], out[2]


def _transforms(how: AugmentSettings, patch: Sequence[int], spacing_mm: Sequence[float]) -> Any:
    from monai.transforms import compose as mc
    from monai.transforms.croppad import dictionary as mp
    from monai.transforms.intensity import dictionary as mi
    from monai.transforms.spatial import dictionary as ms

    return mc.Compose(
        [
            ms.RandAffined(["image", "label"], prob=0.7, rotate_range=_angles(how, spacing_mm),
                           scale_range=(how.scale,) * 3, spatial_size=patch,
                           mode=["bilinear", "nearest"], padding_mode="border", cache_grid=True),
            mp.CenterSpatialCropd(["image", "label"], roi_size=patch),
            *([RandDeformd(["image"], ["label"], patch, spacing_mm, deform_mm=how.deform_mm)] if how.deform_mm > 0 else []),
            *[ms.RandFlipd(["image", "label"], prob=0.5, spatial_axis=axis) for axis in how.flip_axes],
            mi.RandGaussianSmoothd("image", prob=0.2, sigma_x=(0.2, how.blur), sigma_y=(0.2, how.blur),
                                   sigma_z=(0.2, 2 * how.blur)),
            ms.RandSimulateLowResolutiond("image", prob=how.low_resolution, zoom_range=(0.5, 1.0)),
            mi.RandGaussianNoised("image", prob=0.3, std=how.noise),
            mi.RandScaleIntensityd("image", prob=0.5, factors=how.gain),
            mi.RandShiftIntensityd("image", prob=0.5, offsets=how.shift),
            mi.RandAdjustContrastd("image", prob=0.2, gamma=(1 - how.gamma, 1 + how.gamma), retain_stats=True),
        ]
    )  # fmt: skip


def _augmented(
    transforms: Any, image: Array, truth: Array, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    from monai.data.meta_obj import get_track_meta, set_track_meta

    transforms.set_random_state(seed=int(rng.integers(2**31)))
    pair = {"image": torch.from_numpy(image)[None], "label": torch.from_numpy(truth.astype(np.float32))[None]}
    tracked = get_track_meta()
    set_track_meta(False)  # plain tensors: MONAI's own slow down every operation that they go through
    try:
        out = transforms(pair)
    finally:
        set_track_meta(tracked)
    return out["image"].contiguous(), out["label"][0].round().long()
