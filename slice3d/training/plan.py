"""From a data set's own sizes and values to spacing, patch and network: the rules of thumb of nnU-Net, on a budget.

Isensee et al. 2021 (doi:10.1038/s41592-020-01008-z): median spacing, patch as large as the budget allows in the aspect
of the median image, pooling while an axis stays at least 4 voxels. Norms are group norms: faster on CPUs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import InputError
from slice3d.training.settings import IntensitySettings, Triple

_LEAST_EDGE = 4
_LEAST_LEVELS = 3  # of a DynUNet


@dataclass(frozen=True)
class Fingerprint:
    """What planning needs to know of one case: (i, j, k) shape, spacing in mm, values inside the labels (a sample)."""

    shape: Triple
    spacing_mm: tuple[float, float, float]
    values: NDArray[Any]
    label_values: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Spacing, patch, network and normalisation for a data set."""

    spacing_mm: tuple[float, float, float]
    patch_size: Triple
    network: str
    arguments: Mapping[str, Any]
    intensity: IntensitySettings
    median_shape: Triple

    def lines(self) -> list[str]:
        """The plan in words, for the command line."""
        how = self.intensity
        span = f"clip {how.clip[0]:.4g}…{how.clip[1]:.4g}, " if how.scheme == "clip_zscore" else ""
        return [
            f"spacing    {' × '.join(f'{s:.3g}' for s in self.spacing_mm)} mm",
            f"median     {' × '.join(map(str, self.median_shape))} voxels",
            f"patch      {' × '.join(map(str, self.patch_size))} voxels",
            f"network    {self.network.rpartition('.')[2]}, features {list(self.arguments.get('filters', ()))}",
            f"intensity  {how.scheme}, {span}mean {how.mean:.4g}, std {how.std:.4g}",
        ]


def make_plan(
    prints: Sequence[Fingerprint], labels: Mapping[int, str], *, modality: str, budget_voxels: int, features: int
) -> Plan:
    """The plan for cases with these fingerprints.

    budget_voxels: how many voxels a patch may have. features: width of the finest level; each level doubles it up to
    ten times. Raises `InputError` when there is no case, no labelled voxel or a label value that `dataset.json` does not
    name.
    """
    if not prints:
        raise InputError("no cases to plan for; expected at least one")
    unknown = sorted({v for p in prints for v in p.label_values} - set(labels) - {0})
    if unknown:
        raise InputError(f"label files hold value {unknown[0]}, which dataset.json does not name; add it to `labels`")
    if not any(len(p.values) for p in prints):
        raise InputError(
            f"the label files of all {len(prints)} cases are empty; expected voxels of {', '.join(labels.values())}; check "
            "labelsTr"
        )
    spacing = np.median([p.spacing_mm for p in prints], axis=0)
    shapes = np.array([np.ceil(np.array(p.shape) * np.array(p.spacing_mm) / spacing) for p in prints])
    median = np.maximum(1, np.median(shapes, axis=0)).astype(int)
    patch, strides = _patch(median, spacing, budget_voxels)
    kernels = [[3, 3, 3]] * len(strides)
    filters = [min(features * 2**n, 10 * features) for n in range(len(strides))]
    arguments = {
        "spatial_dims": 3, "in_channels": 1, "out_channels": len(labels) + 1, "kernel_size": kernels,
        "strides": strides, "upsample_kernel_size": strides[1:], "filters": filters,
        "norm_name": ["GROUP", {"num_groups": min(8, features)}], "res_block": True,
        "deep_supervision": len(strides) > 2, "deep_supr_num": max(1, min(2, len(strides) - 2)),
    }  # fmt: skip
    return Plan(
        spacing_mm=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        patch_size=(patch[0], patch[1], patch[2]),
        network="monai.networks.nets.DynUNet",
        arguments=arguments,
        intensity=_intensity(prints, modality),
        median_shape=(int(median[0]), int(median[1]), int(median[2])),
    )


def _patch(median: NDArray[Any], spacing: NDArray[Any], budget: int) -> tuple[list[int], list[list[int]]]:
    """Patch in the image's aspect within the budget, and the strides of each level (first level 1)."""
    size = median.astype(float)
    if size.prod() > budget:
        size = size * (budget / size.prod()) ** (1 / 3)
        size = np.minimum(size, median)
    edges = np.maximum(_LEAST_EDGE, np.round(size)).astype(int)
    strides = [[1, 1, 1]]
    now, step = edges.astype(float), np.asarray(spacing, float).copy()
    while len(strides) < 6:
        halve = [int(n >= 2 * _LEAST_EDGE and s < 2 * step.min()) for n, s in zip(now, step, strict=True)]
        if not any(halve) and len(strides) < _LEAST_LEVELS:
            halve = [int(s < 2 * step.min()) for s in step]  # the patch grows to fit: crops are padded
        if not any(halve):
            break
        strides.append([2 if h else 1 for h in halve])
        now = np.where(halve, now / 2, now)
        step = np.where(halve, step * 2, step)
    total = np.prod(strides, axis=0)
    edges = np.where(total > 1, np.maximum(edges, _LEAST_EDGE * total), edges)
    patch = [int(max(1, np.ceil(n / t)) * t) for n, t in zip(edges, total, strict=True)]
    return patch, strides


def _intensity(prints: Sequence[Fingerprint], modality: str) -> IntensitySettings:
    """CT: percentiles of the labelled voxels of all cases. Anything else: each image by its own mean and deviation."""
    if modality != "CT":
        return IntensitySettings(scheme="zscore", clip=(-1e6, 1e6), mean=0.0, std=1.0)
    values = np.concatenate([p.values for p in prints]).astype(float)
    low, high = np.percentile(values, (0.5, 99.5))
    return IntensitySettings(
        clip=(float(low), float(high)), mean=float(values.mean()), std=float(max(1e-3, values.std()))
    )
