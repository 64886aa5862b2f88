"""The methods behind one protocol: prepare on a stack's slices, then turn slices into fine samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from slice3d.progress import Progress, silent
from slice3d.superres.interpolate import BASELINES
from slice3d.superres.profile import SliceOperator


@dataclass(frozen=True)
class UpsampleSettings:
    """How `upsample` works.

    minutes: time that learning methods may take in all. steps: a fixed number of training steps instead of a time
    budget, for results that repeat exactly. seed: of everything random. axis: the array axis of the slices (default:
    the one with the largest spacing). device: `"auto"`, `"cpu"` or `"cuda"`. self_check: hold out every second slice
    and report the error (default: where it costs seconds; a learning method must train a second time, for a quarter
    of its budget)."""

    minutes: float = 4.0
    steps: int | None = None
    seed: int = 0
    axis: int | None = None
    device: str = "auto"
    self_check: bool | None = None


@dataclass(frozen=True)
class Superres:
    """What `slice3d.pipeline.run` does to a study before it is segmented: the arguments of `upsample`."""

    spacing_mm: float = 1.0
    method: str = "auto"
    settings: UpsampleSettings = field(default_factory=UpsampleSettings)


class Fitted(Protocol):
    """A method ready for one stack."""

    @property
    def facts(self) -> dict[str, Any]:
        """What to report about the fit."""

    def estimate(self, slices: NDArray[np.float32], operator: SliceOperator) -> NDArray[np.float32]:
        """(a, b, n) slices → (a, b, m) fine samples, not yet made consistent."""

    def lines(self, slices: NDArray[np.float32], operator: SliceOperator) -> NDArray[np.float32]:
        """(s, L, n) → (s, L, m): the same for planes of lines by themselves, to learn the method's errors."""


class Method(Protocol):
    """A way to estimate what lies between slices."""

    @property
    def name(self) -> str:
        """As the user names it."""

    @property
    def learns(self) -> bool:
        """Whether it takes the time budget."""

    def fit(
        self,
        slices: NDArray[np.float32],
        in_plane_mm: tuple[float, float],
        operator: SliceOperator,
        settings: UpsampleSettings,
        progress: Progress = silent,
    ) -> Fitted:
        """Prepare for (a, b, n) slices."""


@dataclass(frozen=True)
class Interpolation:
    """A baseline: one matrix along the normal."""

    name: str
    learns: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

    def fit(
        self,
        slices: NDArray[np.float32],
        in_plane_mm: tuple[float, float],
        operator: SliceOperator,
        settings: UpsampleSettings,
        progress: Progress = silent,
    ) -> Fitted:
        """Nothing to prepare."""
        return self

    def estimate(self, slices: NDArray[np.float32], operator: SliceOperator) -> NDArray[np.float32]:
        """(…, n) → (…, m)."""
        matrix = BASELINES[self.name](operator.slices_mm, operator.fine_mm).T.astype(np.float32)
        out: NDArray[np.float32] = slices @ matrix
        return out

    lines = estimate


@dataclass(frozen=True)
class Learning:
    """A 2D network in planes, trained across subjects (`shipped`), on the stack's own in-plane detail (`trains`), or
    both. mends: after shipped weights the shipped 3D network goes over what both directions of planes say."""

    name: str
    shipped: bool
    trains: bool
    mends: bool = True

    @property
    def learns(self) -> bool:
        """Whether it takes the time budget."""
        return self.trains

    def fit(
        self,
        slices: NDArray[np.float32],
        in_plane_mm: tuple[float, float],
        operator: SliceOperator,
        settings: UpsampleSettings,
        progress: Progress = silent,
    ) -> Fitted:
        """Read the weights and train, within the time budget."""
        from slice3d.superres import pretrained, selftrain
        from slice3d.superres.pairs import scale_of
        from slice3d.superres.planes import PlaneNetwork, chosen_device
        from slice3d.superres.volumes import VolumeEstimate

        device = chosen_device(settings.device)
        start, over = None, None
        facts: dict[str, Any] = {}
        if self.shipped:
            weights = pretrained.weights()
            start = pretrained.network(weights)
            facts = {"weights": weights.name, "weights_sha256": weights.sha256}
            if self.mends:
                over = pretrained.volume_network(weights).to(device)
                facts["volume_weights_sha256"] = weights.volume_sha256
        step, profile = operator.slice_step_mm, operator.profile
        if self.trains or start is None:
            rate = selftrain.TrainSettings().learning_rate / (3 if start is not None else 1)
            chosen = selftrain.TrainSettings(
                minutes=settings.minutes,
                steps=settings.steps,
                seed=settings.seed,
                device=settings.device,
                learning_rate=rate,
            )
            trained = selftrain.fit(slices, in_plane_mm, step, profile, settings=chosen, start=start, progress=progress)
            planes, facts = trained.planes, {**facts, "training_steps": trained.steps}
        else:
            planes = PlaneNetwork(start.to(device), scale_of(slices[::3, ::3]), step, profile, turned=True)
        return _Ready(planes if over is None else VolumeEstimate(planes, over), in_plane_mm, progress, facts)


@dataclass(frozen=True, eq=False)
class _Ready:
    planes: Any
    in_plane_mm: tuple[float, float]
    progress: Progress
    facts: dict[str, Any]

    def estimate(self, slices: NDArray[np.float32], operator: SliceOperator) -> NDArray[np.float32]:
        fine_mm = operator.fine_mm - operator.slices_mm[0]
        out: NDArray[np.float32] = self.planes.volume(slices, self.in_plane_mm, fine_mm, progress=self.progress)
        return out

    def lines(self, slices: NDArray[np.float32], operator: SliceOperator) -> NDArray[np.float32]:
        fine_mm = operator.fine_mm - operator.slices_mm[0]
        out: NDArray[np.float32] = self.planes.planes(slices, max(self.in_plane_mm), fine_mm)
        return out


def _variation() -> Method:
    from slice3d.superres.single import Variation

    return Variation()


def _implicit() -> Method:
    from slice3d.superres.single import Implicit

    return Implicit()


METHODS: dict[str, Callable[[], Method]] = {
    **{name: partial(Interpolation, name) for name in BASELINES},
    "tv": _variation,
    "selftrain": partial(Learning, "selftrain", shipped=False, trains=True),
    "pretrained": partial(Learning, "pretrained", shipped=True, trains=False),
    "pretrained+selftrain": partial(Learning, "pretrained+selftrain", shipped=True, trains=True),
    "implicit": _implicit,
}
# What joins several stacks; the first is what `auto` takes.
JOINING = ("tv", "implicit")
