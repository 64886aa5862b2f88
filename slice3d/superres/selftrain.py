"""Self-training: what the slices show within their plane teaches what lies between them.

Within the plane a study has the resolution that it lacks along the normal. In-plane lines are averaged with the slice
profile and sampled at the slice distance, and a 2D network learns to undo that; it is then applied to the two families
of planes that contain the normal, and both answers are averaged (the idea of SMORE, Zhao 2020, with the measured
profile of Remedios 2023). No other subject's data is involved.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from slice3d.errors import InputError
from slice3d.progress import Progress, silent
from slice3d.superres import interpolate
from slice3d.superres.network import Frame, SliceNetwork
from slice3d.superres.profile import SliceProfile, slice_operator

log = logging.getLogger(__name__)

PHASES = 8
PATCH_SLICES = 16
PATCH_LINES = 48
PAD = 4
MIN_PATCH_SLICES = 7
# The share of the time budget that is trained even when applying the network to a large stack takes the rest.
MIN_TRAINING = 0.3


@dataclass(frozen=True)
class TrainSettings:
    """minutes: time for training and application together. steps: a fixed number of training steps instead
    (repeatable).

    seed: of weights and patches. channels, blocks: size of the network. device: `"cpu"`, `"cuda"` or `"auto"`.
    """

    minutes: float = 4.0
    steps: int | None = None
    seed: int = 0
    channels: int = 48
    blocks: int = 4
    batch: int = 16
    learning_rate: float = 1.5e-3
    device: str = "auto"


class InPlane:
    """Training pairs from in-plane lines of one stack: thick slices as the profile makes them, and the truth."""

    def __init__(
        self,
        slices: NDArray[np.float32],
        in_plane_mm: tuple[float, float],
        factor: int,
        slice_step_mm: float,
        profile: SliceProfile,
        seed: int,
    ) -> None:
        self.rng = np.random.default_rng(seed)
        # (slice, across, along) for either in-plane axis
        self.images = [np.ascontiguousarray(slices.transpose(2, 1, 0)), np.ascontiguousarray(slices.transpose(2, 0, 1))]
        margin = 1.5 * profile.fwhm_mm + slice_step_mm / 2
        room = [n * s for n, s in zip(slices.shape[:2], in_plane_mm, strict=True)]
        self.count = min(PATCH_SLICES, *(int((size - 2 * margin) / slice_step_mm) for size in room))
        if self.count < MIN_PATCH_SLICES:
            raise InputError(
                f"the slices measure {room[0]:.0f}×{room[1]:.0f} mm, too little for self-training at a slice "
                f"distance of "
                f"{slice_step_mm:g} mm; expected at least {MIN_PATCH_SLICES * slice_step_mm + 2 * margin:.0f} mm; "
                "use method='bspline'"
            )
        self.widths = [math.ceil((self.count * slice_step_mm + 2 * margin) / s) for s in in_plane_mm]
        self.matrices = [
            _degrade(width, spacing, self.count, factor, slice_step_mm, profile, margin)
            for width, spacing in zip(self.widths, in_plane_mm, strict=True)
        ]
        self.lines = min(PATCH_LINES, *slices.shape[:2])
        self.centres = _informative(slices)

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, L, n) thick slices and (B, L, m) truth, from random places, phases and flips along one in-plane axis."""
        axis = int(self.rng.integers(2))
        image, width = self.images[axis], self.widths[axis]
        low, high = self.matrices[axis][int(self.rng.integers(PHASES))]
        chosen = self.centres[self.rng.integers(len(self.centres), size=size)]
        patches = np.empty((size, self.lines, width), dtype=np.float32)
        for n, (i, j, k) in enumerate(chosen):
            across, along = (j, i) if axis == 0 else (i, j)
            a = _start(across, self.lines, image.shape[1], self.rng)
            b = _start(along, width, image.shape[2], self.rng)
            patch = image[k, a : a + self.lines, b : b + width]
            patches[n, :, : patch.shape[1]] = patch
            patches[n, :, patch.shape[1] :] = patch[:, -1:]
        if self.rng.random() < 0.5:
            patches = patches[:, :, ::-1]
        if self.rng.random() < 0.5:
            patches = patches[:, ::-1]
        return torch.from_numpy(patches @ low), torch.from_numpy(patches @ high)


class SelfTrained:
    """A network fitted to one stack; `apply` estimates the fine samples."""

    def __init__(
        self,
        network: SliceNetwork,
        factor: int,
        scale: tuple[float, float],
        slice_step_mm: float,
        profile: SliceProfile,
        steps: int,
    ) -> None:
        self.network = network
        self.factor = factor
        self.scale = scale
        self.slice_step_mm = slice_step_mm
        self.profile = profile
        self.steps = steps

    def apply(
        self, slices: NDArray[np.float32], fine_mm: NDArray[np.float64], *, progress: Progress = silent
    ) -> NDArray[np.float32]:
        """(a, b, n) slices → (a, b, m) estimate at `fine_mm` (from the first slice's centre).

        The mean over both directions of planes, each as it lies and turned by half a circle.
        """
        end = (slices.shape[2] - 1) * self.slice_step_mm
        turned_mm = end - fine_mm[::-1]
        total: NDArray[np.float32] = np.zeros((*slices.shape[:2], len(fine_mm)), dtype=np.float32)
        for n in range(4):
            across = n % 2 == 1
            image = slices.transpose(1, 0, 2) if across else slices
            if n < 2:
                planes = self.planes(image, fine_mm)
            else:
                planes = self.planes(image[:, ::-1, ::-1], turned_mm)[:, ::-1, ::-1]
            total += planes.transpose(1, 0, 2) if across else planes
            progress("super-resolution", (n + 1) / 4)
        return (total / 4).astype(np.float32)

    def planes(self, slices: NDArray[np.float32], fine_mm: NDArray[np.float64]) -> NDArray[np.float32]:
        """(s, L, n) → (s, L, m): every plane `slices[s]` by itself."""
        shift, scale = self.scale
        padded = np.pad(slices, ((0, 0), (0, 0), (PAD, PAD)), mode="edge")
        frame = Frame(padded.shape[2], self.factor, self.slice_step_mm, self.profile)
        inner = np.asarray(frame.fine_mm - PAD * self.slice_step_mm, dtype=np.float64)
        to_fine = _resampler(inner, fine_mm)
        device = next(self.network.parameters()).device
        out = np.empty((*slices.shape[:2], len(fine_mm)), dtype=np.float32)
        chunk = max(1, int(2**18 // (padded.shape[1] * padded.shape[2])))
        for start in range(0, len(padded), chunk):
            part = torch.from_numpy(np.ascontiguousarray((padded[start : start + chunk] - shift) / scale))
            with torch.inference_mode(), _autocast(device):
                detail = self.network(part[:, None].to(device, memory_format=torch.channels_last)).float().cpu()
            fine = frame.compose(part, detail).numpy() * scale + shift
            out[start : start + chunk] = fine @ to_fine
        return out


def fit(
    slices: NDArray[np.float32],
    in_plane_mm: tuple[float, float],
    slice_step_mm: float,
    step_mm: float,
    profile: SliceProfile,
    *,
    settings: TrainSettings,
    progress: Progress = silent,
) -> SelfTrained:
    """Train on the stack's own in-plane detail.

    slices: (a, b, n), through-plane last. With `settings.steps` the same input gives the same network on the same
    device; with a time budget the number of steps follows from the speed measured in the first ones, and is in
    `steps`. Raises `InputError` when the slices are too small to hold training patches."""
    start = time.perf_counter()
    factor = max(2, math.ceil(slice_step_mm / step_mm - 1e-6))
    device = _device(settings.device)
    torch.manual_seed(settings.seed)
    network = SliceNetwork(factor, channels=settings.channels, blocks=settings.blocks)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    source = InPlane(slices, in_plane_mm, factor, slice_step_mm, profile, settings.seed)
    frame = Frame(source.count, factor, slice_step_mm, profile)
    scale = _scale(slices)
    result = SelfTrained(network, factor, scale, slice_step_mm, profile, 0)
    result.steps = _train(result, source, frame, settings, start, slices, progress)
    log.info("self-training: %d steps in %.0f s", result.steps, time.perf_counter() - start)
    return result


def _train(
    result: SelfTrained,
    source: InPlane,
    frame: Frame,
    settings: TrainSettings,
    start: float,
    slices: NDArray[np.float32],
    progress: Progress,
) -> int:
    network = result.network
    device = next(network.parameters()).device
    optimiser = torch.optim.Adam(network.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), fused=True)
    averaged = [p.detach().clone() for p in network.parameters()]
    base, null = frame.base.to(device), frame.null.to(device)
    edge = 2 * result.factor
    shift, scale = result.scale
    steps = settings.steps or 1_000_000
    step = 0
    warm = time.perf_counter()
    while step < steps:
        low, high = (((t - shift) / scale).to(device) for t in source.batch(settings.batch))
        rate = settings.learning_rate * _schedule(step / steps if settings.steps or step >= 8 else 0.0, step)
        for group in optimiser.param_groups:
            group["lr"] = rate
        with _autocast(device):
            detail = network(low[:, None].contiguous(memory_format=torch.channels_last))
        error = (low @ base + detail.float() @ null - high)[..., edge:-edge]
        loss = error.square().mean() / (error.detach().square().mean().sqrt() + 1e-3)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
        keep = min(0.995, step / (step + 10.0))
        torch._foreach_mul_(averaged, keep)
        torch._foreach_add_(averaged, [p.detach() for p in network.parameters()], alpha=1 - keep)
        if settings.steps is None and step in (3, 8, 40, 160):
            if step == 3:
                warm = time.perf_counter()
                continue
            pace = (time.perf_counter() - warm) / (step - 3)
            budget = settings.minutes * 60
            left = budget - (time.perf_counter() - start) - _application_seconds(pace, slices, source, settings.batch)
            steps = step + max(10, int(max(left, MIN_TRAINING * budget) / pace))
        progress("self-training", min(1.0, step / steps))
    with torch.no_grad():
        for p, value in zip(network.parameters(), averaged, strict=True):
            p.copy_(value)
    return step


def _application_seconds(pace: float, slices: NDArray[np.float32], source: InPlane, batch: int) -> float:
    """Time the network will take on the whole stack: a training step costs about three passes forward."""
    patch = batch * source.lines * source.count
    voxels = 4 * slices.shape[0] * slices.shape[1] * (slices.shape[2] + 2 * PAD)
    return float(1.3 * pace / 3 * voxels / patch)


def _schedule(fraction: float, step: int) -> float:
    """Warm-up over 20 steps, then a cosine to zero."""
    return min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))


def _degrade(
    width: int, spacing: float, count: int, factor: int, slice_step_mm: float, profile: SliceProfile, margin: float
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Per phase: (width, count) in-plane pixels → thick slices, and (width, count · factor) → truth between them."""
    out = []
    pixels = np.arange(width) * spacing
    for phase in range(PHASES):
        first = margin + spacing * (phase / PHASES - 0.5)
        thick = first + np.arange(count) * slice_step_mm
        fine = first + np.arange(count * factor) * (slice_step_mm / factor)
        low = slice_operator(thick, pixels, profile).matrix.T
        high = interpolate.bspline(pixels, fine).T
        out.append((np.ascontiguousarray(low, dtype=np.float32), np.ascontiguousarray(high, dtype=np.float32)))
    return out


def _informative(slices: NDArray[np.float32]) -> NDArray[np.int64]:
    """(N, 3) voxels with structure around them, for patches to be drawn at; all voxels when the image is flat."""
    from scipy import ndimage

    small = slices[::4, ::4]
    detail = ndimage.uniform_filter(np.abs(np.gradient(small, axis=0)) + np.abs(np.gradient(small, axis=1)), (3, 3, 1))
    chosen = np.argwhere(detail > 0.3 * detail.mean())
    if len(chosen) == 0:
        chosen = np.argwhere(np.ones_like(detail, dtype=bool))
    out: NDArray[np.int64] = chosen * np.array([4, 4, 1])
    return out


def _start(centre: int, length: int, size: int, rng: np.random.Generator) -> int:
    offset = int(centre) - int(rng.integers(length // 4, max(length // 4 + 1, 3 * length // 4)))
    return int(np.clip(offset, 0, max(0, size - length)))


def _scale(slices: NDArray[np.float32]) -> tuple[float, float]:
    """What to subtract and divide by: the lowest percentile (air becomes 0) and a quarter of the range above it."""
    low, high = np.percentile(slices[::3, ::3], [1, 99.5])
    return float(low), float(max(high - low, 1e-6) / 4)


def _resampler(inner_mm: NDArray[np.float64], fine_mm: NDArray[np.float64]) -> NDArray[np.float32]:
    """(inner, fine) matrix: a selection when the samples coincide, else a cubic B-spline."""
    out = interpolate.bspline(inner_mm, fine_mm)
    out[np.abs(out) < 1e-7] = 0.0
    return np.ascontiguousarray(out.T, dtype=np.float32)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=_fast_bfloat16(device))


def _fast_bfloat16(device: torch.device) -> bool:
    """Whether bf16 convolutions are native here; emulated ones are slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return (
        bool(torch.backends.cpu.get_cpu_capability().startswith("AVX512"))
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
