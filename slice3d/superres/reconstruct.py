"""A volume from several stacks: least squares by conjugate gradients, and the rigid motion between the stacks.

Both are alternated from coarse to fine, because each stack is blurred along its own normal: what one stack cannot see
in one direction another one can (slice-to-volume reconstruction, Gholipour 2010, Kuklisova-Murgasova 2012, on whole
stacks)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from slice3d.progress import Progress, silent
from slice3d.superres.scene import Lattice, View, sample

log = logging.getLogger(__name__)

REGISTRATION_POINTS = 40_000
# Voxels of a stack simulated at once: bounds the memory of the adjoint.
CHUNK = 2**21
# voxels (mm), blur (mm) and rounds of each level of the registration
LEVELS = ((4.0, 6.0, 3), (2.5, 2.5, 4), (1.8, 0.0, 5))


def solve(
    views: Sequence[View],
    lattice: Lattice,
    start: torch.Tensor,
    *,
    iterations: int = 8,
    smoothness: float = 0.02,
    progress: Progress = silent,
) -> torch.Tensor:
    """The volume near `start` through which every view sees what it measured: damped least squares on the change.

    Minimises the mean over views of |A_s x − y_s|² plus `smoothness` · |∇(x − start)|² with conjugate gradients; the
    adjoint is the transpose of trilinear sampling, taken by automatic differentiation."""
    inside = [view.inside(lattice).float() for view in views]
    voxels = float(np.prod(lattice.shape))
    weights = [voxels / max(1.0, float(mask.sum())) / len(views) for mask in inside]

    def misfit_gradient(image: torch.Tensor, subtract: bool) -> torch.Tensor:
        image = image.detach().requires_grad_(True)
        for view, mask, weight in zip(views, inside, weights, strict=True):
            for start in range(0, len(view.values), CHUNK):
                part = slice(start, start + CHUNK)
                seen = view.see(image, lattice, part)
                difference = (seen - view.values[part]) if subtract else seen
                (0.5 * weight * (mask[part] * difference.square()).sum()).backward()  # type: ignore[no-untyped-call]
        if image.grad is None:
            return torch.zeros_like(image)
        return image.grad

    x = start.clone()
    r = -misfit_gradient(x, True)
    p, energy = r.clone(), float((r * r).sum())
    for n in range(iterations):
        if energy <= 1e-12:
            break
        q = misfit_gradient(p, False) + smoothness * _laplacian(p)
        alpha = energy / max(float((p * q).sum()), 1e-20)
        x = x + alpha * p
        r = r - alpha * q
        fresh = float((r * r).sum())
        p, energy = r + fresh / energy * p, fresh
        progress("reconstruction", (n + 1) / iterations)
    return x


def average(views: Sequence[View], lattice: Lattice) -> torch.Tensor:
    """A first estimate: every view's voxels spread onto the lattice with trilinear weights, and the mean of the
    views."""
    total = torch.zeros(lattice.shape)
    weight = torch.zeros(lattice.shape)
    for view in views:
        points, _ = view.placed()
        inside = view.inside(lattice).float()
        value, share = _splat(lattice, points, view.values * inside), _splat(lattice, points, inside)
        # slices are far apart on a fine lattice: spread along the normal until neighbours meet
        width = 0.4 * view.slice_step_mm * np.abs(view.normal) + 0.5 * lattice.step
        value, share = _blur(value, lattice, width), _blur(share, lattice, width)
        total += value / (share + 1e-3 * share.max())
        weight += share / (share + 1e-3 * share.max())
    return total / weight.clamp(min=1e-3)


def register(views: Sequence[View], lattice: Lattice, *, seed: int = 0, progress: Progress = silent) -> float:
    """Find the pose of every view but the first, changing `views` in place; returns the last largest update in mm.

    Coarse to fine: reconstruct from all other stacks, then move each stack by Gauss–Newton so that its simulated slices
    match the measured ones, gain and offset between the stacks left free.
    """
    generator = torch.Generator().manual_seed(seed)
    total = sum(rounds for *_, rounds in LEVELS)
    done, update = 0, 0.0
    for voxel, blur, rounds in LEVELS:
        coarse = lattice.coarser(max(voxel, float(lattice.step.max())))
        small = [view.thinned(voxel) for view in views]
        for _ in range(rounds):
            update = 0.0
            for n in range(1, len(views)):
                others = [view for m, view in enumerate(small) if m != n]
                image = solve(others, coarse, average(others, coarse), iterations=4)
                if blur:
                    image = _blur(image, coarse, blur)
                update = max(update, _align(small[n], image, coarse, generator))
                views[n].pose = small[n].pose
            done += 1
            progress("registration", done / total)
            if update < 0.02:
                break
        log.info("registration at %.1f mm: last update %.3f mm", voxel, update)
    return update


def refine(views: Sequence[View], image: torch.Tensor, lattice: Lattice, *, seed: int = 0) -> float:
    """One Gauss–Newton round of every pose but the first against a joint reconstruction; largest update in mm."""
    generator = torch.Generator().manual_seed(seed)
    return max((_align(view, image, lattice, generator) for view in views[1:]), default=0.0)


def _align(view: View, image: torch.Tensor, lattice: Lattice, generator: torch.Generator, rounds: int = 3) -> float:
    """Gauss–Newton on the six parameters of one pose; returns how far it moved a point 60 mm from the centre."""
    before = view.pose.copy()
    chosen = torch.randint(len(view.values), (REGISTRATION_POINTS,), generator=generator)
    gradients = [_derivative(image, axis, float(lattice.step[axis])) for axis in range(3)]
    for _ in range(rounds):
        inside = view.inside(lattice, chosen)
        points, normal = view.placed(chosen)
        keep = inside.nonzero().ravel()
        if len(keep) < 500:
            break
        points = points[keep]
        seen, slope = torch.zeros(len(points)), torch.zeros(len(points), 3)
        offsets = view.offsets()
        for offset in offsets:
            at = points + float(offset) * normal
            seen += sample(image, lattice, at) / len(offsets)
            slope += torch.stack([sample(g, lattice, at) for g in gradients], dim=1) / len(offsets)
        step = _gauss_newton(view, points, seen, slope, view.values[chosen][keep])
        _compose(view, step)
    change = view.pose - before
    return float(np.linalg.norm(change[3:]) + 60.0 * np.linalg.norm(change[:3]))


def _gauss_newton(
    view: View, points: torch.Tensor, seen: torch.Tensor, slope: torch.Tensor, measured: torch.Tensor
) -> NDArray[np.float64]:
    """The (6,) small motion that best explains measured − (gain · seen + offset), outliers weighted down (Huber)."""
    x, y = seen.numpy().astype(np.float64), measured.numpy().astype(np.float64)
    gain, offset = np.polyfit(x, y, 1)
    gain = max(gain, 1e-3)
    arm = (points - torch.from_numpy((view.centre + view.pose[3:]).astype(np.float32))).numpy().astype(np.float64)
    g = gain * slope.numpy().astype(np.float64)
    jacobian = np.concatenate([np.cross(arm, g), g, x[:, None], np.ones((len(x), 1))], axis=1)
    difference = y - gain * x - offset
    limit = 1.5 * np.median(np.abs(difference)) + 1e-9
    weight = np.minimum(1.0, limit / np.maximum(np.abs(difference), 1e-9))
    normal = (jacobian * weight[:, None]).T @ jacobian
    scale = np.sqrt(np.maximum(np.diag(normal), 1e-12))
    normal = normal / scale / scale[:, None] + 1e-6 * np.eye(8)
    right = (jacobian * weight[:, None]).T @ difference / scale
    out: NDArray[np.float64] = (np.linalg.solve(normal, right) / scale)[:6]
    length = float(np.linalg.norm(out[3:]) + 60.0 * np.linalg.norm(out[:3]))
    capped: NDArray[np.float64] = out * min(1.0, 4.0 / max(length, 1e-9))
    return capped


def _compose(view: View, step: NDArray[np.float64]) -> None:
    """Apply a small motion, about the moved centre, after the pose."""
    from scipy.spatial.transform import Rotation

    rotation = Rotation.from_rotvec(step[:3]) * Rotation.from_rotvec(view.pose[:3])
    view.pose = np.concatenate([rotation.as_rotvec(), view.pose[3:] + step[3:]])


def _splat(lattice: Lattice, points: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    image = torch.zeros(lattice.shape, requires_grad=True)
    (sample(image, lattice, points) * values).sum().backward()  # type: ignore[no-untyped-call]
    return image.grad if image.grad is not None else torch.zeros(lattice.shape)


def _blur(image: torch.Tensor, lattice: Lattice, sigma_mm: float | NDArray[np.float64]) -> torch.Tensor:
    from scipy import ndimage

    return torch.from_numpy(
        ndimage.gaussian_filter(image.numpy(), sigma_mm / lattice.step, mode="nearest", truncate=3.0)
    )


def _derivative(image: torch.Tensor, axis: int, step: float) -> torch.Tensor:
    return torch.gradient(image, spacing=step, dim=axis)[0]


def _laplacian(image: torch.Tensor) -> torch.Tensor:
    """Minus the discrete Laplacian with free borders: a positive semi-definite, symmetric operator."""
    out = torch.zeros_like(image)
    for axis in range(3):
        d = image.diff(dim=axis)
        out.narrow(axis, 0, d.shape[axis]).sub_(d)
        out.narrow(axis, 1, d.shape[axis]).add_(d)
    return out
