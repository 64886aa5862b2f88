"""What a run will need, what there is, and the plan that fits."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from slice3d.errors import ModelError
from slice3d.inference.settings import InferenceSettings
from slice3d.inference.tiles import tile_starts

if TYPE_CHECKING:
    import torch
    from torch import nn

    from slice3d.inference.networks import Networks
    from slice3d.inference.prepare import Frame

GIB = 1024.0**3
_SHARE_OF_FREE = 0.6
# convolution libraries keep reordered weights and scratch space beside what torch itself allocates
_WORKSPACE = 1.5


@dataclass(frozen=True)
class Plan:
    """batch: tiles at once. need_gib: what the process is expected to use at its peak. budget_gib: what it may."""

    batch: int
    need_gib: float
    budget_gib: float


def budget_gib(wanted: float | None, device: torch.device) -> float:
    """The memory the run may use: as asked, else 60 % of what is free on `device` on top of what is in use already."""
    if wanted is not None:
        return wanted
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return _SHARE_OF_FREE * free / GIB
    return in_use_gib() + _SHARE_OF_FREE * available_gib()


def available_gib() -> float:
    """Memory that can still be had without swapping, container limits included where Linux shows them."""
    import psutil

    free = float(psutil.virtual_memory().available)
    return min(free, _cgroup_free()) / GIB


def in_use_gib() -> float:
    """Resident memory of this process."""
    import psutil

    return float(psutil.Process().memory_info().rss) / GIB


def _cgroup_free() -> float:
    from pathlib import Path

    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text().strip()
        return float("inf") if limit == "max" else max(0.0, float(limit) - float(used))
    except (OSError, ValueError):
        return float("inf")


def make_plan(fixed: float, per_tile: float, *, budget: float, tiles: int, batch: int | None, most: int) -> Plan:
    """Choose the batch. fixed, per_tile, budget in GiB; most: largest sensible batch on this device.

    Raises `ModelError` when not even one tile at a time fits.
    """
    need = fixed + per_tile
    if need > budget:
        raise ModelError(
            f"this study needs about {need:.1f} GiB with this model, the memory budget is {budget:.1f} GiB; "
            "raise --memory, close other programs, crop the study, or use a model with coarser voxels"
        )
    fitting = int((budget - fixed) / per_tile) if per_tile > 0 else most
    size = batch if batch is not None else max(1, min(most, tiles, fitting))
    if batch is not None and fixed + batch * per_tile > budget:
        raise ModelError(
            f"a batch of {batch} tiles needs about {fixed + batch * per_tile:.1f} GiB, the memory budget is "
            f"{budget:.1f} GiB; lower the batch to {max(1, fitting)} or raise --memory"
        )
    return Plan(batch=size, need_gib=fixed + size * per_tile, budget_gib=budget)


def plan_case(networks: Networks, frame: Frame, *, slab: int, label_bytes: int, settings: InferenceSettings) -> Plan:
    """What one study needs with these networks, and the batch that fits. slab: axis that tiles run along.

    Raises `ModelError` when the budget does not suffice.
    """
    package, width, classes = networks.package, networks.width, networks.channels_out
    patch, channels = package.patch_size, len(package.channels)
    padded = [max(n, p) for n, p in zip(frame.shape, patch, strict=True)]
    voxels = float(np.prod(padded))
    plane = voxels / padded[slab]
    buffer = patch[slab] * plane * (width + 1) * 4
    work = 4 * plane * classes * 4 + (1 << 15) * classes * 8
    image = voxels * 4 * channels
    half = max(frame.box_shape) * voxels / max(1, min(padded)) * 4
    host = label_bytes * (1 + 2 * len(settings.probabilities)) + image * 2 + half
    per_tile = networks.activation_gib() + float(np.prod(patch)) * 4 * (channels + width * 0.5) / GIB
    budget = budget_gib(settings.memory_gib, networks.device)
    if networks.device.type == "cuda":
        fixed, most = (buffer + work) / GIB + 0.5, 8
    else:
        fixed, most = in_use_gib() + (buffer + work + host) / GIB, 1
    tiles = len(
        tile_starts((padded[0], padded[1], padded[2]), patch, package.sampling.overlap, package.sampling.tiling)
    )
    return make_plan(fixed, per_tile, budget=budget, tiles=tiles, batch=settings.batch, most=most)


def activation_gib(network: nn.Module, input_shape: tuple[int, ...], bytes_per_value: int) -> float:
    """Peak of the tensors one forward pass holds at a time, found by running it on shapes alone (`meta` device)."""
    import copy

    import torch

    twin = copy.deepcopy(network).to("meta")
    twin = twin.to(torch.float32)
    with torch.no_grad(), _Meter() as meter:
        twin(torch.empty(input_shape, device="meta"))
    return float(meter.peak) / 4 * bytes_per_value * _WORKSPACE / GIB


def _meter_class() -> Any:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Meter(TorchDispatchMode):  # type: ignore[misc, no-untyped-call, unused-ignore]
        """Counts bytes of live storages while operations run."""

        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.live = 0
            self.peak = 0
            self.seen: set[int] = set()

        def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
            import torch

            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(tensor, torch.Tensor):
                    self.track(tensor)
            return result

        def track(self, tensor: torch.Tensor) -> None:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self.seen:
                return
            self.seen.add(key)
            size = storage.nbytes()
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self.release, key, size)

        def release(self, key: int, size: int) -> None:
            self.seen.discard(key)
            self.live -= size

    return Meter


def _Meter() -> Any:  # noqa: N802 - a class made late, so that importing this module does not import torch
    return _meter_class()()
