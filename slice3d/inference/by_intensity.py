"""The last step of packages that name tissues: borders from this image's own grey values, at the study's resolution.

The network's scores are kept for the whole (small) grid, in half precision, because what a tissue looks like must be
known before the first plane can be decided.
"""

from __future__ import annotations

import time
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
from slice3d.inference.reduce import PIXELS_AT_ONCE, Reducer, Window, mixed_cells, neighbours, touching, window
from slice3d.inference.sweep import Sweep, planes
from slice3d.models.package import ModelPackage
from slice3d.volume import Volume

if TYPE_CHECKING:
    import torch

Array = NDArray[Any]

_SAMPLES = 40_000
_SEEN = 0.02  # probability of anything but background from which a voxel is looked at
_LEAST = 2_000  # voxels looked at below which grey values say nothing
# What is that bright, where a network finds some bone likely, is bone thinner than its voxels rather than a vessel.
_COMPACT_HU = 200.0
_COMPACT_MORE = 12.0
_MARGIN = 3  # network voxels around what the network found
_HU = 250.0  # so that the least spread of a tissue is 5 HU, less than the noise of any scanner


@dataclass(frozen=True)
class Scores:
    """The network's scores on its grid, slab axis first, and where the study's voxels lie in it.

    scores: (D, H, W, C) float16. low, weight: per axis, for every study voxel, its lower neighbour and the share of the
    upper one.
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


@dataclass(frozen=True)
class Scale:
    """Grey values as Gaussians can describe them.

    absolute: Hounsfield units, cut to what the network sees; there is no shading. Otherwise log grey values between
    about the darkest and the brightest of the image, on which shading adds up. sure: probability from which the network
    is taken at its word. outweigh: how many times likelier grey values may make one tissue than another. A network that
    knows Hounsfield units has used them already: they draw its borders, but take no heart for an aorta. One that was
    trained on any contrast has not, and is asked for no more than a prior.
    """

    absolute: bool
    low: float
    high: float
    sure: float = 2.0
    outweigh: float = np.inf

    def limited(self, fits: Array, image: Array, bone: int | None, rival: Array) -> Array:
        """(n, K) log likelihoods of n voxels over that of each one's rival, within what `outweigh` allows.

        rival: (n,) tissue that the network finds likeliest but for bone: against what the image may not even hold, nothing
        is weighed. bone: tissue that may outweigh its rival `_COMPACT_MORE` times further where the image is as bright as
        compact bone.
        """
        if not self.absolute:
            return fits
        limit = np.float32(np.log(self.outweigh))
        most = np.full(fits.shape, limit)
        if bone is not None:
            most[np.asarray(image) > _COMPACT_HU, bone] += np.float32(np.log(_COMPACT_MORE))
        out: Array = np.clip(fits - np.take_along_axis(fits, rival[:, None], axis=1), -limit, most)
        return out

    def values(self, image: Array) -> Array:
        """(n,) float32 of n voxels of the image."""
        if self.absolute:
            out: Array = np.clip(np.asarray(image, np.float32), self.low, self.high) / _HU
            return out
        return intensities.log_grey(image, self.low, self.high)

    def terms(self, shape: tuple[int, ...], *index: Array) -> Array:
        """(n, K) shading terms at voxels of an image of this shape."""
        if self.absolute:
            return np.zeros((len(index[0]), 0), np.float32)
        return intensities.shading_terms(*(2.0 * i / max(1, n - 1) - 1 for i, n in zip(index, shape, strict=True)))


def scale_of(volume: Volume, package: ModelPackage) -> Scale:
    """The network's own window for packages that clip absolute values, the image's range for others."""
    window = package.intensity[0].clip
    if package.intensity[0].scheme == "clip_zscore" and window:
        return Scale(True, *window, sure=0.995, outweigh=8.0)
    low, high = np.percentile(volume.data[:: max(1, volume.data.shape[0] // 64)], [0.5, 99.5])
    return Scale(False, float(low), float(high))


class GreyReducer(Reducer):
    """As `Reducer`; where the network leaves it open, grey values have a say.

    image: study voxels, axes as `labels`. owner: tissue of each channel. bone: the tissue that is bone, if any. The sums
    behind the expected Dice are over study voxels and the probabilities that decided.
    """

    def __init__(
        self, *args: Any, image: Array, owner: Array, found: Intensities, scale: Scale, bone: int | None, **options: Any
    ):
        import torch

        super().__init__(*args, **options)
        self.image, self.owner, self.found, self.scale, self.bone = image, owner, found, scale, bone
        self.no_bone = np.flatnonzero(owner != bone)
        heights, widths = (
            torch.bincount(low, minlength=w.high - w.low).float()
            for low, w in zip((self.rows, self.columns), options["windows"][1:], strict=True)
        )
        self.pixels = heights[:, None] * widths  # of the study, in each cell of a network plane
        self.members = torch.zeros(len(self.values), len(self.tallies))
        for column, channels in enumerate(self.decision.groups.values()):
            self.members[list(channels), column] = 1

    def take(self, index: int, scores: torch.Tensor) -> None:
        """scores: (H, W, C) float32 of plane `index`, counted from the window's first; planes come in order."""
        self._planes(index, scores)

    def _write(self, out: int, plane: torch.Tensor) -> None:
        import torch

        shares = plane.softmax(-1)
        certainty, best = shares.max(-1)
        mixed = mixed_cells(best) | touching((certainty < self.scale.sure) & (shares[..., 0] < 1 - _SEEN))
        self._count(shares, best, self.pixels * ~mixed)
        result = self.values[best][self.rows][:, self.columns]
        probabilities = {
            name: self._enlarged(self._probability(plane, self.decision.groups[name])).reshape(-1)
            for name in self.decision.probabilities
        }
        width = self.labels.shape[2]
        pixels = mixed[self.rows][:, self.columns].reshape(-1).nonzero().squeeze(1)
        depth = self.box[0].start + out
        for some in torch.split(pixels, PIXELS_AT_ONCE):
            rows, columns = some // width, some % width
            scores = self._interpolate(plane, rows, columns)
            i, j = rows.numpy() + self.box[1].start, columns.numpy() + self.box[2].start
            terms = self.scale.terms(self.image.shape, np.full(len(i), depth), i, j)
            grey = self.image[depth][i, j]
            fits = self.found.log_likelihood(self.scale.values(grey), terms)
            fits = self.scale.limited(fits, grey, self.bone, self._rival(scores))
            scores += torch.from_numpy(fits[:, self.owner])
            best = scores.argmax(-1)
            self._count(scores.softmax(-1), best, torch.ones(len(some)))
            result.view(-1)[some] = self.values[best]
            for name, field in probabilities.items():
                field[some] = self._probability(scores, self.decision.groups[name])
        self.labels[out] = result.numpy()
        for name, field in probabilities.items():
            self.probability[name][self.box][out] = field.view(result.shape).half().numpy()

    def _rival(self, scores: torch.Tensor) -> Array:
        """(n,) tissue of the strongest channel that is no bone."""
        out: Array = self.owner[self.no_bone[scores[:, self.no_bone].argmax(1).numpy()]]
        return out

    def _count(self, shares: torch.Tensor, best: torch.Tensor, weight: torch.Tensor) -> None:
        """Add voxels to the sums: shares (…, C), strongest channel (…), how many study voxels each stands for (…)."""
        import torch

        channels, weight = shares.shape[-1], weight.reshape(-1)
        shares, inside = shares.reshape(-1, channels), self.members[best.reshape(-1)] * weight[:, None]
        probability = shares @ self.members
        entropy = torch.special.entr(shares).sum(-1)
        self._add(torch.stack([inside.sum(0), weight @ probability, (inside * probability).sum(0), entropy @ inside]))


def reduce_by_intensity(
    networks: Networks, case: Case, sweep: Sweep, volume: Volume, labels: Array, decision: Decision
) -> tuple[Reducer, Census, dict[str, Any]]:
    """Write `labels`; the reducer, what the network alone found where, and the grey values of the tissues."""
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
    bone = next((n for n, tissue in enumerate(package.tissues) if tissue.name == "bone"), None)
    field = Scores(scores, low, weight)
    box = census.box(range(1, networks.channels_out))
    windows = []
    for n, (size, inside, step) in enumerate(zip(view.shape, shape, steps, strict=True)):
        a, b = (0, 0) if box is None else (max(0, box[0][n] - _MARGIN), min(inside, box[1][n] + _MARGIN))
        windows.append(window(int(a), int(b), n_in=inside, n_out=size, step=step))
    scale = scale_of(volume, package)
    found = _fitted(field, image, owner, [t.components for t in package.tissues], windows, scale)
    options: dict[str, Any] = {"windows": tuple(windows), "steps": steps, "device": torch.device("cpu")}
    if found is None:
        reducer = Reducer(shape, view, decision, **options)
    else:
        how: dict[str, Any] = {"image": image, "owner": owner, "found": found, "scale": scale, "bone": bone}
        reducer = GreyReducer(shape, view, decision, **how, **options)
    inner = tuple(slice(w.low, w.high) for w in windows)
    for index, plane in enumerate(scores[inner]):
        reducer.take(index, plane.float())
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


def _fitted(
    field: Scores, image: Array, owner: Array, components: list[int], windows: list[Window], scale: Scale
) -> Intensities | None:
    """What the tissues look like, from voxels drawn where the network sees something; None where it sees too little."""
    rng = np.random.default_rng(0)
    low, high = ([getattr(w, name) for w in windows] for name in ("out_low", "out_high"))
    if min(b - a for a, b in zip(low, high, strict=True)) < 1:
        return None
    voxels = np.unique(rng.integers(low, high, (6 * _SAMPLES, 3)), axis=0)
    prior = field.at(voxels).softmax(-1).numpy()
    seen = np.flatnonzero(prior[:, 0] < 1 - _SEEN)
    if len(seen) < _LEAST:
        return None
    seen = rng.permutation(seen)[:_SAMPLES]
    voxels = voxels[seen]
    by_tissue = np.zeros((len(seen), len(components)))
    np.add.at(by_tissue.T, owner, prior[seen].T)
    terms = scale.terms(image.shape, *voxels.T)
    return intensities.fit(scale.values(image[tuple(voxels.T)]), by_tissue, components, terms)


def _said(found: Intensities, tissues: Any) -> dict[str, Any]:
    rows = {}
    for number, tissue in enumerate(tissues):
        mine = found.tissue == number
        rows[tissue.name] = [
            [round(float(m), 3), round(float(s), 3)] for m, s in zip(found.mean[mine], found.spread[mine], strict=True)
        ]
    return rows
