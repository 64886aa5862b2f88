"""Several stacks of slices in one frame: where their voxels lie, how a volume would look through each, and the adjoint.

The frame is orthonormal, in mm, with axes along those of the first stack; a volume in it is a lattice. A stack sees the
volume at its own voxels, averaged along its own normal with its own slice profile, after its own rigid motion.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from slice3d.grid import Grid
from slice3d.superres.profile import SliceOperator, SliceProfile
from slice3d.superres.stack import Stack

# Points along the normal at which the profile is sampled; each stands for the same share of the weight.
NODES = 7
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Lattice:
    """Voxel (0, 0, 0) at `origin` mm of the frame, `step` mm between voxels along the frame's axes."""

    shape: tuple[int, int, int]
    origin: Array
    step: Array

    def coarser(self, step_mm: float) -> Lattice:
        """The same field of view with about `step_mm` between voxels."""
        size = (np.array(self.shape) - 1) * self.step
        count = np.maximum(2, np.ceil(size / step_mm).astype(int) + 1)
        return Lattice((int(count[0]), int(count[1]), int(count[2])), self.origin, size / (count - 1))


@dataclass(eq=False)
class View:
    """One stack as the frame sees it.

    values: (N,) the slices' voxels. points: (N, 3) their centres in the frame, mm, before motion. normal: (3,) unit
    vector. shape: of the stack's array, whose order the voxels have. pose: (6,) rotation vector (radians, about `centre`) and translation (mm) that bring the stack into place.
    """

    values: torch.Tensor
    points: torch.Tensor
    normal: Array
    profile: SliceProfile
    slice_step_mm: float
    centre: Array
    shape: tuple[int, int, int]
    pose: Array = field(default_factory=lambda: np.zeros(6))

    def placed(self, chosen: torch.Tensor | slice | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, 3) points after the motion and the (3,) normal after it."""
        rotation, shift = rigid(self.pose)
        points = self.points if chosen is None else self.points[chosen]
        centre = torch.from_numpy(self.centre.astype(np.float32))
        turned = (points - centre) @ torch.from_numpy(rotation.T.astype(np.float32)) + centre
        moved = turned + torch.from_numpy(shift.astype(np.float32))
        return moved, torch.from_numpy((rotation @ self.normal).astype(np.float32))

    def thinned(self, spacing_mm: float) -> View:
        """The same view with about one voxel per `spacing_mm` within the plane; all slices stay."""
        index = torch.arange(len(self.values)).reshape(self.shape)
        keep = torch.ones(self.shape, dtype=torch.bool)
        for axis in range(3):
            if self.shape[axis] < 2:
                continue
            along = [0, 0, 0]
            along[axis] = 1
            edge = self.points[int(index[along[0], along[1], along[2]])] - self.points[0]
            if abs(float(edge @ _float(self.normal))) > 0.5 * float(edge.norm()):
                continue
            stride = max(1, int(spacing_mm / float(edge.norm())))
            place = torch.arange(self.shape[axis]).reshape([-1 if n == axis else 1 for n in range(3)])
            keep &= place % stride == 0
        chosen = index[keep]
        shape = (len(chosen), 1, 1)
        return replace(self, values=self.values[chosen], points=self.points[chosen], shape=shape, pose=self.pose.copy())

    def offsets(self) -> Array:
        """(NODES,) distances from the slice's centre along the normal, mm."""
        return self.profile.quantile((np.arange(NODES) + 0.5) / NODES)

    def see(self, volume: torch.Tensor, lattice: Lattice, chosen: torch.Tensor | slice | None = None) -> torch.Tensor:
        """(N,) what the stack would measure in `volume`; differentiable in the volume, which gives the exact
        adjoint."""
        points, normal = self.placed(chosen)
        total = torch.zeros(len(points))
        for offset in self.offsets():
            total = total + sample(volume, lattice, points + float(offset) * normal)
        return total / NODES

    def inside(self, lattice: Lattice, chosen: torch.Tensor | None = None) -> torch.Tensor:
        """(N,) bool: centres that lie within the lattice, half a voxel beyond the outer centres included."""
        points, _ = self.placed(chosen)
        index = (points - _float(lattice.origin)) / _float(lattice.step)
        return ((index >= -0.5) & (index <= torch.tensor(lattice.shape) - 0.5)).all(dim=1)


def rigid(pose: Array) -> tuple[Array, Array]:
    """(3, 3) rotation and (3,) translation in mm of a (6,) pose."""
    from scipy.spatial.transform import Rotation

    return np.asarray(Rotation.from_rotvec(pose[:3]).as_matrix()), pose[3:]


def sample(volume: torch.Tensor, lattice: Lattice, points: torch.Tensor) -> torch.Tensor:
    """(N,) trilinear values of (i, j, k) `volume` at (N, 3) frame points; the border value beyond the border."""
    index = (points - _float(lattice.origin)) / _float(lattice.step)
    scaled = 2 * index / (torch.tensor(lattice.shape) - 1) - 1
    grid = scaled.flip(-1).reshape(1, 1, 1, -1, 3)
    out: torch.Tensor = torch.nn.functional.grid_sample(
        volume[None, None], grid, mode="bilinear", padding_mode="border", align_corners=True
    ).reshape(-1)
    return out


def lay_out(stacks: list[Stack]) -> tuple[Lattice, list[View]]:
    """The lattice of the first stack's fine grid (slices last), and every stack as a view in that frame."""
    first = stacks[0]
    order = [n for n in range(3) if n != first.axis] + [first.axis]
    axes = first.grid.directions[:, order]
    origin = first.grid.origin_mm
    shape = tuple(first.grid.shape[n] for n in order)
    spacing = np.array([first.grid.spacing_mm[n] for n in order])
    lattice = Lattice((shape[0], shape[1], shape[2]), np.zeros(3), spacing)
    centre = (np.array(shape) - 1) * spacing / 2
    return lattice, [_view(stack, axes, origin, centre) for stack in stacks]


def view_of_slices(
    slices: NDArray[np.float32], in_plane_mm: tuple[float, float], operator: SliceOperator
) -> tuple[Lattice, View]:
    """The lattice of one stack's fine samples and its (a, b, n) slices as a view of it."""
    step = np.array([*in_plane_mm, operator.step_mm])
    shape = (slices.shape[0], slices.shape[1], len(operator.fine_mm))
    lattice = Lattice(shape, np.array([0.0, 0.0, operator.fine_mm[0]]), step)
    axes = [np.arange(n) * s for n, s in zip(slices.shape[:2], in_plane_mm, strict=True)]
    points = np.stack(np.meshgrid(*axes, operator.slices_mm, indexing="ij"), axis=-1).reshape(-1, 3)
    view = View(
        torch.from_numpy(slices.reshape(-1).copy()),
        torch.from_numpy(points.astype(np.float32)),
        np.array([0.0, 0.0, 1.0]),
        operator.profile,
        operator.slice_step_mm,
        lattice.origin + (np.array(shape) - 1) * step / 2,
        (slices.shape[0], slices.shape[1], slices.shape[2]),
    )
    return lattice, view


def scale_of(views: list[View]) -> tuple[float, float]:
    """What to subtract and divide by so that the views' values are of order one."""
    values = np.concatenate([view.values[::17].numpy() for view in views])
    low, high = np.percentile(values, [1, 99.5])
    return float(low), float(max(high - low, 1e-6))


def _view(stack: Stack, axes: Array, origin: Array, centre: Array) -> View:
    grid: Grid = stack.volume.grid
    index = np.indices(grid.shape, dtype=np.float32).reshape(3, -1).T
    matrix = axes.T @ grid.affine[:3, :3]
    start = axes.T @ (grid.affine[:3, 3] - origin)
    points = index @ matrix.T.astype(np.float32) + start.astype(np.float32)
    values = np.asarray(stack.volume.data, dtype=np.float32).reshape(-1)
    normal = axes.T @ grid.directions[:, stack.axis]
    operator = stack.operator
    return View(
        torch.from_numpy(values.copy()),
        torch.from_numpy(points),
        normal,
        operator.profile,
        operator.slice_step_mm,
        centre,
        grid.shape,
    )


def _float(values: Array) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))
