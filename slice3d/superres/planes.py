"""A network at work on a stack: plane by plane, in both directions that contain the normal."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from slice3d.progress import Progress, silent
from slice3d.superres import interpolate
from slice3d.superres.network import RATE, Frame, SliceNetwork, condition_of
from slice3d.superres.profile import SliceProfile

PAD = 4
# Beyond this many lines per slice distance, lines are averaged before the network sees them.
MAX_LINES = 9.5


@dataclass(frozen=True, eq=False)
class PlaneNetwork:
    """A network for slices `slice_step_mm` apart with this profile.

    scale: what to subtract from intensities and to divide them by. turned: also apply it to every plane turned by half
    a circle and average, for twice the time."""

    network: SliceNetwork
    scale: tuple[float, float]
    slice_step_mm: float
    profile: SliceProfile
    turned: bool = False

    def volume(
        self,
        slices: NDArray[np.float32],
        in_plane_mm: tuple[float, float],
        fine_mm: NDArray[np.float64],
        *,
        progress: Progress = silent,
    ) -> NDArray[np.float32]:
        """(a, b, n) slices → (a, b, m) estimate at `fine_mm` (from the first slice's centre): the mean over both
        directions of planes."""
        end = (slices.shape[2] - 1) * self.slice_step_mm
        passes = 4 if self.turned else 2
        total: NDArray[np.float32] = np.zeros((*slices.shape[:2], len(fine_mm)), dtype=np.float32)
        for n in range(passes):
            across = n % 2 == 1
            image = slices.transpose(1, 0, 2) if across else slices
            line_mm = in_plane_mm[0] if across else in_plane_mm[1]
            if n < 2:
                planes = self.planes(image, line_mm, fine_mm)
            else:
                planes = self.planes(image[:, ::-1, ::-1], line_mm, end - fine_mm[::-1])[:, ::-1, ::-1]
            total += planes.transpose(1, 0, 2) if across else planes
            progress("super-resolution", (n + 1) / passes)
        total /= passes
        return total

    def planes(self, slices: NDArray[np.float32], line_mm: float, fine_mm: NDArray[np.float64]) -> NDArray[np.float32]:
        """(s, L, n) → (s, L, m): every plane `slices[s]` by itself; its L lines are `line_mm` apart."""
        shift, scale = self.scale
        padded = np.pad(slices, ((0, 0), (0, 0), (PAD, PAD)), mode="edge")
        frame = Frame(padded.shape[2], self.slice_step_mm, self.profile)
        to_fine = torch.from_numpy(
            resampler(np.asarray(frame.fine_mm - PAD * self.slice_step_mm, dtype=np.float64), fine_mm)
        )
        base, null = frame.base @ to_fine, frame.null @ to_fine
        joined = max(1, math.ceil(self.slice_step_mm / line_mm / MAX_LINES))
        narrow, widen = joining(padded.shape[1], joined)
        condition = condition_of(line_mm * joined, self.slice_step_mm, self.profile)
        out = np.empty((*slices.shape[:2], len(fine_mm)), dtype=np.float32)
        chunk = _chunk(padded.shape)
        for start in range(0, len(padded), chunk):
            part = torch.from_numpy(np.ascontiguousarray((padded[start : start + chunk] - shift) / scale))
            detail = self.detail(part if joined == 1 else narrow @ part, condition)
            detail = detail if joined == 1 else widen @ detail
            out[start : start + chunk] = (part @ base + detail @ null).numpy() * scale + shift
        return out

    def detail(self, planes: torch.Tensor, condition: tuple[float, float, float]) -> torch.Tensor:
        """(s, L, n) scaled planes → (s, L, n · RATE) what the network adds, on the CPU."""
        device = next(self.network.parameters()).device
        told = torch.tensor([condition], device=device)
        out = torch.empty((*planes.shape[:2], planes.shape[2] * RATE))
        chunk = _chunk(planes.shape)
        with torch.inference_mode(), autocast(device):
            for start in range(0, len(planes), chunk):
                part = slice(start, start + chunk)
                out[part] = self.network(planes[part].to(device), told).float()
        return out


def _chunk(shape: tuple[int, ...]) -> int:
    """Planes of (s, L, n) to take at a time."""
    return max(1, int(2**17 // (shape[1] * shape[2])))


def chosen_device(name: str) -> torch.device:
    """`"auto"`, `"cpu"` or `"cuda"` → the device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where convolutions in it are native; emulated ones are slower than float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=_fast_bfloat16(device))


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return (
        bool(torch.backends.cpu.get_cpu_capability().startswith("AVX512"))
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def joining(lines: int, joined: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices that average every `joined` lines (few, lines) and interpolate back linearly (lines, few)."""
    owner = np.arange(lines) // joined
    narrow = (owner[None, :] == np.arange(owner[-1] + 1)[:, None]).astype(np.float64)
    narrow /= narrow.sum(axis=1, keepdims=True)
    centres = narrow @ np.arange(lines)
    widen = np.stack([np.interp(np.arange(lines), centres, row) for row in np.eye(len(centres))], axis=1)
    return torch.from_numpy(narrow.astype(np.float32)), torch.from_numpy(widen.astype(np.float32))


def resampler(inner_mm: NDArray[np.float64], fine_mm: NDArray[np.float64]) -> NDArray[np.float32]:
    """(inner, fine) matrix: cubic B-spline interpolation, a selection where samples coincide."""
    out = interpolate.bspline(inner_mm, fine_mm)
    out[np.abs(out) < 1e-7] = 0.0
    return np.ascontiguousarray(out.T, dtype=np.float32)
