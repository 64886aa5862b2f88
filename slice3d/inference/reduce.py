"""Scores → labels on the study's grid, one plane at a time.

The network's finished planes arrive in order along the slab axis. Each output plane is interpolated between two of
them, so borders are smooth whatever the spacing, and nothing is ever held for the whole volume but the labels.

Between voxels whose strongest class is the same, linear interpolation cannot make another class win (every score is a
convex combination), so only cells whose corners disagree are worked out, with the same result. `Reducer` does it with
tensor operations on any device, `CellReducer` (in `reduce_cells`) with compiled code on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slice3d.inference.census import Census
from slice3d.inference.decide import Decision
from slice3d.inference.prepare import sample_positions

if TYPE_CHECKING:
    import torch

Axes = tuple[int, int, int]

PIXELS_AT_ONCE = 1 << 15
"""Bounds the scores worked out at once, whatever the number of classes."""


@dataclass
class Tally:
    """Running sums over network voxels for one structure: what its own probabilities say about it."""

    voxels: float = 0.0
    probability: float = 0.0
    inside: float = 0.0
    entropy: float = 0.0


@dataclass(frozen=True)
class Window:
    """A run of network voxels along one axis, and the study voxels that can be interpolated from them alone."""

    low: int
    high: int
    out_low: int
    out_high: int


def window(low: int, high: int, *, n_in: int, n_out: int, step: float) -> Window:
    """The window of network voxels low…high-1 out of n_in; step: network voxels per study voxel."""
    out_low = 0 if low == 0 else int(np.ceil((low + 0.5) / step - 0.5))
    out_high = n_out if high == n_in else int(np.floor((high - 0.5) / step - 0.5)) + 1
    return Window(low, high, min(out_low, n_out), max(min(out_high, n_out), min(out_low, n_out)))


def neighbours(n_in: int, w: Window, step: float, order: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each study voxel of a window: lower neighbour, counted from the window's, and weight of the upper one."""
    x = sample_positions(n_in, w.out_high, step)[w.out_low :] - w.low
    n_in = w.high - w.low
    if order == 0:
        return np.clip(np.floor(x + 0.5).astype(np.int64), 0, n_in - 1), np.zeros(len(x), np.float32)
    x = np.clip(x, 0, n_in - 1)
    lower = np.minimum(np.floor(x).astype(np.int64), max(n_in - 2, 0))
    return lower, (x - lower).astype(np.float32)


class Reducer:
    """Takes finished score planes (H, W, C) in order, writes label planes of the study's box.

    shape: of the whole network grid; windows: the part of it that comes, per axis. labels: (depth, height, width)
    integer array of the study's box, filled where the windows reach. All slab axis first.
    orders: spline order of the scores along (slab, H, W). steps: network voxels per output voxel along the same axes.
    """

    def __init__(
        self,
        shape: Axes,
        labels: NDArray[Any],
        decision: Decision,
        *,
        windows: tuple[Window, Window, Window],
        steps: tuple[float, float, float],
        orders: Axes = (1, 1, 1),
        device: torch.device,
    ) -> None:
        import torch

        self.decision, self.device = decision, device
        self.box = tuple(slice(w.out_low, w.out_high) for w in windows)
        self.labels = labels[self.box]
        self.origin = (windows[1].low, windows[2].low)
        self.around = [neighbours(n, w, s, o) for n, w, s, o in zip(shape, windows, steps, orders, strict=True)]
        self.lower, self.weight = self.around[0]
        (self.rows, self.row_weight), (self.columns, self.column_weight) = (
            (torch.from_numpy(low).to(device), torch.from_numpy(weight).to(device)) for low, weight in self.around[1:]
        )
        small = (windows[1].high - windows[1].low, windows[2].high - windows[2].low)
        self.same_plane = small == self.labels.shape[1:] and max(abs(s - 1) for s in steps[1:]) < 1e-6
        self.values = torch.tensor(decision.values, dtype=torch.int32, device=device)
        self.previous: torch.Tensor | None = None
        self.next_out = 0
        self.tallies = {name: Tally() for name in decision.groups}
        self.census = Census(len(decision.values), decision.activation, windows[0].low, decision.threshold)
        self.probability = {name: np.zeros(labels.shape, np.float16) for name in decision.probabilities}

    def take(self, index: int, scores: torch.Tensor) -> None:
        """scores: (H, W, C) float32 of plane `index`, counted from the window's first; planes come in order."""
        self._tally(scores)
        self._planes(index, scores)

    def _planes(self, index: int, scores: torch.Tensor) -> None:
        """Every output plane that can be interpolated now, one by one."""
        while self.next_out < len(self.lower):
            low, weight = int(self.lower[self.next_out]), float(self.weight[self.next_out])
            if low == index and weight == 0.0:
                plane = scores
            elif low + 1 == index and self.previous is not None:
                plane = self.previous.lerp(scores, weight) if weight else self.previous
            else:
                break
            self._write(self.next_out, plane)
            self.next_out += 1
        self.previous = scores

    def _write(self, out: int, plane: torch.Tensor) -> None:
        self.labels[out] = self._labels(plane).cpu().numpy()
        self._write_probabilities(out, plane)

    def _write_probabilities(self, out: int, plane: torch.Tensor) -> None:
        for name in self.decision.probabilities:
            field_ = self._enlarged(self._probability(plane, self.decision.groups[name]))
            self.probability[name][self.box][out] = field_.half().cpu().numpy()

    def _labels(self, plane: torch.Tensor) -> torch.Tensor:
        """(height, width) labels from scores (H, W, C) at their depth."""
        import torch

        coarse, pattern = self._decide(plane)
        if self.same_plane:
            return coarse
        width = self.labels.shape[2]
        result = coarse[self.rows][:, self.columns]
        mixed = mixed_cells(pattern)[self.rows][:, self.columns].reshape(-1).nonzero().squeeze(1)
        for some in torch.split(mixed, PIXELS_AT_ONCE):
            fine = self._interpolate(plane, some // width, some % width)
            result.view(-1)[some] = self._decide(fine)[0]
        return result

    def _decide(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(…, C) scores → label values (…) and a code that is equal where the decision is equal."""
        import torch

        if self.decision.activation == "softmax":
            best = scores.argmax(-1)
            return self.values[best], best
        on = scores > self.decision.threshold
        labels = torch.zeros(scores.shape[:-1], dtype=torch.int32, device=scores.device)
        code = torch.zeros(scores.shape[:-1], dtype=torch.int64, device=scores.device)
        for channel, value in enumerate(self.decision.values):
            labels[on[..., channel]] = value
            code = code * 2 + on[..., channel]
        return labels, code

    def _interpolate(self, plane: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """(n, C) scores at fine pixels: four neighbours, weighted."""
        import torch

        height, width, classes = plane.shape
        top, left = self.rows[rows], self.columns[columns]
        down, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
        a, b = self.row_weight[rows], self.column_weight[columns]
        index = torch.stack([top * width + left, top * width + right, down * width + left, down * width + right], 1)
        weight = torch.stack([(1 - a) * (1 - b), (1 - a) * b, a * (1 - b), a * b], 1)
        flat = plane.reshape(-1, classes)
        return torch.nn.functional.embedding_bag(index, flat, mode="sum", per_sample_weights=weight)

    def _enlarged(self, field: torch.Tensor) -> torch.Tensor:
        """A (H, W) plane at the study's resolution."""
        if self.same_plane:
            return field
        down = (self.rows + 1).clamp(max=field.shape[0] - 1)
        right = (self.columns + 1).clamp(max=field.shape[1] - 1)
        field = field[self.rows].lerp(field[down], self.row_weight[:, None])
        return field[:, self.columns].lerp(field[:, right], self.column_weight)

    def _probability(self, scores: torch.Tensor, channels: tuple[int, ...]) -> torch.Tensor:
        if self.decision.activation == "softmax":
            return scores.softmax(-1)[..., list(channels)].sum(-1)
        return scores[..., channels[0]].sigmoid()

    def _tally(self, scores: torch.Tensor) -> None:
        """Add one network plane to the sums behind the expected Dice."""
        import torch

        best = scores.argmax(-1) if self.decision.activation == "softmax" else None
        self.census.take(scores, None if best is None else best.int().cpu().numpy(), self.origin)
        if not self.tallies:
            return
        if best is not None:
            probability = scores.softmax(-1)
            entropy = -(probability * probability.clamp_min(1e-12).log()).sum(-1)
            membership = torch.zeros(scores.shape[-1], len(self.tallies), device=scores.device)
            for column, channels in enumerate(self.decision.groups.values()):
                membership[list(channels), column] = 1
            p = probability @ membership
            m = membership[best]
        else:
            columns = [channels[0] for channels in self.decision.groups.values()]
            p = scores[..., columns].sigmoid()
            m = (scores[..., columns] > self.decision.threshold).float()
            q = p.clamp(1e-6, 1 - 1e-6)
            entropy = -(q * q.log() + (1 - q) * (1 - q).log()).mean(-1)
        sums = torch.stack([m.sum((0, 1)), p.sum((0, 1)), (m * p).sum((0, 1)), (m * entropy[..., None]).sum((0, 1))])
        self._add(sums)

    def _add(self, sums: torch.Tensor) -> None:
        """Add (4, structures) sums to the tallies: voxels, probability, probability inside, entropy inside."""
        for tally, column in zip(self.tallies.values(), sums.double().T.tolist(), strict=True):
            tally.voxels += column[0]
            tally.probability += column[1]
            tally.inside += column[2]
            tally.entropy += column[3]


def mixed_cells(code: torch.Tensor) -> torch.Tensor:
    """(H, W) bool: the cell from (h, w) to (h+1, w+1) has corners that disagree."""
    import torch

    out = torch.zeros_like(code, dtype=torch.bool)
    vertical = code[1:] != code[:-1]
    horizontal = code[:, 1:] != code[:, :-1]
    out[:-1] |= vertical
    out[:, :-1] |= horizontal
    out[:-1, :-1] |= vertical[:, 1:] | horizontal[1:]
    return out


def touching(corners: torch.Tensor) -> torch.Tensor:
    """(H, W) bool: the cell from (h, w) to (h+1, w+1) has one of these corners."""
    out = corners.clone()
    out[:-1] |= corners[1:]
    out[:, :-1] |= corners[:, 1:]
    out[:-1, :-1] |= corners[1:, 1:]
    return out
