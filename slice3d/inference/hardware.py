"""Which device, which number format, how many threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from slice3d.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    import torch


def choose_device(wanted: str | None) -> torch.device:
    """The device asked for, else CUDA when there is one, else the CPU. Raises `InputError` when it is not there."""
    import torch

    if wanted is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise InputError(f"device is {wanted!r}; expected 'cpu', 'cuda' or 'cuda:N'") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device is {wanted!r}; expected 'cpu', 'cuda' or 'cuda:N'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MissingExtraError(
            f"device {wanted!r} asked for, {torch.cuda.device_count()} CUDA devices found; use --device cpu"
        )
    return device


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The number format of the network's arithmetic."""
    import torch

    if precision == "auto":
        if device.type == "cuda":
            return torch.float16
        return torch.bfloat16 if has_bfloat16() else torch.float32
    if precision == "float16" and device.type == "cpu":
        raise InputError("precision is float16 on the CPU; expected auto, float32 or bfloat16 there")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX); emulation would be slower than float32."""
    import torch

    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, bool)()) for name in checks)


def cores() -> int:
    """CPU cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def computing(threads: int | None) -> Iterator[None]:
    """Inference mode with so many CPU threads and reproducible kernels; everything is put back afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or cores())
    try:
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            yield
    finally:
        torch.set_num_threads(before)
