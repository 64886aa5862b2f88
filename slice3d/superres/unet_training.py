"""Training the 3D network over a frozen plane network, across subjects.

Near-isotropic volumes are made thick along one of their axes as `Thick` does it, at a slice distance and with a profile
drawn anew; the plane network answers, and the 3D network learns what is missing. Answers are kept in a pool and used
several times, turned and scaled, since making one costs more than learning from it."""

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
from slice3d.superres.network import RATE, Frame, SliceNetwork, condition_of
from slice3d.superres.pairs import Thick, margin_mm
from slice3d.superres.profile import Kind, SliceProfile
from slice3d.superres.unet import PAD, VolumeNetwork, both_directions

log = logging.getLogger(__name__)

MIN_SLICES, MAX_SLICES = 6, 16
# Lines and slices around a patch that the plane network sees: at the border it answers worse than in a stack's middle.
CONTEXT, CONTEXT_SLICES = 12, 2
# What the loss leaves out of a patch's border, in lines, and half a slice at either end.
_BORDER = slice(4, -4)
_ENDS = slice(RATE // 2, -(RATE // 2))


@dataclass(frozen=True, eq=False)
class Subject:
    """A near-isotropic volume, scaled so that its range is about 0 to 4. axes: which of its axes may be the normal.

    side: of training patches within the plane, in voxels (a multiple of 8). share: how often it is drawn."""

    name: str
    data: NDArray[np.floating]
    axes: tuple[int, ...] = (0, 1, 2)
    side: int = 48
    share: float = 1.0


@dataclass(frozen=True)
class VolumeTraining:
    """minutes: by the clock; the learning rate falls to nearly zero at their end. steps: a number of steps instead.

    pool: how many batches are kept. every: a new batch joins the pool every so many steps. voxels: of the slices of a
    batch. pixels: range of slice distances in voxels."""

    minutes: float = 60.0
    steps: int | None = None
    seed: int = 0
    learning_rate: float = 6e-4
    pool: int = 500
    every: int = 16
    voxels: int = 4 * 48 * 48 * 12
    pixels: tuple[float, float] = (2.0, 9.0)


@dataclass(frozen=True, eq=False)
class Batch:
    """Patches of one subject at one slice distance: (B, s, s, n) slices; (B, s, s, n · RATE) estimate, difference, truth."""

    name: str
    slices: torch.Tensor
    fine: torch.Tensor
    apart: torch.Tensor
    truth: torch.Tensor
    null: torch.Tensor
    condition: torch.Tensor

    def augmented(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """slices, fine, apart, truth as float32: mirrored, exchanged and scaled at random."""
        out = [t.float() for t in (self.slices, self.fine, self.apart, self.truth)]
        dims = [d for d in (1, 2, 3) if rng.random() < 0.5]
        # the samples of a slice lie evenly around its centre: a mirrored line is a mirrored array
        out = [t.flip(dims) for t in out] if dims else out
        if rng.random() < 0.5:
            out = [t.transpose(1, 2) for t in out]
            out[2] = -out[2]
        factor = float(rng.uniform(0.7, 1.4))
        return out[0] * factor, out[1] * factor, out[2] * factor, out[3] * factor


def make_batch(
    subject: Subject, plane_network: SliceNetwork, settings: VolumeTraining, rng: np.random.Generator
) -> Batch | None:
    """Draw a normal, a slice distance, a profile and patches; None where the subject is too small for them."""
    axis = int(rng.choice(subject.axes))
    data = np.moveaxis(subject.data, axis, 2)
    low, high = (math.log2(p) for p in settings.pixels)
    step = 2.0 ** (low + (high - low) * rng.beta(2.2, 1.5))
    kind: Kind = "rect" if rng.random() < 0.2 else "gaussian"
    profile = SliceProfile(kind, step * rng.uniform(0.5, 1.15))
    count = min(MAX_SLICES, int((data.shape[2] - 2 * margin_mm(step, profile)) // step)) // 2 * 2
    if count < MIN_SLICES or min(data.shape[:2]) < subject.side:
        return None
    thick = Thick(count, 1.0, step, profile, rng.random())
    if thick.width > data.shape[2]:
        return None
    beyond = CONTEXT_SLICES if count >= 12 else 1
    kept = count - 2 * beyond
    size = max(1, round(settings.voxels / (subject.side**2 * kept)))
    region, inner = _regions(data.shape, subject.side, rng)
    patches = np.stack([_patch(data, (*region, thick.width), rng) for _ in range(size)])
    slices, truth = thick.pairs(patches)
    condition = torch.tensor([condition_of(1.0, step, profile)])
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        frame = Frame(count + 2 * PAD, step, profile)
        fine, apart = both_directions(plane_network, slices, (condition, condition), frame)
    null = Frame(kept, step, profile).null
    samples = slice(beyond * RATE, (count - beyond) * RATE)
    cut = [
        t[:, inner[0], inner[1]]
        for t in (slices[..., beyond : count - beyond], *(x[..., samples] for x in (fine, apart, truth)))
    ]
    half = [t.clone().half() for t in cut]
    return Batch(subject.name, half[0], half[1], half[2], half[3], null, condition)


def _regions(shape: Sequence[int], side: int, rng: np.random.Generator) -> tuple[tuple[int, int], tuple[slice, slice]]:
    """How much of the plane the plane network sees, and which part of that is learnt from: its middle, or in a subject
    without so much room any part."""
    sizes, parts = [], []
    for n in shape[:2]:
        size = min(n, side + 2 * CONTEXT)
        first = CONTEXT if size == side + 2 * CONTEXT else int(rng.integers(size - side + 1))
        sizes.append(size)
        parts.append(slice(first, first + side))
    return (sizes[0], sizes[1]), (parts[0], parts[1])


def _patch(data: NDArray[np.floating], shape: Sequence[int], rng: np.random.Generator) -> NDArray[np.float32]:
    """A box of `shape`; of three drawn at random, the first one that is not flat."""
    for _ in range(3):
        i, j, k = (int(rng.integers(n - m + 1)) for n, m in zip(data.shape, shape, strict=True))
        patch = np.asarray(data[i : i + shape[0], j : j + shape[1], k : k + shape[2]], dtype=np.float32)
        if patch[::3, ::3, ::3].std() > 0.15:
            break
    return patch


def loss_of(network: VolumeNetwork, batch: Batch, parts: Sequence[torch.Tensor]) -> tuple[torch.Tensor, float, float]:
    """Squared error as a share of the plane network's, over all patches together, and both sums of squares."""
    slices, fine, apart, truth = parts
    with torch.autocast("cpu", dtype=torch.bfloat16):
        detail = network(fine, apart, slices, batch.condition)
    inner = (slice(None), _BORDER, _BORDER, _ENDS)
    error = (fine + detail.float() @ batch.null - truth)[inner].square().mean((1, 2, 3))
    before = (fine - truth)[inner].square().mean((1, 2, 3))
    share = error.sum() / (before.sum() + 0.002 * len(before))
    return share, float(error.detach().sum()), float(before.sum())


def train_volume(
    subjects: Sequence[Subject],
    plane_network: SliceNetwork,
    *,
    settings: VolumeTraining,
    save: Callable[[VolumeNetwork, int], None],
    start: VolumeNetwork | None = None,
    watched: Sequence[Batch] = (),
) -> VolumeNetwork:
    """Train on `subjects` and return the averaged network; `save(network, step)` is called every few minutes.

    watched: batches of subjects that are not trained on, whose gain is logged."""
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    network = start or VolumeNetwork()
    network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    learner: Learner[VolumeNetwork] = Learner(network, learning_rate=settings.learning_rate, decay=0.998)
    shares = np.array([s.share for s in subjects])
    pool: list[Batch] = []
    begin = time.perf_counter()
    joined, told, saved = 0, 0.0, 0.0
    errors: list[tuple[float, float]] = []
    spent = 0.0
    while spent < 1.0:
        while len(pool) < 8 or joined * settings.every <= learner.steps:
            subject = subjects[int(rng.choice(len(subjects), p=shares / shares.sum()))]
            # small subjects hold small slice distances only
            drawn = (make_batch(subject, plane_network, settings, rng) for _ in range(8))
            fresh = next((batch for batch in drawn if batch is not None), None)
            if fresh is None:
                continue
            joined += 1
            if len(pool) < settings.pool:
                pool.append(fresh)
            else:
                pool[int(rng.integers(len(pool)))] = fresh
        batch = pool[int(rng.integers(len(pool)))]
        loss, after, before = loss_of(network, batch, batch.augmented(rng))
        learner.step(loss, spent)
        errors.append((after, before))
        minutes = (time.perf_counter() - begin) / 60
        spent = minutes / settings.minutes if settings.steps is None else learner.steps / settings.steps
        if minutes - told >= 1:
            told = minutes
            gain = float(np.mean([10 * math.log10(b / a) for a, b in errors]))
            log.info("step %d, %.0f %%: gain %.3f dB over %d steps", learner.steps, 100 * spent, gain, len(errors))
            errors = []
        if minutes - saved >= 4 or spent >= 1:
            saved = minutes
            log.info("not trained on: %s", _gains(learner.average, watched))
            save(learner.average, learner.steps)
    return learner.average


def _gains(network: VolumeNetwork, watched: Sequence[Batch]) -> str:
    """Mean gain over the plane network in dB, by the subject's kind (its name up to a slash)."""
    kinds: dict[str, list[float]] = {}
    for batch in watched:
        with torch.inference_mode():
            parts = [t.float() for t in (batch.slices, batch.fine, batch.apart, batch.truth)]
            _, after, before = loss_of(network, batch, parts)
        kinds.setdefault(batch.name.split("/")[0], []).append(10 * math.log10(before / after))
    return ", ".join(f"{kind} {np.mean(gains):+.3f} dB" for kind, gains in kinds.items())
