"""One engine for every model package: tiles in, labels on the study's grid out, nothing large in between.

Tiles run in order along one axis (`sweep`). Their weighted scores add up in a buffer as deep as one patch; planes that
no later tile touches are finished, reduced to labels at the study's resolution (`reduce`), and forgotten.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import InputError, ModelError
from slice3d.inference import checks, memory, postprocess, reliability
from slice3d.inference.ahead import Ahead, ahead_of
from slice3d.inference.by_intensity import reduce_by_intensity
from slice3d.inference.cascade import in_region, region_for
from slice3d.inference.case import Case, Run, moved, padded, permuted, permuted_floats, slab_axis, three
from slice3d.inference.census import Point, located
from slice3d.inference.decide import Decision, decision_for, label_type, names_of, only, search_for, wanted_structures
from slice3d.inference.hardware import choose_device, choose_dtype, computing, cores
from slice3d.inference.networks import Networks, flips, mirror_axes
from slice3d.inference.prepare import make_frame, network_image
from slice3d.inference.reduce import Reducer, Tally, window
from slice3d.inference.reduce_cells import CellReducer
from slice3d.inference.region import Box, grown, locate
from slice3d.inference.settings import InferenceSettings
from slice3d.inference.sweep import Sweep, planes
from slice3d.models import registry
from slice3d.models.own_steps import Region
from slice3d.models.package import ModelPackage
from slice3d.progress import Progress, silent
from slice3d.volume import Segmentation, Volume, freeze

log = logging.getLogger(__name__)

_READING = 5.0  # times a study's voxels: what reading takes at its peak (compressed NIfTI with a slope; DICOM takes 1)


class Engine:
    """A model loaded once and kept warm: call `predict` for as many studies as there are.

    Raises `ModelError` when the weights do not match their hash or the architecture, `MissingExtraError` when the
    network's package is not installed.
    """

    def __init__(self, package: ModelPackage, settings: InferenceSettings | None = None) -> None:
        self.package = package
        self.settings = settings or InferenceSettings()
        self.device = choose_device(self.settings.device)
        self.dtype = choose_dtype(self.settings.precision, self.device)
        self.folds = self._folds(self.settings)
        if package.non_commercial:  # said before use, and once more in every result
            log.warning("%s", checks.licence_notice(package))
        start = time.perf_counter()
        self.networks = Networks(package, self.folds, self.device, self.dtype)
        self.load_seconds = time.perf_counter() - start
        self._finder: Engine | None = None

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
        default everything the model knows); other labels come back as background. settings: for this case; device,
        precision and folds are those the engine was made with. Raises `InputError` for an image the model was not
        made for and for settings that name others of these, `ModelError` when the memory budget does not suffice.
        """
        return self._predict(volume, structures, self.checked(settings), Run({}), progress)

    def predict_each(
        self,
        volumes: Iterable[Volume | Sequence[Volume]],
        *,
        structures: Sequence[str] | None = None,
        settings: InferenceSettings | None = None,
        progress: Progress = silent,
    ) -> Iterator[Segmentation]:
        """Segment many studies, in order, each while the next one is being read: the same results as `predict`.

        volumes: studies as `predict` takes them; of a generator such as `(slice3d.load(p) for p in paths)` the next one
        is drawn in another thread, one ahead at most, and only while the memory budget has room for a second study of
        the size of the one at work (never for models that first look for a region). What `volumes` or `predict` raises
        is raised when its turn has come, and ends the loop; the study that was read meanwhile is lost with it.
        """
        if isinstance(volumes, Volume):
            raise InputError("predict_each got one Volume; expected several, e.g. in a list; `predict` takes one")
        settings = self.checked(settings)
        with ahead_of(volumes) as ahead:
            for volume in ahead:
                planned = partial(self._read_ahead, ahead, _size_gib(_channels(volume)))
                result = self._predict(volume, structures, settings, Run({}, planned=planned), progress)
                del volume  # it would stay while the next one is drawn
                yield result
                del result

    def _folds(self, settings: InferenceSettings) -> tuple[int, ...]:
        known = range(len(self.package.weights))
        folds = tuple(settings.folds or known)
        if not set(folds) <= set(known):
            raise InputError(f"folds {list(folds)} asked for; model {self.package.name!r} has 0 to {known[-1]}")
        return folds

    def checked(self, settings: InferenceSettings | None) -> InferenceSettings:
        """Settings for a case, the engine's own for None. Raises `InputError` for what this engine was not made with."""
        if settings is None:
            return self.settings
        asked: list[tuple[str, Any, Any]] = []
        if settings.folds is not None:
            asked.append(("folds", sorted(self._folds(settings)), sorted(self.folds)))
        if settings.device is not None:
            device = choose_device(settings.device)
            same = (device.type, device.index or 0) == (self.device.type, self.device.index or 0)
            asked.append(("device", self.device if same else device, self.device))
        if settings.precision != "auto":
            asked.append(("precision", choose_dtype(settings.precision, self.device), self.dtype))
        for name, wanted, own in asked:
            if wanted != own:
                raise InputError(
                    f"{name} {wanted} asked for in one case; this engine was made with {own}: make another engine"
                )
        return settings

    def _read_ahead(self, ahead: Ahead[Any], size: float, plan: memory.Plan) -> None:
        """Begin to read the next study where there is room for it beside this one. size: GiB that one is expected to take."""
        # the budget of a GPU is of its own memory; studies lie in the host's
        spare = plan.budget_gib - plan.need_gib if self.device.type == "cpu" else memory.available_gib() / 2
        if spare > _READING * size:
            ahead.start()

    def _predict(
        self, volume: Volume | Sequence[Volume], structures: Sequence[str] | None, settings: InferenceSettings,
        run: Run, progress: Progress,
    ) -> Segmentation:  # fmt: skip
        volumes = _channels(volume)
        wanted = wanted_structures(self.package, structures)
        region = None if settings.allow_unexpected_input else region_for(volumes[0], self.package)
        if region is not None:
            checks.check_shape(volumes, self.package)
            return self._in_region(region, volumes[0], structures, settings, progress)
        begin = time.perf_counter()
        findings = [*checks.check_input(volumes, self.package, allow=settings.allow_unexpected_input)]
        run.clock("check", begin)
        search = search_for(self.package, wanted, settings)
        with computing(settings.threads):
            labels, probabilities, tallies, (places, volumes_ml) = self._run(
                volumes, search.structures, settings, run, progress
            )
        start = time.perf_counter()
        postprocess.keep_largest(labels, search.own_steps)
        if search.inside:
            postprocess.drop_detached(labels, search.inside)
        if search.structures != wanted:
            labels = only(labels, self.package, wanted)
            tallies = {name: tallies[name] for name in wanted}
        names, groups = names_of(self.package, wanted)
        result = Segmentation(
            freeze(labels), volumes[0].grid, names, groups=groups, probabilities=probabilities,
            synthesised=volumes[0].synthesised, uncertainty=volumes[0].uncertainty,
        )  # fmt: skip
        if search.cleaned:
            result = postprocess.clean(result, wanted)
        run.clock("postprocess", start)
        start = time.perf_counter()
        measured = reliability.measure(tallies, self.package)
        ranges = self.package.reliability.get("volume_ml")
        said = volumes[0].modality
        ct = said == "CT" if said else self.package.modality == ("CT",)  # as `checks` takes it
        findings += reliability.check_tested(wanted, self.package)
        findings += reliability.check_result(
            result, wanted, measured, places, ranges_ml=ranges, image=volumes[0], ct=ct, volumes_ml=volumes_ml
        )
        run.clock("reliability", start)
        run.timings["total"] = round(time.perf_counter() - begin, 4)
        return replace(
            result,
            findings=(*result.findings, *findings),
            metadata=self._metadata(wanted, measured, run, settings),
        )

    def _in_region(
        self, region: Region, volume: Volume, structures: Sequence[str] | None, settings: InferenceSettings,
        progress: Progress,
    ) -> Segmentation:  # fmt: skip
        """Another package finds the region; loaded on first use, kept warm beside this one."""
        if self._finder is None:
            self._finder = Engine(registry.package(region.model), replace(self.settings, folds=None))
        if region_for(volume, self._finder.package) is not None:
            raise ModelError(
                f"model {region.model!r} cannot find a region for {self.package.name!r}: it knows crops alone"
            )
        how = replace(settings, folds=None, probabilities=(), postprocess=None, overlap=None)
        found = self._finder.predict(volume, structures=region.structures, settings=how, progress=progress)
        draw = partial(self.predict, structures=structures, settings=settings)
        return in_region(volume, self.package, region, found, draw)

    def _run(
        self,
        volumes: Sequence[Volume],
        wanted: Sequence[str],
        settings: InferenceSettings,
        run: Run,
        progress: Progress,
    ) -> tuple[NDArray[Any], dict[str, NDArray[Any]], dict[str, Tally], tuple[dict[str, Point], dict[str, float]]]:
        start = time.perf_counter()
        frame = make_frame(volumes, self.package)
        slab = slab_axis(frame.shape, self.package.patch_size)
        order = three([slab, *(n for n in range(3) if n != slab)])
        labels = np.zeros_like(volumes[0].data, label_type(self.package), order="K")
        run.plan = memory.plan_case(self.networks, frame, slab=slab, label_bytes=labels.nbytes, settings=settings)
        if run.planned:
            run.planned(run.plan)
        resampled = network_image(volumes, self.package, frame, threads=settings.threads or cores())
        image, offset = padded(resampled, self.package)
        run.clock("resample", start)
        case = Case(frame, order, image, permuted(offset, order), settings, run, progress)
        decision = decision_for(self.package, wanted, settings)
        channels = [n for n, value in enumerate(decision.values) if value]
        if self.package.tissues:
            reducer, seen, run.grey_values = reduce_by_intensity(
                self.networks, case, self._sweep(settings), volumes[0], labels, decision
            )
            return (
                labels,
                _probabilities(reducer, case, volumes[0]),
                reducer.tallies,
                located(seen, case, volumes[0], self.package),
            )
        box, census = locate(self.networks, case, channels)
        while True:
            reducer = self._refine(case, box, labels, decision)
            larger = None if box is None else grown(box, reducer.census.box(channels), case.shape)
            if larger is None:
                break
            box = larger
            labels[...] = 0
        run.region = None if box is None else [[int(n) for n in corner] for corner in box]
        places = located(census or reducer.census, case, volumes[0], self.package)
        return labels, _probabilities(reducer, case, volumes[0]), reducer.tallies, places

    def _sweep(self, settings: InferenceSettings) -> Sweep:
        overlap = self.package.sampling.overlap if settings.overlap is None else settings.overlap
        return Sweep(overlap, flips(self.package, settings), self.networks.folds)

    def _refine(self, case: Case, box: Box | None, labels: NDArray[Any], decision: Decision) -> Reducer:
        """All tiles, flips and folds that reach the box, reduced to labels there (everywhere when box is None)."""
        import torch

        frame, order, shape = case.frame, case.order, case.shape
        low, high = (np.zeros(3, int), np.array(shape)) if box is None else box
        view = np.transpose(moved(labels, frame), order)
        steps = permuted_floats([1 / s for s in frame.step], order)
        windows = [
            window(int(a), int(b), n_in=n, n_out=m, step=s)
            for a, b, n, m, s in zip(low, high, shape, view.shape, steps, strict=True)
        ]
        plane = [int(n) for n in (high - low)[1:]]
        settings = case.settings
        sweep = self._sweep(settings)
        with ThreadPoolExecutor(settings.threads or cores()) as pool:
            kind = partial(CellReducer, pool=pool) if self.device.type == "cpu" else Reducer
            reducer = kind(
                shape,
                view,
                decision,
                windows=(windows[0], windows[1], windows[2]),
                steps=steps,
                orders=permuted(frame.score_orders, order),
                device=self.device,
            )
            # a reducer still holds the plane before; fresh memory for every plane would take longer than what is put in it
            rooms = [torch.empty((*plane, self.networks.channels_out), device=self.device) for _ in range(2)]
            for index, averaged in planes(self.networks, case, sweep, low, high):
                start = time.perf_counter()
                scores = self.networks.last_layer(averaged, rooms[index % 2])
                case.run.clock("network", start)
                start = time.perf_counter()
                reducer.take(index, self.networks.checked(scores))
                case.run.clock("reduce", start)
        return reducer

    def _metadata(
        self, wanted: Sequence[str], measured: dict[str, dict[str, Any]], run: Run, settings: InferenceSettings
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
            "folds": len(self.networks.folds),
            "mirrored_axes": list(mirror_axes(package, settings)),
            "overlap": package.sampling.overlap if settings.overlap is None else settings.overlap,
            "tiles": run.tiles,
            "region": run.region,
            "batch": run.plan.batch if run.plan else 1,
            "memory_budget_gib": round(run.plan.budget_gib, 2) if run.plan else None,
            "memory_planned_gib": round(run.plan.need_gib, 2) if run.plan else None,
            "expected_dice": expected,
            **({"grey_values": run.grey_values} if run.grey_values else {}),
            "reliability": measured,
            "load_s": round(self.load_seconds, 3),
            "timings_s": dict(run.timings),
        }


def _channels(volume: Volume | Sequence[Volume]) -> tuple[Volume, ...]:
    """The image, or one per input channel. Raises `InputError` for anything else."""
    volumes = tuple(volume) if isinstance(volume, Sequence) else (volume,)
    for one in volumes:
        if not isinstance(one, Volume):
            raise InputError(
                f"a study is {one!r:.80}; expected a Volume, as `slice3d.load` makes from a file or folder"
            )
    return volumes


def _size_gib(volumes: Sequence[Volume]) -> float:
    """What these hold in memory."""
    arrays = (a for v in volumes for a in (v.data, v.synthesised, v.uncertainty) if a is not None)
    return float(sum(a.nbytes for a in arrays)) / memory.GIB


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


def _probabilities(reducer: Reducer, case: Case, volume: Volume) -> dict[str, NDArray[Any]]:
    """Fields of the looked-at box, slab axis first, on the study's grid; zero elsewhere."""
    fields = {}
    for name, field in reducer.probability.items():
        out = np.zeros(volume.grid.shape, field.dtype)
        np.transpose(moved(out, case.frame), case.order)[...] = field
        fields[name] = freeze(out)
    return fields
