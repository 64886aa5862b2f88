"""One study on its way through the engine: the network's image, its axes in slab order, what the run collects."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.inference.memory import Plan
from slice3d.inference.prepare import Frame, pad_value
from slice3d.inference.settings import InferenceSettings
from slice3d.models.package import ModelPackage
from slice3d.progress import Progress

Axes = tuple[int, int, int]


@dataclass
class Run:
    """What one case collects on its way."""

    timings: dict[str, float]
    plan: Plan | None = None
    tiles: int = 0
    region: list[list[int]] | None = None
    grey_values: dict[str, Any] | None = None
    planned: Callable[[Plan], None] | None = None
    """Called once the memory plan is made, before anything large is."""

    def clock(self, name: str, start: float) -> None:
        """Add the time since `start` (of `time.perf_counter`) to a stage's seconds."""
        self.timings[name] = round(self.timings.get(name, 0.0) + time.perf_counter() - start, 4)


@dataclass(frozen=True)
class Case:
    """One study on its way: image (C, …) along the network's axes, padded; offset: where the study starts in it.

    order: the network's axes, slab axis first; `offset`, `shape` and every box are along it.
    """

    frame: Frame
    order: Axes
    image: NDArray[np.float32]
    offset: Axes
    settings: InferenceSettings
    run: Run
    progress: Progress

    @property
    def shape(self) -> Axes:
        """The network grid's shape, without padding."""
        return permuted(self.frame.shape, self.order)

    @property
    def padded_shape(self) -> Axes:
        """The shape of the image that tiles are cut from."""
        return permuted(three(self.image.shape[1:]), self.order)


def slab_axis(shape: Axes, patch: Axes) -> int:
    """The axis with most patches in it: the buffer across it is the smallest."""
    return int(np.argmax([max(n, p) / p for n, p in zip(shape, patch, strict=True)]))


def padded(image: NDArray[np.float32], package: ModelPackage) -> tuple[NDArray[np.float32], Axes]:
    """The image grown to at least one patch, evenly on both sides; also where the study starts in it."""
    before, after = [], []
    for n, p in zip(image.shape[1:], package.patch_size, strict=True):
        missing = max(0, p - n)
        before.append(missing // 2)
        after.append(missing - missing // 2)
    if any(before) or any(after):
        widths = [(0, 0), *zip(before, after, strict=True)]
        image = np.pad(image, widths, constant_values=pad_value(image, package))
    return image, (before[0], before[1], before[2])


def moved(array: NDArray[Any], frame: Frame) -> NDArray[Any]:
    """A writable view of the looked-at box of a study array, along the network's axes."""
    turned = array.transpose(frame.axes)[tuple(slice(None, None, -1) if f else slice(None) for f in frame.flips)]
    return turned[frame.box]


def permuted(values: Sequence[int], order: Sequence[int]) -> Axes:
    """Three integers in another order."""
    return values[order[0]], values[order[1]], values[order[2]]


def permuted_floats(values: Sequence[float], order: Sequence[int]) -> tuple[float, float, float]:
    """Three numbers in another order."""
    return values[order[0]], values[order[1]], values[order[2]]


def three(values: Sequence[int]) -> Axes:
    """Three integers as a tuple of that length."""
    return int(values[0]), int(values[1]), int(values[2])
