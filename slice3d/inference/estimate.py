"""What a study of a given size will need, found out without it: memory as planned, time from one run of the network."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from slice3d.grid import Grid
from slice3d.inference.case import slab_axis, three
from slice3d.inference.decide import decision_for, label_type, search_for, wanted_structures
from slice3d.inference.hardware import computing, cores
from slice3d.inference.memory import plan_case
from slice3d.inference.prepare import make_frame
from slice3d.inference.region import runs
from slice3d.inference.settings import InferenceSettings
from slice3d.volume import Volume, freeze

if TYPE_CHECKING:
    from slice3d.inference.engine import Engine
    from slice3d.inference.networks import Networks


@dataclass(frozen=True)
class Estimate:
    """What a case will need. runs: network runs (fewer when the region proves to be small), run_s: time of one.

    memory_gib: peak of the network stage, process included; budget_gib: what it may use.
    """

    runs: int
    run_s: float
    memory_gib: float
    budget_gib: float
    device: str
    precision: str
    threads: int

    @property
    def seconds(self) -> float:
        """Of all network runs."""
        return self.runs * self.run_s


def estimate(
    engine: Engine, grid: Grid, *, structures: Sequence[str] | None = None, settings: InferenceSettings | None = None
) -> Estimate:
    """What `engine.predict` would need on `grid`. Raises what it would raise for its settings and memory."""
    settings = engine.checked(settings)
    package, networks = engine.package, engine.networks
    blank = Volume(np.broadcast_to(freeze(np.ones(1, np.int16)), grid.shape), grid)
    frame = make_frame([blank], package)
    labels = int(np.prod(grid.shape)) * np.dtype(label_type(package)).itemsize
    slab = slab_axis(frame.shape, package.patch_size)
    plan = plan_case(networks, frame, slab=slab, label_bytes=labels, settings=settings)
    search = search_for(package, wanted_structures(package, structures), settings)
    decision = decision_for(package, search.structures, settings)
    padded = three([max(n, p) for n, p in zip(frame.shape, package.patch_size, strict=True)])
    channels = [n for n, value in enumerate(decision.values) if value]
    quick, full = runs(networks, padded, package.patch_size, channels, settings)
    return Estimate(
        runs=quick + full,
        run_s=round(_one_run(networks, settings), 4),
        memory_gib=round(plan.need_gib, 2),
        budget_gib=round(plan.budget_gib, 2),
        device=networks.device.type,
        precision=str(networks.dtype).removeprefix("torch."),
        threads=settings.threads or cores(),
    )


def _one_run(networks: Networks, settings: InferenceSettings) -> float:
    import torch

    shape = (1, len(networks.package.channels), *networks.package.patch_size)
    batch = torch.zeros(shape, device=networks.device)
    seconds = 0.0
    with computing(settings.threads):
        for _ in range(2):  # the first one warms up
            start = time.perf_counter()
            networks.forward(networks.folds[0], batch).sum().item()
            seconds = time.perf_counter() - start
    return seconds
