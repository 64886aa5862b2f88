"""Compile a numeric kernel with numba, without the GIL, cached on disk where that is possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

Kernel = TypeVar("Kernel", bound=Callable[..., object])


def compiled(function: Kernel) -> Kernel:
    """The function as machine code. Kernels never use numba's own threads, which two Python threads may not share."""
    import numba

    try:
        return cast(Kernel, numba.njit(cache=True, nogil=True, error_model="numpy")(function))
    except RuntimeError:  # nowhere to write the cache: compile in every process
        return cast(Kernel, numba.njit(nogil=True, error_model="numpy")(function))
