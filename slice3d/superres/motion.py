"""Rigid motion between stacks, found together with the volume from coarse to fine.

The first stack stays where its header says; every other one is moved so that the volume which the remaining stacks
describe, seen through its own profile, gives its slices (slice-to-volume registration, Kuklisova-Murgasova 2012, for
whole stacks). Leaving the moved stack out of that volume keeps its present place from pulling it back."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from slice3d.grid import Grid
from slice3d.progress import Progress, silent
from slice3d.superres.scene import Array, Image, View, coarser
from slice3d.superres.variation import DARK, Term, VariationSettings, noise_of, reconstruct

log = logging.getLogger(__name__)

# Radians and mm by which the parameters of a pose are varied for the derivative.
_DELTA = np.array([1e-3] * 3 + [0.1] * 3)
# Lever arm in mm with which a rotation counts as a movement.
ARM_MM = 60.0
# What anatomy cannot tell (how a ball is turned) must not wander off: a movement of 5 mm has to explain at least this
# share of the squared difference. Motion that anatomy shows explains far more.
PRIOR_SHARE, PRIOR_MM = 0.01, 5.0


@dataclass(frozen=True)
class Level:
    """voxel_mm: of the volume. rounds: of volume and poses in turn, fewer when poses stop moving. alone: compare with
    the first stack only."""

    voxel_mm: float
    rounds: int
    alone: bool = False


LEVELS = (Level(4.0, 4, alone=True), Level(4.0, 3), Level(2.0, 4))


@dataclass(frozen=True)
class HeldOut:
    """A stack's slices against what the other stacks say they should be. rms: difference, in the stack's intensities.
    correlation: of both. explained: share of the squared difference at the header's position that the motion removes."""

    rms: float
    correlation: float
    explained: float


@dataclass(frozen=True, eq=False)
class Registered:
    """views: at their found poses and intensity scales. held_out: of every stack after the first."""

    views: list[View]
    held_out: list[HeldOut]


def register(
    views: Sequence[View],
    lattice: Grid,
    bounds: tuple[float, float],
    *,
    levels: Sequence[Level] = LEVELS,
    scales: bool = True,
    progress: Progress = silent,
) -> Registered:
    """Find the pose of every view but the first. bounds: (low, range) of the first stack's intensities. scales: also
    find the gain and offset of each stack's intensities over the first one's."""
    found = list(views)
    held_out = [HeldOut(0.0, 1.0, 0.0)] * (len(found) - 1)
    total, done = sum(level.rounds for level in levels), 0
    for level in levels:
        grid = coarser(lattice, level.voxel_mm)
        small = [view.coarser(level.voxel_mm) for view in found]
        images: dict[int, Image] = {}
        for k in range(level.rounds):
            moved = 0.0
            for n in range(1, len(found)):
                others = [small[m] for m in range(len(found)) if m != n and (m == 0 or not level.alone)]
                if n not in images or not level.alone:
                    images[n] = _volume(others, grid, bounds, images.get(n))
                pose, scale = align(small[n], images[n], grid, bounds, scales=scales)
                moved = max(moved, movement(pose - found[n].pose))
                small[n] = replace(small[n], pose=pose, scale=scale)
                found[n] = replace(found[n], pose=pose, scale=scale)
                held_out[n - 1] = _held_out(small[n], images[n], grid, bounds)
            progress("registration", (done + k + 1) / total)
            log.info("registration at %.1f mm: moved %.3f mm", level.voxel_mm, moved)
            if moved < 0.03:
                break
        done += level.rounds
    return Registered(found, held_out)


def align(
    view: View, image: Image, lattice: Grid, bounds: tuple[float, float], *, rounds: int = 2, scales: bool = True
) -> tuple[Array, tuple[float, float]]:
    """The pose and scale with which `view` sees its slices in `image` (in units of the range): Gauss–Newton, with
    numeric derivatives and outliers weighted down (Huber)."""
    pose, scale = view.pose.copy(), view.scale
    for _ in range(rounds):
        now = replace(view, pose=pose)
        mask = now.inside(lattice)
        seen = now.project(lattice).forward(image)
        x = seen[mask].astype(np.float64) * bounds[1] + bounds[0]
        y = view.slices[mask].astype(np.float64)
        gain, offset = _line(x, y) if scales else (1.0, 0.0)
        difference = y - gain * x - offset
        columns = [
            gain * bounds[1] * (_seen_at(now, lattice, image, n)[mask] - seen[mask]) / _DELTA[n] for n in range(6)
        ]
        if scales:
            columns += [x, np.ones_like(x)]
        jacobian = np.stack(columns, axis=1)
        limit = 1.5 * np.median(np.abs(difference)) + 1e-9 * bounds[1]
        weight = np.minimum(1.0, limit / np.maximum(np.abs(difference), 1e-30))
        stiffness = PRIOR_SHARE / PRIOR_MM**2 * float(weight @ np.square(difference))
        held = stiffness * np.array([ARM_MM**2] * 3 + [1.0] * 3 + [0.0] * (jacobian.shape[1] - 6))
        step = _solve(jacobian, weight, difference, held, np.append(pose, np.zeros(len(held) - 6)))
        length = movement(step[:6])
        pose = pose + step[:6] * min(1.0, 6.0 / max(length, 1e-9))
        if scales:
            scale = (gain + step[6], offset + step[7])
        if length < 0.01:
            break
    return pose, (float(max(scale[0], 1e-3)), float(scale[1]))


def movement(pose: NDArray[np.float64]) -> float:
    """How far, in mm, a (6,) pose moves a point 60 mm from the centre."""
    return float(np.linalg.norm(pose[3:]) + ARM_MM * np.linalg.norm(pose[:3]))


def _held_out(view: View, image: Image, lattice: Grid, bounds: tuple[float, float]) -> HeldOut:
    unmoved = replace(view, pose=np.zeros(6))
    mask = view.inside(lattice) & unmoved.inside(lattice)
    gain, offset = view.scale
    truth = view.slices[mask].astype(np.float64)
    if truth.size < 2 or truth.std() == 0:
        return HeldOut(float("nan"), 0.0, 0.0)
    seen, before = (
        (v.project(lattice).forward(image)[mask].astype(np.float64) * bounds[1] + bounds[0]) * gain + offset
        for v in (view, unmoved)
    )
    now, then = float(np.mean(np.square(seen - truth))), float(np.mean(np.square(before - truth)))
    correlation = float(np.corrcoef(seen, truth)[0, 1]) if seen.std() > 0 else 0.0
    return HeldOut(float(np.sqrt(now)), correlation, 1 - now / max(then, 1e-30))


def _seen_at(view: View, lattice: Grid, image: Image, parameter: int) -> Image:
    pose = view.pose.copy()
    pose[parameter] += _DELTA[parameter]
    return view.project(lattice, pose).forward(image)


def _volume(views: Sequence[View], lattice: Grid, bounds: tuple[float, float], start: Image | None) -> Image:
    terms = terms_of(views, lattice, bounds)
    image = np.zeros(lattice.shape, dtype=np.float32) if start is None else start
    settings = VariationSettings(rounds=3 if start is None else 1, steps=8 if start is None else 6)
    return reconstruct(terms, image, lattice.spacing_mm, settings=settings)


def terms_of(views: Sequence[View], lattice: Grid, bounds: tuple[float, float]) -> list[Term]:
    """What each view asks of the volume, in units of the range."""
    voxel = lattice.voxel_volume_mm3
    terms = []
    for view in views:
        target = ((view.target - bounds[0]) / bounds[1]).astype(np.float32)
        mask = view.inside(lattice)
        a, b, _ = view.frame.spacing_mm
        weight = a * b * view.operator.slice_step_mm / voxel
        noise = noise_of(target, DARK)
        terms.append(Term(view.project(lattice), target, None if mask.all() else mask, weight, noise))
    return terms


def _line(x: Array, y: Array) -> tuple[float, float]:
    variance = float(np.var(x))
    gain = float(np.mean((x - x.mean()) * (y - y.mean())) / variance) if variance > 0 else 1.0
    gain = gain if gain > 0.05 else 1.0
    return gain, float(y.mean() - gain * x.mean())


def _solve(jacobian: Array, weight: Array, difference: Array, held: Array, at: Array) -> Array:
    """The least-squares step; `held` pulls the parameters, now at `at`, towards zero."""
    normal = (jacobian * weight[:, None]).T @ jacobian + np.diag(held)
    right = (jacobian * weight[:, None]).T @ difference - held * at
    scale = np.sqrt(np.maximum(np.diag(normal), 1e-30))
    out: Array = np.linalg.solve(normal / scale / scale[:, None] + 1e-9 * np.eye(len(scale)), right / scale) / scale
    return out
