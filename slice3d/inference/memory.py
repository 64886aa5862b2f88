"""What a run will need, what there is, and the plan that fits."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
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
    if package.tissues:  # all scores in half precision, and a plane of the study's box at a time
        host += voxels * classes * 2 + 4 * label_bytes / max(1, min(frame.box_shape)) * classes * 4
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


def activation_gib(network: nn.Module, input_shape: Sequence[int], bytes_per_value: int, strides: Any = None) -> float:
    """Peak of the tensors one forward pass holds at a time.

    strides: of the network's stages, where its description has them. Then a small input shows what a large one takes;
    else shapes alone are run (`meta` device), which imports torch's compiler and takes longer than small studies do.
    """
    import copy

    import torch

    meter = _Meter()
    shape = list(input_shape)
    least = _smallest(shape[2:], strides)
    twin = network if least else copy.deepcopy(network).to("meta")
    if least:
        shape[2:] = least
    hooks = [module.register_forward_pre_hook(lambda _, given: meter.see(given)) for module in twin.modules()]
    hooks += [module.register_forward_hook(lambda _, __, result: meter.see(result)) for module in twin.modules()]
    weight = next(twin.parameters())
    with torch.no_grad():
        twin(torch.zeros(shape, device=weight.device, dtype=weight.dtype))
    for hook in hooks:
        hook.remove()
    values = meter.peak / weight.dtype.itemsize * np.prod(input_shape) / np.prod(shape)
    return float(values) * bytes_per_value * _WORKSPACE / GIB


def _smallest(patch: Sequence[int], strides: Any) -> list[int]:
    """Two voxels at the network's lowest resolution, in voxels of its input; empty when that cannot be told."""
    try:
        factor = np.prod([np.broadcast_to(np.array(s, int), 3) for s in strides], axis=0)
    except (TypeError, ValueError):
        return []
    small = [min(n, 2 * int(f)) for n, f in zip(patch, factor, strict=True)]
    return small if all(n % int(f) == 0 for n, f in zip(patch, factor, strict=True)) else []


class _Meter:
    """Counts bytes of live storages among the tensors that go into modules and come out of them."""

    def __init__(self) -> None:
        self.live = 0
        self.peak = 0
        self.seen: set[int] = set()

    def see(self, values: Any) -> None:
        """Tensors, alone or in sequences or dictionaries."""
        import torch

        if isinstance(values, torch.Tensor):
            self._track(values.untyped_storage())
        elif isinstance(values, (tuple, list)):
            for value in values:
                self.see(value)
        elif isinstance(values, dict):
            self.see(tuple(values.values()))

    def _track(self, storage: Any) -> None:
        key = storage._cdata
        if key in self.seen:
            return
        self.seen.add(key)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size
