"""The reducer of CPUs: two network planes at a time, compiled, on as many threads as there are."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slice3d.inference import cells, pixels
from slice3d.inference.reduce import Reducer

if TYPE_CHECKING:
    import torch

_PARTS = 8  # of a plane: more than threads, so that they end together; the same everywhere, so that sums are


class CellReducer(Reducer):
    """As `Reducer`; every layer of cells between two network planes is done when the second one comes."""

    def __init__(self, *args: Any, pool: ThreadPoolExecutor, **options: Any) -> None:
        super().__init__(*args, **options)
        self.pool = pool
        inputs = [n.high - n.low for n in options["windows"]]
        self.slab_runs, self.row_runs = (
            cells.runs(low, weight, n) for (low, weight), n in zip(self.around[:2], inputs[:2], strict=True)
        )
        self.cell_columns = cells.columns(*self.around[2], inputs[2])
        most = int((self.slab_runs.stop - self.slab_runs.start).max(initial=0))
        # for every layer anew it would cost more than what is put into it
        self.room = np.empty((most, *self.labels.shape[1:]), self.labels.dtype)
        self.next_run = 0
        self.before: tuple[NDArray[np.float32], NDArray[np.int32]] | None = None
        self.table = np.array([*self.decision.values, 0], self.labels.dtype)
        groups = tuple(self.decision.groups.values())
        self.owners = pixels.owners(groups, len(self.decision.values))
        self.members = np.zeros((len(groups), len(self.decision.values)))
        for row, channels in zip(self.members, groups, strict=True):
            row[list(channels)] = 1

    def take(self, index: int, scores: torch.Tensor) -> None:
        """scores: (H, W, C) float32 of plane `index`, counted from the window's first; planes come in order."""
        plane = scores.contiguous().numpy()
        best = np.zeros(plane.shape[:2], np.int32)
        if self.decision.activation == "softmax":
            self._judge(plane, best)
            self.census.take(scores, best, self.origin)
        else:
            self._tally(scores)
        while self.next_run < len(self.slab_runs.low) and self.slab_runs.high[self.next_run] <= index:
            self._layer(self.next_run, index, plane, best)
            self.next_run += 1
        self.before = plane, best
        if self.decision.probabilities:
            self._planes(index, scores)

    def _write(self, out: int, plane: torch.Tensor) -> None:
        self._write_probabilities(out, plane)

    def _layer(self, run: int, index: int, plane: NDArray[np.float32], best: NDArray[np.int32]) -> None:
        """Label planes of one run along the slab axis, between the plane before (or this one) and this one."""
        start, stop = int(self.slab_runs.start[run]), int(self.slab_runs.stop[run])
        a, best_a = self.before if self.before is not None and self.slab_runs.low[run] < index else (plane, best)
        b, best_b = (plane, best) if self.slab_runs.high[run] == index else (a, best_a)
        weight = self.weight[start:stop]
        rows, softmax = self.row_runs, self.decision.activation == "softmax"
        threshold = -np.inf if softmax else self.decision.threshold
        out = self.room[: stop - start]

        def work(part: int, first: int, last: int) -> None:
            cells.labels_between(
                a, b, best_a, best_b, threshold, weight, rows, self.cell_columns, self.table, out, first, last
            )
            done = slice(rows.start[first], rows.stop[last - 1])
            self.labels[start:stop, done] = out[:, done]

        self._share(len(rows.low), work)

    def _judge(self, plane: NDArray[np.float32], best: NDArray[np.int32]) -> None:
        """The strongest class of each pixel into best (H, W), and the sums behind the expected Dice; plane: (H, W, C)."""
        mass = np.zeros((_PARTS, plane.shape[2]))
        sums = np.zeros((_PARTS, len(self.tallies), 3))

        def work(part: int, first: int, last: int) -> None:
            pixels.judge(plane, best, self.owners, mass[part], sums[part], first, last)

        self._share(len(plane), work)
        whole = self.members @ mass.sum(0)
        for tally, probable, (voxels, inside, entropy) in zip(
            self.tallies.values(), whole.tolist(), sums.sum(0).tolist(), strict=True
        ):
            tally.voxels += voxels
            tally.probability += probable
            tally.inside += inside
            tally.entropy += entropy

    def _share(self, length: int, work: Callable[[int, int, int], Any]) -> None:
        """Call work(part, first, last) for parts of 0…length-1, on all threads."""
        edges = [length * n // _PARTS for n in range(_PARTS + 1)]
        parts = [(n, a, b) for n, (a, b) in enumerate(pairwise(edges)) if a < b]
        for done in [self.pool.submit(work, *part) for part in parts]:
            done.result()
