"""Several stacks of slices before one volume: where each lies, what it would measure there, and the exact adjoint.

The volume is a lattice (a `Grid`, slices' normal of the first stack last). A stack samples it at its own fine grid,
after its own rigid motion, and averages that along its own normal with its own slice profile.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from slice3d.grid import Grid
from slice3d.superres.profile import SliceOperator, fine_positions, slice_operator
from slice3d.superres.stack import Stack

Image = NDArray[np.float32]
Array = NDArray[np.float64]
# The transpose of sampling adds into one image per part; a fixed number of them, so that sums repeat exactly.
PARTS = 2


class Projector(Protocol):
    """One stack's measurement of a lattice, and its transpose."""

    def forward(self, image: Image) -> Image:
        """(i, j, k) lattice → (a, b, n) slices."""

    def adjoint(self, slices: Image) -> Image:
        """(a, b, n) → (i, j, k): the exact transpose."""


@dataclass(frozen=True, eq=False)
class View:
    """One stack as the scene sees it.

    slices: (a, b, n). operator: from the fine samples to the slices. frame: grid of the (a, b, m) fine samples in
    world mm, as the header says. pose: (6,) rotation vector (radians, about `centre`) and translation (mm) that bring
    the stack to where the anatomy was. scale: (gain, offset) of its intensities over the first stack's.
    """

    slices: Image
    operator: SliceOperator
    frame: Grid
    centre: Array
    pose: Array = field(default_factory=lambda: np.zeros(6))
    scale: tuple[float, float] = (1.0, 0.0)

    @property
    def target(self) -> Image:
        """(a, b, n) the slices in the first stack's intensities."""
        gain, offset = self.scale
        return self.slices if self.scale == (1.0, 0.0) else ((self.slices - offset) / gain).astype(np.float32)

    def to_lattice(self, lattice: Grid, pose: Array | None = None) -> Array:
        """(4, 4) fine index of this stack → index of the lattice."""
        moved = rigid(self.pose if pose is None else pose, self.centre)
        out: Array = np.linalg.inv(lattice.affine) @ moved @ self.frame.affine
        return out

    def inside(self, lattice: Grid) -> NDArray[np.bool_]:
        """(a, b, n) which voxels' centres lie on the lattice, half a voxel around its outer centres included."""
        affine = self.to_lattice(lattice)
        place = (self.operator.slices_mm - self.operator.fine_mm[0]) / self.operator.step_mm
        steps = [np.arange(n, dtype=np.float64) for n in self.slices.shape[:2]] + [place]
        out = np.ones(self.slices.shape, dtype=bool)
        for axis in range(3):
            i, j, k = (affine[axis, n] * steps[n] for n in range(3))
            at = (affine[axis, 3] + i)[:, None, None] + j[None, :, None] + k[None, None, :]
            out &= (at >= -0.5) & (at <= lattice.shape[axis] - 0.5)
        return out

    def project(self, lattice: Grid, pose: Array | None = None) -> Projector:
        """The measurement: a product of one matrix per axis where the axes run along the lattice's."""
        affine = self.to_lattice(lattice, pose)
        shape = (self.slices.shape[0], self.slices.shape[1], len(self.operator.fine_mm))
        size = np.abs(affine[:3, :3])
        order = size.argmax(axis=1)
        stray = size.copy()
        stray[np.arange(3), order] = 0
        if len(set(order)) == 3 and stray.max() * max(shape) < 1e-3:
            return Separable.between(affine, lattice.shape, shape, self.operator)
        return Turned(affine, lattice.shape, shape, self.operator)

    def coarser(self, step_mm: float) -> View:
        """The same stack with pixels of about `step_mm`: means of blocks within the plane, all slices kept."""
        blocks = [max(1, round(step_mm / s)) for s in self.frame.spacing_mm[:2]]
        a, b = ((n // f) for n, f in zip(self.slices.shape[:2], blocks, strict=True))
        cut = self.slices[: a * blocks[0], : b * blocks[1]]
        slices = cut.reshape(a, blocks[0], b, blocks[1], -1).mean(axis=(1, 3), dtype=np.float32)
        old = self.operator
        step = min(step_mm, 0.5 * max(old.profile.fwhm_mm, old.slice_step_mm / 2))
        operator = old
        if step > 1.2 * old.step_mm:
            fine = old.slices_mm[0] + fine_positions(len(old.slices_mm), old.slice_step_mm, step)
            operator = slice_operator(old.slices_mm, fine, old.profile)
        affine = self.frame.affine.copy()
        shift = (operator.fine_mm[0] - old.fine_mm[0]) / old.step_mm
        affine[:3, 3] = self.frame.to_world(((blocks[0] - 1) / 2, (blocks[1] - 1) / 2, shift))
        affine[:3, :3] *= np.array([blocks[0], blocks[1], operator.step_mm / old.step_mm])
        frame = Grid((a, b, len(operator.fine_mm)), affine)
        return replace(self, slices=slices, operator=operator, frame=frame)


@dataclass(frozen=True, eq=False)
class Separable:
    """A stack whose axes run along the lattice's: one matrix per lattice axis (None: the identity), then a permutation.

    matrices[l]: (samples of the stack, n_l). order[l]: the stack's axis that runs along lattice axis l.
    """

    matrices: tuple[Image | None, ...]
    order: tuple[int, ...]

    @classmethod
    def between(
        cls, affine: Array, lattice: tuple[int, ...], frame: tuple[int, ...], operator: SliceOperator
    ) -> Separable:
        """affine: (4, 4) the stack's fine index → lattice index. lattice, frame: their shapes."""
        order = tuple(int(n) for n in np.abs(affine[:3, :3]).argmax(axis=1))
        matrices: list[Image | None] = []
        for axis, own in enumerate(order):
            matrix = cubic(affine[axis, own] * np.arange(frame[own]) + affine[axis, 3], lattice[axis])
            if own == 2:
                matrix = operator.matrix @ matrix
            same = matrix.shape[0] == matrix.shape[1] and np.allclose(matrix, np.eye(len(matrix)), atol=1e-5)
            matrices.append(None if same else np.ascontiguousarray(matrix, dtype=np.float32))
        return cls(tuple(matrices), order)

    def forward(self, image: Image) -> Image:
        """(i, j, k) → (a, b, n)."""
        for axis in self._cheapest_first():
            image = _along(self.matrices[axis], image, axis)
        return np.ascontiguousarray(image.transpose(np.argsort(self.order)))

    def adjoint(self, slices: Image) -> Image:
        """(a, b, n) → (i, j, k)."""
        image = np.ascontiguousarray(slices.transpose(self.order))
        for axis in self._cheapest_first()[::-1]:
            matrix = self.matrices[axis]
            image = _along(None if matrix is None else matrix.T, image, axis)
        return image

    def _cheapest_first(self) -> list[int]:
        return sorted(range(3), key=lambda n: 1.0 if (m := self.matrices[n]) is None else m.shape[0] / m.shape[1])


@dataclass(frozen=True, eq=False)
class Turned:
    """A stack that lies anyhow: cubic sampling at its fine grid, then the profile along its normal."""

    affine: Array
    lattice: tuple[int, int, int]
    frame: tuple[int, int, int]
    operator: SliceOperator

    def forward(self, image: Image) -> Image:
        """(i, j, k) → (a, b, n)."""
        from slice3d.superres._resampling import gather

        fine = np.empty(self.frame, dtype=np.float32)
        in_parts(lambda first, last, _: gather(image, self.affine, fine, first, last), self.frame[0])
        return np.ascontiguousarray(self.operator.forward(fine))

    def adjoint(self, slices: Image) -> Image:
        """(a, b, n) → (i, j, k)."""
        from slice3d.superres._resampling import scatter

        fine = np.ascontiguousarray(self.operator.adjoint(slices))
        images = np.zeros((PARTS, *self.lattice), dtype=np.float32)
        in_parts(lambda first, last, n: scatter(fine, self.affine, images[n], first, last), self.frame[0])
        out: Image = images[0]
        for image in images[1:]:
            out += image
        return out


def rigid(pose: Array, centre: Array) -> Array:
    """(4, 4) world mm → world mm of a (6,) pose: rotation about `centre`, then translation."""
    from scipy.spatial.transform import Rotation

    out = np.eye(4)
    out[:3, :3] = Rotation.from_rotvec(pose[:3]).as_matrix()
    out[:3, 3] = centre + pose[3:] - out[:3, :3] @ centre
    return out


def cubic(positions: Array, count: int) -> Array:
    """(p, count) the weights of `_resampling.gather` along one axis."""
    base = np.floor(positions + 1e-9).astype(int)
    t = np.maximum(positions - base, 0.0)
    s = 1 - t
    weights = (-t * s * s / 2, s * (1 + t - 1.5 * t * t), t * (1 + s - 1.5 * s * s), -s * t * t / 2)
    out = np.zeros((len(positions), count))
    for n, weight in enumerate(weights):
        np.add.at(out, (np.arange(len(positions)), np.clip(base - 1 + n, 0, count - 1)), weight)
    return out


def view_of(stack: Stack, centre: Array) -> View:
    """A stack with its fine grid's axes in the order of its slices: (a, b, m)."""
    return View(stack.slices, stack.operator, slices_last(stack.grid, stack.axis), centre)


def slices_last(grid: Grid, axis: int) -> Grid:
    """The grid with its axis `axis` moved to the end."""
    order = [n for n in range(3) if n != axis] + [axis]
    affine = grid.affine.copy()
    affine[:3, :3] = affine[:3, order]
    return Grid((grid.shape[order[0]], grid.shape[order[1]], grid.shape[order[2]]), affine)


def coarser(lattice: Grid, step_mm: float) -> Grid:
    """The same field of view with voxels of about `step_mm`, centred on whole blocks of the lattice's."""
    blocks = np.maximum(1, np.rint(step_mm / np.asarray(lattice.spacing_mm)))
    shape = np.ceil(np.asarray(lattice.shape) / blocks).astype(int)
    affine = lattice.affine.copy()
    affine[:3, 3] = lattice.to_world((blocks - 1) / 2)
    affine[:3, :3] *= blocks
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def resampled(image: Image, source: Grid, target: Grid) -> Image:
    """An image on the lattice `source` at the voxels of `target`, cubic, the border repeated."""
    from slice3d.superres._resampling import gather

    affine = np.linalg.inv(source.affine) @ target.affine
    out = np.empty(target.shape, dtype=np.float32)
    in_parts(lambda first, last, _: gather(image, affine, out, first, last), target.shape[0])
    return out


def in_parts(work: Callable[[int, int, int], None], count: int) -> None:
    """work(first, last, part) for `PARTS` slabs of `count` rows, at the same time where there are cores."""
    edges = np.linspace(0, count, PARTS + 1).astype(int)
    jobs = [(int(a), int(b), n) for n, (a, b) in enumerate(pairwise(edges))]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores == 1:
        for job in jobs:
            work(*job)
        return
    with ThreadPoolExecutor(min(cores, PARTS)) as pool:
        for done in [pool.submit(work, *job) for job in jobs]:
            done.result()


def _along(matrix: Image | None, image: Image, axis: int) -> Image:
    if matrix is None:
        return image
    if axis == 2:
        return image @ matrix.T
    if axis == 1:
        along: Image = np.matmul(matrix, image)
        return along
    out: Image = (matrix @ image.reshape(image.shape[0], -1)).reshape(-1, *image.shape[1:])
    return out
