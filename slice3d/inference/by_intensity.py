"""The last step of packages that name tissues: borders from this image's own grey values, at the study's resolution.

The network's scores are kept for the whole (small) grid, in half precision, because what a tissue looks like must be
known before the first plane can be decided.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slice3d.inference import intensities
from slice3d.inference.case import Case, moved, permuted_floats
from slice3d.inference.census import Census
from slice3d.inference.decide import Decision
from slice3d.inference.intensities import Intensities
from slice3d.inference.networks import Networks
from slice3d.inference.reduce import Reducer, Window, neighbours, window
from slice3d.inference.sweep import Sweep, planes
from slice3d.volume import Volume

if TYPE_CHECKING:
    import torch

Array = NDArray[Any]

_SAMPLES = 40_000
_SURE = 0.02  # probability of anything but background from which a voxel is looked at
_LEAST = 2_000  # voxels looked at below which grey values say nothing
_MARGIN = 3  # network voxels around what the network found


@dataclass(frozen=True)
class Scores:
    """The network's scores on its grid, slab axis first, and where the study's voxels lie in it.

    scores: (D, H, W, C) float16. low, weight: per axis, for every study voxel of the looked-at box, its lower neighbour
    and the share of the upper one.
    """

    scores: torch.Tensor
    low: tuple[torch.Tensor, ...]
    weight: tuple[torch.Tensor, ...]

    def at(self, voxels: Array) -> torch.Tensor:
        """(n, C) scores at (n, 3) study voxels."""
        import torch

        out: Any = 0.0
        corner = [
            (low[voxels[:, n]], weight[voxels[:, n]])
            for n, (low, weight) in enumerate(zip(self.low, self.weight, strict=True))
        ]
        for side in np.ndindex(2, 2, 2):
            share = torch.ones(len(voxels))
            index = []
            for (low, weight), upper, size in zip(corner, side, self.scores.shape[:3], strict=True):
                share = share * (weight if upper else 1 - weight)
                index.append((low + upper).clamp(max=size - 1))
            out = out + self.scores[tuple(index)].float() * share[:, None]
        return out  # type: ignore[no-any-return]

    def plane(self, depth: int, rows: slice, columns: slice) -> torch.Tensor:
        """(h, w, C) scores of a rectangle of one study plane."""
        field = self._lerp(self.scores, 0, self.low[0][depth : depth + 1], self.weight[0][depth : depth + 1])[0]
        field = self._lerp(field, 0, self.low[1][rows], self.weight[1][rows])
        return self._lerp(field, 1, self.low[2][columns], self.weight[2][columns])

    @staticmethod
    def _lerp(field: torch.Tensor, axis: int, low: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        high = (low + 1).clamp(max=field.shape[axis] - 1)
        shape = [1] * field.ndim
        shape[axis] = -1
        return field.index_select(axis, low).float().lerp(field.index_select(axis, high).float(), weight.view(shape))


def reduce_by_intensity(
    networks: Networks, case: Case, sweep: Sweep, volume: Volume, labels: Array, decision: Decision
) -> tuple[Reducer, Census, dict[str, Any]]:
    """Write `labels`; the reducer with the sums over study voxels, what the network alone found, grey values found."""
    import torch

    package, order, shape = networks.package, case.order, case.shape
    census = Census(networks.channels_out, package.activation)
    scores = _collected(networks, case, sweep, census)
    view = np.transpose(moved(labels, case.frame), order)
    image = np.transpose(moved(volume.data, case.frame), order)
    start = time.perf_counter()
    owner = np.zeros(networks.channels_out, np.int64)
    for number, tissue in enumerate(package.tissues):
        owner[list(tissue.labels)] = number
    steps = permuted_floats([1 / s for s in case.frame.step], order)
    sides = [neighbours(n, Window(0, n, 0, m), s, 1) for n, m, s in zip(shape, view.shape, steps, strict=True)]
    low, weight = (tuple(torch.from_numpy(side[n]) for side in sides) for n in (0, 1))
    field = Scores(scores, low, weight)
    box = census.box(range(1, networks.channels_out))
    windows = []
    for n, (size, inside, step) in enumerate(zip(view.shape, shape, steps, strict=True)):
        a, b = (0, 0) if box is None else (max(0, box[0][n] - _MARGIN), min(inside, box[1][n] + _MARGIN))
        near = window(int(a), int(b), n_in=inside, n_out=size, step=step)
        windows.append(Window(near.out_low, near.out_high, near.out_low, near.out_high))
    bright = _brightness(volume)
    found = _fitted(field, image, owner, [t.components for t in package.tissues], windows, bright)
    reducer = Reducer(
        (view.shape[0], view.shape[1], view.shape[2]), view, decision, windows=(windows[0], windows[1], windows[2]),
        steps=(1.0, 1.0, 1.0), device=torch.device("cpu"),
    )  # fmt: skip
    for index, plane in enumerate(_updated(field, image, owner, windows, found, bright)):
        reducer.take(index, plane)
    case.run.clock("reduce", start)
    return reducer, census, {} if found is None else _said(found, package.tissues)


def _collected(networks: Networks, case: Case, sweep: Sweep, census: Census) -> torch.Tensor:
    import torch

    out = torch.empty((*case.shape, networks.channels_out), dtype=torch.float16)
    for index, averaged in planes(networks, case, sweep, np.zeros(3, int), np.array(case.shape)):
        scores = networks.scores(averaged)
        census.take(scores, scores.argmax(-1).int().cpu().numpy(), (0, 0))
        out[index] = scores.cpu()
    return out


def _brightness(volume: Volume) -> tuple[float, float]:
    low, high = np.percentile(volume.data[:: max(1, volume.data.shape[0] // 64)], [0.5, 99.5])
    return float(low), float(high)


def _terms(shape: tuple[int, ...], *index: Array) -> Array:
    return intensities.shading_terms(*(2.0 * i / max(1, n - 1) - 1 for i, n in zip(index, shape, strict=True)))


def _fitted(
    field: Scores, image: Array, owner: Array, components: list[int], windows: list[Window], bright: tuple[float, float]
) -> Intensities | None:
    """What the tissues look like, from voxels drawn where the network sees something; None where it sees too little."""
    rng = np.random.default_rng(0)
    low, high = ([getattr(w, name) for w in windows] for name in ("out_low", "out_high"))
    if min(b - a for a, b in zip(low, high, strict=True)) < 1:
        return None
    voxels = np.unique(rng.integers(low, high, (6 * _SAMPLES, 3)), axis=0)
    prior = field.at(voxels).softmax(-1).numpy()
    seen = np.flatnonzero(prior[:, 0] < 1 - _SURE)
    if len(seen) < _LEAST:
        return None
    seen = rng.permutation(seen)[:_SAMPLES]
    voxels = voxels[seen]
    by_tissue = np.zeros((len(seen), len(components)))
    np.add.at(by_tissue.T, owner, prior[seen].T)
    values = intensities.log_grey(image[tuple(voxels.T)], *bright)
    return intensities.fit(values, by_tissue, components, _terms(image.shape, *voxels.T))


def _updated(
    field: Scores, image: Array, owner: Array, windows: list[Window], found: Intensities | None,
    bright: tuple[float, float],
) -> Iterator[torch.Tensor]:  # fmt: skip
    """Score planes of the study's resolution: the network's, and what grey values say where it sees anything."""
    import torch

    rows, columns = (slice(w.out_low, w.out_high) for w in windows[1:])
    j, i = np.meshgrid(np.arange(rows.start, rows.stop), np.arange(columns.start, columns.stop), indexing="ij")
    for depth in range(windows[0].out_low, windows[0].out_high):
        plane = field.plane(depth, rows, columns)
        if found is not None:
            # the softmax of background is 1 / Σ exp(score − background's)
            near = ((plane - plane[..., :1]).exp_().sum(-1) > 1 / (1 - _SURE)).numpy()
            a, b = j[near], i[near]
            values = intensities.log_grey(image[depth][a, b], *bright)
            fits = found.log_likelihood(values, _terms(image.shape, np.full(len(a), depth), a, b))
            plane[torch.from_numpy(near)] += torch.from_numpy(fits[:, owner])
        yield plane


def _said(found: Intensities, tissues: Any) -> dict[str, Any]:
    rows = {}
    for number, tissue in enumerate(tissues):
        mine = found.tissue == number
        rows[tissue.name] = [
            [round(float(m), 3), round(float(s), 3)] for m, s in zip(found.mean[mine], found.spread[mine], strict=True)
        ]
    return rows
