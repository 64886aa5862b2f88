"""The 3D network at work on a stack: planes first, in both directions that contain the normal, then what they disagree
about, tile by tile."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from slice3d.progress import Progress, silent
from slice3d.superres.network import RATE, Frame, condition_of
from slice3d.superres.planes import MAX_LINES, PAD, PlaneNetwork, autocast, joining, resampler
from slice3d.superres.unet import VolumeNetwork

# Of the stack, in lines; neighbours see `_HALO` lines of each other.
_TILE, _HALO = 160, 24
_MULTIPLE = (8, 8, 2)


@dataclass(frozen=True, eq=False)
class VolumeEstimate:
    """A plane network for one stack and the 3D network over it. turned: also let the 3D network see every tile turned
    by half a circle about each axis and average, for twice its time."""

    planes_network: PlaneNetwork
    network: VolumeNetwork
    turned: bool = True

    def volume(
        self,
        slices: NDArray[np.float32],
        in_plane_mm: tuple[float, float],
        fine_mm: NDArray[np.float64],
        *,
        progress: Progress = silent,
    ) -> NDArray[np.float32]:
        """(a, b, n) slices → (a, b, m) estimate at `fine_mm` (from the first slice's centre)."""
        chosen = self.planes_network
        shift, scale = chosen.scale
        step, profile = chosen.slice_step_mm, chosen.profile
        joined = [max(1, math.ceil(step / line / MAX_LINES)) for line in in_plane_mm]
        narrow, widen = zip(*(joining(n, j) for n, j in zip(slices.shape[:2], joined, strict=True)), strict=True)
        lines_mm = [line * j for line, j in zip(in_plane_mm, joined, strict=True)]
        scaled = torch.from_numpy((slices - shift) / scale)
        seen = torch.einsum("pa,abn,qb->pqn", narrow[0], scaled, narrow[1]) if max(joined) > 1 else scaled
        detail = self._detail(seen, lines_mm, progress)
        frame = Frame(slices.shape[2] + 2 * PAD, step, profile)
        to_fine = torch.from_numpy(resampler(np.asarray(frame.fine_mm - PAD * step, dtype=np.float64), fine_mm))
        base, null = frame.base @ to_fine, frame.null @ to_fine
        out = np.empty((*slices.shape[:2], len(fine_mm)), dtype=np.float32)
        for start in range(0, len(out), 32):
            rows = slice(start, start + 32)
            part = _padded(scaled[rows]) @ base
            wide = detail[rows].float() if max(joined) == 1 else _widened(detail, widen[0][rows], widen[1])
            out[rows] = ((part + wide @ null) * scale + shift).numpy()
        return out

    def planes(self, slices: NDArray[np.float32], line_mm: float, fine_mm: NDArray[np.float64]) -> NDArray[np.float32]:
        """(s, L, n) → (s, L, m): single planes have no third direction; the plane network alone answers."""
        return self.planes_network.planes(slices, line_mm, fine_mm)

    def _detail(self, seen: torch.Tensor, lines_mm: list[float], progress: Progress) -> torch.Tensor:
        """(p, q, n) scaled slices → (p, q, (n + 2 · PAD) · RATE) detail of planes and 3D network together."""
        chosen = self.planes_network
        p, q, n = seen.shape
        padded = _padded(seen)
        ways = []
        for turn, line in ((False, lines_mm[1]), (True, lines_mm[0])):
            told = condition_of(line, chosen.slice_step_mm, chosen.profile)
            image = padded.transpose(0, 1) if turn else padded
            detail = chosen.detail(image, told)
            if chosen.turned:
                detail += chosen.detail(image.flip(1, 2), told).flip(1, 2)
                detail *= 0.5
            ways.append(detail.half())
            progress("super-resolution", len(ways) / 4)
        first, second = ways[0], ways[1].transpose(0, 1)
        out = torch.empty_like(first)
        frame = Frame(n + 2 * PAD, chosen.slice_step_mm, chosen.profile)
        inner = slice(PAD * RATE, (PAD + n) * RATE)
        base, null = frame.base[:, inner], frame.null[:, inner]
        device = next(self.network.parameters()).device
        line = math.sqrt(lines_mm[0] * lines_mm[1])
        condition = torch.tensor([condition_of(line, chosen.slice_step_mm, chosen.profile)], device=device)
        tiles = list(_tiles(p, q))
        for done, (outer, kept, place) in enumerate(tiles, 1):
            a, b = first[outer].float(), second[outer].float()
            mean = 0.5 * (a + b)
            fine = padded[outer] @ base + mean @ null
            mean[..., inner] += self._mended(fine, 0.5 * (a - b) @ null, seen[outer], condition, device)
            out[place] = mean[kept].half()
            progress("super-resolution", 0.5 + 0.5 * done / len(tiles))
        return out

    def _mended(
        self,
        fine: torch.Tensor,
        apart: torch.Tensor,
        slices: torch.Tensor,
        condition: torch.Tensor,
        device: torch.device,
    ) -> torch.Tensor:
        p, q, n = slices.shape
        parts = [_to_multiple(t, n)[None].to(device) for t in (fine, apart, slices)]
        with torch.inference_mode(), autocast(device):
            out: torch.Tensor = self.network(*parts, condition).float()
            if self.turned:
                back = self.network(*(t.flip(1, 2, 3) for t in parts), condition).float()
                out = 0.5 * (out + back.flip(1, 2, 3))
        return out[0, :p, :q, : n * RATE].cpu()


def _tiles(p: int, q: int) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice], tuple[slice, slice]]]:
    """What to give to the network, what to keep of its answer, and where that lies."""
    spans = []
    for size in (p, q):
        count = math.ceil(size / _TILE)
        # where the network halves its input must not depend on the tile
        edges = [*(round(size * k / count / 8) * 8 for k in range(count)), size]
        spans.append([(max(0, a - _HALO), min(size, b + _HALO), a, b) for a, b in itertools.pairwise(edges)])
    for a, b, c, d in spans[0]:
        for e, f, g, h in spans[1]:
            yield (slice(a, b), slice(e, f)), (slice(c - a, d - a), slice(g - e, h - e)), (slice(c, d), slice(g, h))


def _widened(detail: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(p, q, m) → (a, b, m) by (a, p) and (b, q) matrices; of the first only where it is not zero."""
    used = rows.any(dim=0).nonzero()[:, 0]
    span = slice(int(used[0]), int(used[-1]) + 1)
    return torch.einsum("ap,pqm,bq->abm", rows[:, span], detail[span].float(), columns)


def _padded(slices: torch.Tensor) -> torch.Tensor:
    """(…, n) → (…, n + 2 · PAD), the outer slices repeated."""
    first, last = slices[..., :1], slices[..., -1:]
    shape = (*slices.shape[:-1], PAD)
    return torch.cat([first.expand(shape), slices, last.expand(shape)], dim=-1)


def _to_multiple(values: torch.Tensor, count: int) -> torch.Tensor:
    """Repeat the border until the network can halve every axis as often as it does; (p, q, count · r) values."""
    rate = values.shape[-1] // count
    for axis, (multiple, block) in enumerate(zip(_MULTIPLE, (1, 1, rate), strict=True)):
        missing = -(values.shape[axis] // block) % multiple
        if missing:
            border = values.narrow(axis, values.shape[axis] - block, block)
            values = torch.cat([values, *[border] * missing], dim=axis)
    return values
