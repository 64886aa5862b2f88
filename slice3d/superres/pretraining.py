"""Training the shipped network across subjects: every slice distance and profile, drawn anew for each step.

What one in-plane axis of an image shows is taken for anatomy along the normal, as in self-training; sizes are in
pixels, so that an image of any resolution serves. `benchmarks/train_superres.py` collects the images."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from slice3d.superres.learning import Learner
from slice3d.superres.network import Frame, SliceNetwork, condition_of
from slice3d.superres.pairs import PATCH_LINES, Patches, Thick, fits
from slice3d.superres.profile import Kind, SliceProfile

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Images:
    """(k, y, x) planes of one subject with square pixels, scaled so that its range is about 0 to 4. share: how often it
    is drawn."""

    name: str
    planes: NDArray[np.floating]
    share: float = 1.0


@dataclass(frozen=True)
class PretrainSettings:
    """minutes: by the clock; the learning rate falls to nearly zero at their end. tasks: how many combinations of slice distance, profile and phase are drawn.

    subjects, patches: per step. pixels: range of slice distances in pixels; rather more are drawn in its middle."""

    minutes: float = 45.0
    seed: int = 0
    channels: int = 64
    blocks: int = 8
    tasks: int = 160
    subjects: int = 4
    patches: int = 4
    pixels: tuple[float, float] = (2.0, 9.0)
    learning_rate: float = 1.2e-3


class Task:
    """One way to make slices thick, in pixels."""

    def __init__(self, rng: np.random.Generator, pixels: tuple[float, float]) -> None:
        low, high = (math.log2(p) for p in pixels)
        self.step = 2.0 ** (low + (high - low) * rng.beta(2.2, 1.5))
        kind: Kind = "rect" if rng.random() < 0.2 else "gaussian"
        profile = SliceProfile(kind, self.step * rng.uniform(0.5, 1.15))
        count = 16 if self.step < 6.5 else 12
        self.thick = Thick(count, 1.0, self.step, profile, rng.random())
        self.frame = Frame(count, self.step, profile)
        self.condition = torch.tensor([condition_of(1.0, self.step, profile)])


def pretrain(
    sources: Sequence[Images],
    *,
    settings: PretrainSettings,
    save: Callable[[SliceNetwork, int], None],
    start: SliceNetwork | None = None,
) -> SliceNetwork:
    """Train on `sources` and return the averaged network; `save(network, step)` is called every few minutes."""
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    network = start or SliceNetwork(channels=settings.channels, blocks=settings.blocks)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    tasks = [Task(rng, settings.pixels) for _ in range(settings.tasks)]
    patches = [Patches(source.planes, rng) for source in sources]
    shares = np.array([source.share for source in sources])
    learner: Learner[SliceNetwork] = Learner(network, learning_rate=settings.learning_rate, decay=0.999)
    begin = time.perf_counter()
    spent, told, saved = 0.0, 0.0, 0.0
    gains: list[float] = []
    while spent < 1.0:
        task = tasks[int(rng.integers(len(tasks)))]
        able = np.array([fits(s.planes.shape[1:], PATCH_LINES, task.thick.width) for s in sources])
        if not able.any():
            continue
        odds = shares * able / (shares * able).sum()
        drawn = []
        for s in rng.choice(len(sources), size=settings.subjects, p=odds):
            patch = patches[s].draw(settings.patches, PATCH_LINES, task.thick.width, int(rng.integers(2)))
            drawn.append(patch * rng.uniform(0.7, 1.4))
        low, high = task.thick.pairs(np.concatenate(drawn).astype(np.float32))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            detail = network(low, task.condition)
        loss, gain = relative_error(low, detail.float(), high, task.frame, settings.subjects)
        learner.step(loss, spent)
        gains.append(gain)
        spent = (time.perf_counter() - begin) / (60 * settings.minutes)
        if spent - told >= 0.01:
            told = spent
            log.info(
                "step %d, %.0f %%: gain %.2f dB over %d steps", learner.steps, 100 * spent, np.mean(gains), len(gains)
            )
            gains = []
        if (spent - saved) * settings.minutes >= 4 or spent >= 1:
            saved = spent
            save(learner.average, learner.steps)
    return learner.average


def relative_error(
    low: torch.Tensor, detail: torch.Tensor, high: torch.Tensor, frame: Frame, groups: int
) -> tuple[torch.Tensor, float]:
    """Squared error as a share of the spline's, the mean over `groups` of patches; and the gain in dB."""
    edge = slice(16, -16)
    base = low @ frame.base
    error = (base + detail @ frame.null - high)[..., edge].square().reshape(groups, -1).mean(1)
    spline = (base - high)[..., edge].square().reshape(groups, -1).mean(1)
    share = error / (spline + 1e-5)
    return share.mean(), float(-10 * share.detach().clamp_min(1e-6).log10().mean())
