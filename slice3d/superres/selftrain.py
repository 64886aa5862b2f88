"""Self-training: what the slices show within their plane teaches what lies between them.

Within the plane a study has the resolution that it lacks along the normal. In-plane lines are averaged with the slice
profile and sampled at the slice distance, and a 2D network learns to undo that; it is then applied to the two families
of planes that contain the normal, and both answers are averaged (the idea of SMORE, Zhao 2020, with the measured
profile of Remedios 2023). No other subject's data is involved, unless training starts from the shipped weights.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from slice3d.errors import InputError
from slice3d.progress import Progress, silent
from slice3d.superres.network import Frame, SliceNetwork, condition_of
from slice3d.superres.pairs import PATCH_LINES, Patches, Thick, margin_mm, scale_of, width_of
from slice3d.superres.planes import PAD, PlaneNetwork, autocast, chosen_device
from slice3d.superres.profile import SliceProfile

log = logging.getLogger(__name__)

PHASES = 8
PATCH_SLICES = 16
MIN_PATCH_SLICES = 7
# Fine samples at either end of a patch that the loss leaves out: two slices.
_EDGE = slice(16, -16)
# The share of the time budget that is trained even when applying the network to a large stack takes the rest.
MIN_TRAINING = 0.3


@dataclass(frozen=True)
class TrainSettings:
    """minutes: time for training and application together. steps: a fixed number of training steps instead
    (repeatable).

    seed: of weights and patches. channels, blocks: size of the network, unless one is given to start from. device:
    `"cpu"`, `"cuda"` or `"auto"`.
    """

    minutes: float = 4.0
    steps: int | None = None
    seed: int = 0
    channels: int = 64
    blocks: int = 8
    batch: int = 16
    learning_rate: float = 1.5e-3
    device: str = "auto"


class InPlane:
    """Training pairs from in-plane lines of one stack: thick slices as the profile makes them, and the truth."""

    def __init__(
        self,
        slices: NDArray[np.float32],
        in_plane_mm: tuple[float, float],
        slice_step_mm: float,
        profile: SliceProfile,
        seed: int,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.rng = rng
        room = [n * s for n, s in zip(slices.shape[:2], in_plane_mm, strict=True)]
        margin = margin_mm(slice_step_mm, profile)
        self.count = min(PATCH_SLICES, *(int((size - 2 * margin) / slice_step_mm) for size in room))
        if self.count < MIN_PATCH_SLICES:
            raise InputError(
                f"the slices measure {room[0]:.0f}×{room[1]:.0f} mm, too little for self-training at a slice "
                f"distance of "
                f"{slice_step_mm:g} mm; expected at least {MIN_PATCH_SLICES * slice_step_mm + 2 * margin:.0f} mm; "
                "use method='bspline'"
            )
        self.patches = Patches(np.ascontiguousarray(slices.transpose(2, 0, 1)), rng)
        self.lines = min(PATCH_LINES, *slices.shape[:2])
        # Axis 0 of `Patches` runs along the stack's second in-plane axis, across the first.
        along_mm = (in_plane_mm[1], in_plane_mm[0])
        self.widths = [width_of(self.count, mm, slice_step_mm, profile) for mm in along_mm]
        phases = [(n + 0.5) / PHASES for n in range(PHASES)]
        self.thick = [[Thick(self.count, mm, slice_step_mm, profile, phase) for phase in phases] for mm in along_mm]
        self.conditions = [torch.tensor([condition_of(mm, slice_step_mm, profile)]) for mm in in_plane_mm]

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, L, n) thick slices, (B, L, m) truth and the condition, from random places along one in-plane axis."""
        axis = int(self.rng.integers(2))
        thick = self.thick[axis][int(self.rng.integers(PHASES))]
        low, high = thick.pairs(self.patches.draw(size, self.lines, self.widths[axis], axis))
        return low, high, self.conditions[axis]


@dataclass(frozen=True, eq=False)
class SelfTrained:
    """A network fitted to one stack, and how many steps that took."""

    planes: PlaneNetwork
    steps: int


def fit(
    slices: NDArray[np.float32],
    in_plane_mm: tuple[float, float],
    slice_step_mm: float,
    profile: SliceProfile,
    *,
    settings: TrainSettings,
    start: SliceNetwork | None = None,
    progress: Progress = silent,
) -> SelfTrained:
    """Train on the stack's own in-plane detail.

    slices: (a, b, n), through-plane last. start: a network to train further instead of a fresh one. With
    `settings.steps` the same input gives the same network on the same device; with a time budget the number of steps
    follows from the speed measured in the first ones, and is in `steps`. Raises `InputError` when the slices are too
    small to hold training patches."""
    begin = time.perf_counter()
    torch.manual_seed(settings.seed)
    network = copy.deepcopy(start) or SliceNetwork(channels=settings.channels, blocks=settings.blocks)
    network = network.to(chosen_device(settings.device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    source = InPlane(slices, in_plane_mm, slice_step_mm, profile, settings.seed)
    frame = Frame(source.count, slice_step_mm, profile)
    scale = scale_of(slices[::3, ::3])
    voxels = 4 * slices.shape[0] * slices.shape[1] * (slices.shape[2] + 2 * PAD)
    steps = _train(network, source, frame, scale, settings, begin, voxels, progress)
    log.info("self-training: %d steps in %.0f s", steps, time.perf_counter() - begin)
    return SelfTrained(PlaneNetwork(network, scale, slice_step_mm, profile, turned=True), steps)


def _train(
    network: SliceNetwork,
    source: InPlane,
    frame: Frame,
    scale: tuple[float, float],
    settings: TrainSettings,
    begin: float,
    voxels: int,
    progress: Progress,
) -> int:
    device = next(network.parameters()).device
    optimiser = torch.optim.Adam(network.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), fused=True)
    averaged = [p.detach().clone() for p in network.parameters()]
    base, null = frame.base.to(device), frame.null.to(device)
    steps = settings.steps or 1_000_000
    step = 0
    warm = time.perf_counter()
    while step < steps:
        low, high, condition = source.batch(settings.batch)
        low, high = ((t - scale[0]) / scale[1] for t in (low, high))
        low, high = low.to(device), high.to(device)
        rate = settings.learning_rate * _schedule(step / steps if settings.steps or step >= 8 else 0.0, step)
        for group in optimiser.param_groups:
            group["lr"] = rate
        with autocast(device):
            detail = network(low, condition.to(device))
        error = (low @ base + detail.float() @ null - high)[..., _EDGE]
        loss = error.square().mean() / (error.detach().square().mean().sqrt() + 1e-3)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
        keep = min(0.995, step / (step + 10.0))
        torch._foreach_lerp_(averaged, [p.detach() for p in network.parameters()], 1 - keep)
        if settings.steps is None and step in (3, 8, 40, 160):
            if step == 3:
                warm = time.perf_counter()
                continue
            pace = (time.perf_counter() - warm) / (step - 3)
            budget = settings.minutes * 60
            # a training step costs about three passes forward
            application = 1.3 * pace / 3 * voxels / (settings.batch * source.lines * source.count)
            left = budget - (time.perf_counter() - begin) - application
            steps = step + max(10, int(max(left, MIN_TRAINING * budget) / pace))
        progress("self-training", min(1.0, step / steps))
    with torch.no_grad():
        for p, value in zip(network.parameters(), averaged, strict=True):
            p.copy_(value)
    return step


def _schedule(fraction: float, step: int) -> float:
    """Warm-up over 20 steps, then a cosine to zero."""
    return min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))
