"""One engine for every model package: tiles in, labels on the study's grid out, nothing large in between.

Tiles run in order along one axis. Their weighted scores add up in a buffer as deep as one patch; planes that no later
tile touches are finished, reduced to labels at the study's resolution, and forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations, groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slice3d import anatomy
from slice3d.errors import InputError, ModelError
from slice3d.inference import checks, memory, postprocess, reliability
from slice3d.inference.hardware import choose_device, choose_dtype, computing, cores
from slice3d.inference.prepare import Frame, make_frame, network_image, pad_value
from slice3d.inference.reduce import Census, Decision, Reducer, Tally, window
from slice3d.inference.settings import InferenceSettings
from slice3d.inference.tiles import importance, tile_starts
from slice3d.models.package import ModelPackage
from slice3d.progress import Progress, silent
from slice3d.volume import Segmentation, Volume, freeze

if TYPE_CHECKING:
    import torch
    from torch import nn

Axes = tuple[int, int, int]
Point = tuple[float, float, float]
Box = tuple[NDArray[Any], NDArray[Any]]

_LOCATE_FROM = 8  # network runs below which looking for the region first cannot pay
_LOCATE_SHARE = 0.4  # nor where the look costs more than this share of all
_MARGIN_MM = 15.0
_LOCATED_ML = 20.0  # a structure smaller than this says nothing about the orientation


@dataclass(frozen=True)
class _Fold:
    network: nn.Module
    head: Any = None


@dataclass
class _Run:
    """What one case collects on its way."""

    timings: dict[str, float]
    plan: memory.Plan | None = None
    tiles: int = 0
    region: list[list[int]] | None = None

    def clock(self, name: str, start: float) -> None:
        self.timings[name] = round(self.timings.get(name, 0.0) + time.perf_counter() - start, 4)


@dataclass(frozen=True)
class _Case:
    """One study on its way: image (C, …) along the network's axes, padded; offset: where the study starts in it."""

    frame: Frame
    order: Axes
    image: NDArray[np.float32]
    offset: Axes
    settings: InferenceSettings
    run: _Run
    progress: Progress

    @property
    def shape(self) -> Axes:
        """The network grid's shape along `order`, slab axis first; so are `offset` and every box."""
        return _permuted(self.frame.shape, self.order)


@dataclass(frozen=True)
class _Sweep:
    """One pass over tiles: how much they overlap, which flips and folds are averaged."""

    overlap: float
    flips: Sequence[tuple[int, ...]]
    folds: Sequence[_Fold]


class Engine:
    """A model loaded once and kept warm: call `predict` for as many studies as there are.

    Raises `ModelError` when the weights do not match their hash or the architecture, `MissingExtraError` when the
    network's package is not installed.
    """

    def __init__(self, package: ModelPackage, settings: InferenceSettings | None = None) -> None:
        import torch

        from slice3d.models.loading import load_network, quicken, split_head

        self.package = package
        self.settings = settings or InferenceSettings()
        self.device = choose_device(self.settings.device)
        self.dtype = choose_dtype(self.settings.precision, self.device)
        folds = self.settings.folds or tuple(range(len(package.weights)))
        if not set(folds) <= set(range(len(package.weights))):
            raise InputError(
                f"folds {list(folds)} asked for; model {package.name!r} has 0 to {len(package.weights) - 1}"
            )
        start = time.perf_counter()
        self.folds: list[_Fold] = []
        self.channels_out = _channels_out(package)
        self.width = self.channels_out
        for fold in folds:
            network = load_network(package, fold)
            head = None
            if len(folds) == 1 and (head := split_head(network, fewer_than=self.channels_out)) is not None:
                head = replace(head, weight=head.weight.to(self.device), bias=head.bias.to(self.device))
                self.width = int(head.weight.shape[1])
            if self.device.type == "cpu":
                quicken(network)
                network = network.to(self.dtype).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
            else:
                network = network.to(self.device)
            self.folds.append(_Fold(network, head))
        self.load_seconds = time.perf_counter() - start
        self._activation: dict[Axes, float] = {}

    def predict(
        self,
        volume: Volume | Sequence[Volume],
        *,
        structures: Sequence[str] | None = None,
        settings: InferenceSettings | None = None,
        progress: Progress = silent,
    ) -> Segmentation:
        """Segment one study on its own grid.

        volume: the image, or one per input channel on the same grid. structures: what is wanted (names or aliases;
        default everything the model knows); other labels come back as background. settings: for this case (device,
        precision and folds stay those the engine was made with). Raises `InputError` for an image the model was not
        made for and `ModelError` when the memory budget does not suffice.
        """
        settings = settings or self.settings
        volumes = (volume,) if isinstance(volume, Volume) else tuple(volume)
        wanted = _wanted(self.package, structures)
        run = _Run({})
        begin = time.perf_counter()
        findings = [*checks.check_input(volumes, self.package, allow=settings.allow_unexpected_input)]
        run.clock("check", begin)
        with computing(settings.threads):
            labels, probabilities, tallies, centres = self._run(volumes, wanted, settings, run, progress)
        start = time.perf_counter()
        grid = volumes[0].grid
        names, groups = _names(self.package, wanted)
        result = Segmentation(freeze(labels), grid, names, groups=groups, probabilities=probabilities)
        if settings.postprocess if settings.postprocess is not None else self.package.origin == "native":
            result = postprocess.clean(result, wanted)
        run.clock("postprocess", start)
        start = time.perf_counter()
        measured = reliability.measure(tallies, self.package)
        findings += reliability.check_result(result, wanted, measured, centres)
        run.clock("reliability", start)
        run.timings["total"] = round(time.perf_counter() - begin, 4)
        return replace(
            result,
            findings=(*result.findings, *findings),
            metadata=self._metadata(wanted, measured, run, settings),
        )

    def _run(
        self,
        volumes: Sequence[Volume],
        wanted: Sequence[str],
        settings: InferenceSettings,
        run: _Run,
        progress: Progress,
    ) -> tuple[NDArray[Any], dict[str, NDArray[Any]], dict[str, Tally], dict[str, Point]]:
        start = time.perf_counter()
        frame = make_frame(volumes, self.package)
        slab = _slab_axis(frame.shape, self.package.patch_size)
        order = _three([slab, *(n for n in range(3) if n != slab)])
        labels = np.zeros(volumes[0].grid.shape, _label_type(self.package))
        run.plan = self._plan(frame, slab, labels, settings)
        image, offset = _pad(network_image(volumes, self.package, frame), self.package)
        run.clock("resample", start)
        case = _Case(frame, order, image, _permuted(offset, order), settings, run, progress)
        decision = self._decision(wanted, settings)
        channels = [n for n, value in enumerate(decision.values) if value]
        box, census = self._locate(case, channels)
        while True:
            reducer = self._refine(case, box, labels, decision)
            grown = None if box is None else _grown(box, reducer.census.box(channels), case.shape)
            if grown is None:
                break
            box = grown
            labels[...] = 0
        probabilities = {n: freeze(self._whole(f, frame, order, volumes[0])) for n, f in reducer.probability.items()}
        run.region = None if box is None else [[int(n) for n in corner] for corner in box]
        return (
            labels,
            probabilities,
            reducer.tallies,
            _centres(census or reducer.census, case, volumes[0], self.package),
        )

    def _refine(self, case: _Case, box: Box | None, labels: NDArray[Any], decision: Decision) -> Reducer:
        """All tiles, flips and folds that reach the box, reduced to labels there (everywhere when box is None)."""
        frame, order, shape = case.frame, case.order, case.shape
        low, high = (np.zeros(3, int), np.array(shape)) if box is None else box
        view = np.transpose(_moved(labels, frame), order)
        steps = _permuted_floats([1 / s for s in frame.step], order)
        windows = [
            window(int(a), int(b), n_in=n, n_out=m, step=s)
            for a, b, n, m, s in zip(low, high, shape, view.shape, steps, strict=True)
        ]
        reducer = Reducer(
            shape,
            view,
            decision,
            windows=(windows[0], windows[1], windows[2]),
            steps=steps,
            orders=_permuted(frame.score_orders, order),
            device=self.device,
        )
        settings = case.settings
        overlap = self.package.sampling.overlap if settings.overlap is None else settings.overlap
        sweep = _Sweep(overlap, _flips(self.package, settings), self.folds)
        for index, scores in self._planes(case, sweep, low, high):
            start = time.perf_counter()
            reducer.take(index, self._scores(scores))
            case.run.clock("reduce", start)
        return reducer

    def _locate(self, case: _Case, channels: Sequence[int]) -> tuple[Box | None, Census | None]:
        """The box to refine, in network voxels along `order`, and what lies where; (None, None): everything.

        One fold, no flips and tiles that do not overlap show where the wanted structures are for a fraction of the
        work. A margin is added, and `_grown` checks afterwards that nothing was cut.
        """
        package, settings = self.package, case.settings
        patch = _permuted(package.patch_size, case.order)
        padded = _permuted(_three(case.image.shape[1:]), case.order)
        overlap = package.sampling.overlap if settings.overlap is None else settings.overlap
        quick = len(tile_starts(padded, patch, 0.0))
        full = len(tile_starts(padded, patch, overlap)) * len(_flips(package, settings)) * len(self.folds)
        everything = len(channels) >= self.channels_out - 1
        if settings.region == "whole" or everything or full < _LOCATE_FROM or quick > _LOCATE_SHARE * full:
            return None, None
        census = Census(self.channels_out, package.activation)
        sweep = _Sweep(0.0, [()], self.folds[:1])
        for _, averaged in self._planes(case, sweep, np.zeros(3, int), np.array(case.shape)):
            scores = self._scores(averaged)
            census.take(scores, scores.argmax(-1) if package.activation == "softmax" else None, (0, 0))
        found = census.box(channels)
        if found is None:
            return None, census
        margin = np.ceil(_MARGIN_MM / np.array(_permuted_floats(case.frame.spacing_mm, case.order))).astype(int)
        low = np.maximum(found[0] - np.maximum(margin, 2), 0)
        return (low, np.minimum(found[1] + np.maximum(margin, 2), case.shape)), census

    def _scores(self, averaged: torch.Tensor) -> torch.Tensor:
        import torch

        head = self.folds[0].head
        scores = averaged if head is None else averaged @ head.weight.T + head.bias
        if not bool(torch.isfinite(scores).all()):
            raise ModelError(
                f"model {self.package.name!r} gave NaN or infinite scores in {self.dtype}; "
                "check the image for extreme values, or use --precision float32"
            )
        return scores.contiguous()

    def _planes(
        self, case: _Case, sweep: _Sweep, low: NDArray[Any], high: NDArray[Any]
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Weighted mean scores of the box low…high, plane by plane: (index from `low`, (H, W, channels)).

        Tiles lie where they lie for the whole image, so that a part of it comes out as the whole would.
        """
        import torch

        order, package, run = case.order, self.package, case.run
        size = _permuted(package.patch_size, order)
        low, high = low + case.offset, high + case.offset
        starts = [
            start
            for start in sorted(tile_starts(_permuted(_three(case.image.shape[1:]), order), size, sweep.overlap))
            if all(s < b and s + p > a for s, p, a, b in zip(start, size, low, high, strict=True))
        ]
        origin = np.min(starts, axis=0)
        extent = np.max(starts, axis=0) + size - origin
        weight = torch.from_numpy(np.transpose(importance(package.patch_size), order).copy()).to(self.device)
        image = torch.from_numpy(case.image)
        scores = torch.zeros((size[0], int(extent[1]), int(extent[2]), self.width), device=self.device)
        total = torch.zeros(scores.shape[:3], device=self.device)
        inner = tuple(slice(int(low[n] - origin[n]), int(high[n] - origin[n])) for n in (1, 2))
        base, done = int(origin[0]), 0

        def finished(stop: int) -> Iterator[tuple[int, torch.Tensor]]:
            for n in range(base, min(stop, int(high[0]))):
                if n >= low[0]:
                    yield n - int(low[0]), scores[n - base][inner] / total[n - base][inner][..., None]

        for front, row in groupby(starts, key=lambda s: s[0]):
            yield from finished(front)
            base = _shift(scores, total, base, front)
            for some in _batches(list(row), run.plan.batch if run.plan else 1):
                start = time.perf_counter()
                here = [(s[0], s[1] - int(origin[1]), s[2] - int(origin[2])) for s in some]
                self._add(image, some, here, order, sweep, (scores, total, weight))
                done += len(some)
                run.clock("network", start)
                case.progress("inference", done / len(starts))
        run.tiles += done
        yield from finished(int(high[0]))

    def _add(
        self,
        image: torch.Tensor,
        starts: Sequence[Axes],
        places: Sequence[Axes],
        order: Axes,
        sweep: _Sweep,
        buffers: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    ) -> None:
        """Run one batch of tiles (all flips, all folds) and add its weighted scores to the buffer."""
        import torch

        scores, total, weight = buffers
        size = _permuted(self.package.patch_size, order)
        inverse = [order.index(n) for n in range(3)]
        tiles = []
        for start in starts:
            corner = [start[inverse[n]] for n in range(3)]
            cut = tuple(slice(c, c + p) for c, p in zip(corner, self.package.patch_size, strict=True))
            tiles.append(image[(slice(None), *cut)])
        batch = torch.stack(tiles).to(self.device)
        share = 1.0 / (len(sweep.flips) * len(sweep.folds))
        permutation = (order[0] + 1, order[1] + 1, order[2] + 1, 0)
        areas = [(slice(p[1], p[1] + size[1]), slice(p[2], p[2] + size[2])) for p in places]
        for flip in sweep.flips:
            for fold in sweep.folds:
                out = self._forward(fold, batch.flip([n + 2 for n in flip]) if flip else batch)
                if flip:
                    out = out.flip([n + 2 for n in flip])
                for area, one in zip(areas, out, strict=True):
                    tile = one.permute(permutation)
                    for z in range(size[0]):
                        scores[z][area].addcmul_(tile[z].float(), weight[z, ..., None], value=share)
        for area in areas:
            total[(slice(None), *area)] += weight

    def _forward(self, fold: _Fold, batch: torch.Tensor) -> torch.Tensor:
        import torch

        if self.device.type == "cpu":
            batch = batch.to(self.dtype).contiguous(memory_format=torch.channels_last_3d)
            out = fold.network(batch)
        else:
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
                out = fold.network(batch)
        while isinstance(out, (tuple, list)):
            out = out[0]
        if out.shape[1] != self.width or out.shape[2:] != batch.shape[2:]:
            raise ModelError(
                f"network of model {self.package.name!r} returns shape {tuple(out.shape)} for {tuple(batch.shape)}; "
                f"expected {self.width} channels of the same size; the package's description is wrong"
            )
        return out  # type: ignore[no-any-return]

    def _plan(self, frame: Frame, slab: int, labels: NDArray[Any], settings: InferenceSettings) -> memory.Plan:
        """Memory this case needs, and the batch that fits the budget."""
        patch = self.package.patch_size
        padded = [max(n, p) for n, p in zip(frame.shape, patch, strict=True)]
        voxels = float(np.prod(padded))
        plane = voxels / padded[slab]
        buffer = patch[slab] * plane * (self.width + 1) * 4
        work = 4 * plane * self.channels_out * 4 + (1 << 15) * self.channels_out * 8
        image = voxels * 4 * len(self.package.channels)
        slices = frame.box_shape
        half = max(slices) * voxels / max(1, min(padded)) * 4
        host = labels.nbytes * (1 + 2 * len(settings.probabilities)) + image * 2 + half
        tile = float(np.prod(patch))
        per_tile = self._activations() + tile * 4 * (len(self.package.channels) + self.width * 0.5) / memory.GIB
        budget = memory.budget_gib(settings.memory_gib, self.device)
        if self.device.type == "cuda":
            fixed, most = (buffer + work) / memory.GIB + 0.5, 8
        else:
            fixed, most = memory.in_use_gib() + (buffer + work + host) / memory.GIB, 1
        starts = tile_starts(_three(tuple(padded)), patch, self.package.sampling.overlap)
        return memory.make_plan(fixed, per_tile, budget=budget, tiles=len(starts), batch=settings.batch, most=most)

    def _activations(self) -> float:
        patch = self.package.patch_size
        if patch not in self._activation:
            shape = (1, len(self.package.channels), *patch)
            size = 4 if self.dtype.itemsize == 4 else 2
            self._activation[patch] = memory.activation_gib(self.folds[0].network, shape, size)
        return self._activation[patch]

    def _decision(self, wanted: Sequence[str], settings: InferenceSettings) -> Decision:
        package = self.package
        keep = _kept(package, wanted)
        probabilities = tuple(anatomy.resolve(p, package.structures)[0] for p in settings.probabilities)
        groups = {}
        for name in dict.fromkeys([*wanted, *probabilities]):
            values = package.values(name)
            if package.activation == "softmax":
                groups[name] = tuple(values)
            else:
                groups[name] = (_region_channel(package, name, values),)
        if package.activation == "softmax":
            out = tuple(keep.get(value, 0) for value in range(self.channels_out))
        else:
            out = tuple(keep.get(value, 0) for value in package.regions)
        return Decision(package.activation, out, groups, probabilities)

    def _whole(self, field: NDArray[Any], frame: Frame, order: Axes, volume: Volume) -> NDArray[Any]:
        out = np.zeros(volume.grid.shape, field.dtype)
        np.transpose(_moved(out, frame), order)[...] = field
        return out

    def _metadata(
        self, wanted: Sequence[str], measured: dict[str, dict[str, Any]], run: _Run, settings: InferenceSettings
    ) -> dict[str, Any]:
        package = self.package
        expected = {n: m["expected_dice"] for n, m in measured.items() if m.get("expected_dice") is not None}
        return {
            "model": package.name,
            "model_version": package.version,
            "model_sha256": package.sha256,
            "licence": package.licence,
            "structures": tuple(wanted),
            "device": self.device.type,
            "precision": str(self.dtype).removeprefix("torch."),
            "threads": settings.threads or cores(),
            "folds": len(self.folds),
            "mirrored_axes": list(_mirror_axes(package, settings)),
            "overlap": package.sampling.overlap if settings.overlap is None else settings.overlap,
            "tiles": run.tiles,
            "region": run.region,
            "batch": run.plan.batch if run.plan else 1,
            "memory_budget_gib": round(run.plan.budget_gib, 2) if run.plan else None,
            "memory_planned_gib": round(run.plan.need_gib, 2) if run.plan else None,
            "expected_dice": expected,
            "reliability": measured,
            "load_s": round(self.load_seconds, 3),
            "timings_s": dict(run.timings),
        }


def predict(
    volume: Volume | Sequence[Volume],
    package: ModelPackage,
    *,
    structures: Sequence[str] | None = None,
    settings: InferenceSettings | None = None,
    progress: Progress = silent,
) -> Segmentation:
    """Segment `volume` with `package`; see `Engine.predict`. The two engines used last are kept in memory."""
    settings = settings or InferenceSettings()
    engine = engine_for(package, device=settings.device, precision=settings.precision, folds=settings.folds)
    return engine.predict(volume, structures=structures, settings=settings, progress=progress)


def engine_for(
    package: ModelPackage, *, device: str | None = None, precision: Any = "auto", folds: tuple[int, ...] | None = None
) -> Engine:
    """The warm engine for a package: loaded on first use, shared afterwards, forgotten when two others were used."""
    return _cached_engine(_Key(package), device, precision, folds)


class _Key:
    """A package by what it is rather than by object identity."""

    def __init__(self, package: ModelPackage) -> None:
        self.package = package
        self.identity = (package.name, package.version, package.sha256, str(package.folder), repr(package.description))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)


@lru_cache(maxsize=2)
def _cached_engine(key: _Key, device: str | None, precision: Any, folds: tuple[int, ...] | None) -> Engine:
    return Engine(key.package, InferenceSettings(device=device, precision=precision, folds=folds))


def _wanted(package: ModelPackage, structures: Sequence[str] | None) -> tuple[str, ...]:
    if structures is None:
        return package.structures
    if not structures:
        raise InputError("no structure asked for; expected at least one")
    return tuple(dict.fromkeys(name for s in structures for name in anatomy.resolve(s, package.structures)))


def _kept(package: ModelPackage, wanted: Sequence[str]) -> dict[int, int]:
    """Label value of the model → value in a result that holds only `wanted`.

    What lies inside a wanted structure and was not asked for itself (the organs inside the body, a tumour inside the
    liver) takes the value of the structure; the two sides of a pair stay apart.
    """
    members = {name: frozenset(package.values(name)) for name in wanted}
    alike: dict[tuple[str, ...], list[int]] = {}
    for value in sorted(frozenset().union(*members.values())):
        alike.setdefault(tuple(name for name in wanted if value in members[name]), []).append(value)
    out: dict[int, int] = {}
    for owners, values in alike.items():
        own = [value for value in values if package.labels[value] in owners]
        out.update({value: own[0] if own else value for value in values})
    return out


def _names(package: ModelPackage, wanted: Sequence[str]) -> tuple[dict[int, str], dict[str, tuple[int, ...]]]:
    """Labels and groups that a result holding only `wanted` needs."""
    kept = _kept(package, wanted)
    names = {value: package.labels[value] for value in sorted(set(kept.values()))}
    groups = {}
    for name, members in package.groups.items():
        values = {kept[v] for v in members if v in kept}
        whole = set(members) == {v for v, value in kept.items() if value in values}
        if whole and [names[v] for v in values] != [name]:
            groups[name] = tuple(sorted(values))
    return names, groups


def _grown(box: Box, found: NDArray[np.int64] | None, shape: Axes) -> Box | None:
    """A larger box when what was found reaches a side of it that is not the image's own border, else None."""
    if found is None:
        return None
    low, high = box
    cut_low = (found[0] <= low) & (low > 0)
    cut_high = (found[1] >= high) & (high < np.array(shape))
    if not cut_low.any() and not cut_high.any():
        return None
    more = np.maximum(4, (high - low) // 2)
    return np.where(cut_low, np.maximum(low - more, 0), low), np.where(cut_high, np.minimum(high + more, shape), high)


def _centres(census: Census, case: _Case, volume: Volume, package: ModelPackage) -> dict[str, Point]:
    """Where each structure's middle lies, world RAS mm, of everything the model found in more than a few voxels."""
    frame, order = case.frame, case.order
    value_of = package.regions if package.activation == "sigmoid" else tuple(range(len(census.moments)))
    by_value = {value_of[channel]: found for channel, found in census.centres().items()}
    out: dict[str, Point] = {}
    for name in package.structures:
        parts = [by_value[v] for v in package.values(name) if v in by_value]
        count = sum(n for n, _ in parts)
        if count * float(np.prod(frame.spacing_mm)) < 1000.0 * _LOCATED_ML:
            continue
        index = sum((n * where for n, where in parts), np.zeros(3)) / count
        moved = np.empty(3)
        for place, axis in enumerate(order):
            moved[axis] = frame.start[axis] + (index[place] + 0.5) * frame.step[axis] - 0.5
        study = np.empty(3)
        for axis, (source, flip) in enumerate(zip(frame.axes, frame.flips, strict=True)):
            study[source] = frame.study_shape[axis] - 1 - moved[axis] if flip else moved[axis]
        x, y, z = volume.grid.to_world(study)
        out[name] = (float(x), float(y), float(z))
    return out


def _region_channel(package: ModelPackage, name: str, values: Sequence[int]) -> int:
    """Which sigmoid channel is the structure: the region that holds exactly its label values."""
    for channel, value in enumerate(package.regions):
        members = package.description.get("region_values", [[v] for v in package.regions])[channel]
        if sorted(members) == sorted(values) or (len(values) == 1 and value == values[0]):
            return channel
    raise InputError(f"model {package.name!r} gives no score of its own for {name!r}; ask for its regions instead")


def _channels_out(package: ModelPackage) -> int:
    return len(package.regions) if package.activation == "sigmoid" else max(package.labels) + 1


def _label_type(package: ModelPackage) -> Any:
    return np.uint8 if max(package.labels) < 256 else np.uint16


def _slab_axis(shape: Axes, patch: Axes) -> int:
    """The axis with most patches in it: the buffer across it is the smallest."""
    return int(np.argmax([max(n, p) / p for n, p in zip(shape, patch, strict=True)]))


def _pad(image: NDArray[np.float32], package: ModelPackage) -> tuple[NDArray[np.float32], Axes]:
    """Grow the image to at least one patch, evenly on both sides; also returns where the image starts."""
    before, after = [], []
    for n, p in zip(image.shape[1:], package.patch_size, strict=True):
        missing = max(0, p - n)
        before.append(missing // 2)
        after.append(missing - missing // 2)
    if any(before) or any(after):
        widths = [(0, 0), *zip(before, after, strict=True)]
        image = np.pad(image, widths, constant_values=pad_value(image, package))
    return image, (before[0], before[1], before[2])


def _moved(array: NDArray[Any], frame: Frame) -> NDArray[Any]:
    """A writable view of the looked-at box of a study array, along the network's axes."""
    moved = array.transpose(frame.axes)[tuple(slice(None, None, -1) if f else slice(None) for f in frame.flips)]
    return moved[frame.box]


def _mirror_axes(package: ModelPackage, settings: InferenceSettings) -> tuple[int, ...]:
    return package.sampling.mirror_axes if settings.mirror is not False else ()


def _flips(package: ModelPackage, settings: InferenceSettings) -> list[tuple[int, ...]]:
    axes = _mirror_axes(package, settings)
    return [flip for n in range(len(axes) + 1) for flip in combinations(axes, n)]


def _shift(scores: torch.Tensor, total: torch.Tensor, base: int, front: int) -> int:
    """Move the unfinished planes to the start of the buffer and clear the rest."""
    step = front - base
    if step <= 0:
        return front
    keep = len(scores) - step
    for buffer in (scores, total):
        for n in range(max(keep, 0)):
            buffer[n] = buffer[n + step]
        buffer[max(keep, 0) :] = 0
    return front


def _batches(items: list[Axes], size: int) -> Iterator[list[Axes]]:
    for n in range(0, len(items), size):
        yield items[n : n + size]


def _permuted(values: Sequence[int], order: Sequence[int]) -> Axes:
    return values[order[0]], values[order[1]], values[order[2]]


def _permuted_floats(values: Sequence[float], order: Sequence[int]) -> tuple[float, float, float]:
    return values[order[0]], values[order[1]], values[order[2]]


def _three(values: Sequence[int]) -> Axes:
    return int(values[0]), int(values[1]), int(values[2])
