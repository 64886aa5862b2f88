"""Compile a numeric kernel with numba, without the GIL, cached on disk where that is possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

Kernel = TypeVar("Kernel", bound=Callable[..., object])


def compiled(function: Kernel) -> Kernel:
    """The function as machine code. Kernels never use numba's own threads, which two Python threads may not share."""
    return _compile(function, False)


def compiled_loosely(function: Kernel) -> Kernel:
    """The same where sums may be taken in another order (but NaN and infinity are kept), for loops over vectors."""
    return _compile(function, {"reassoc", "contract"})


def compiled_for_finite(function: Kernel) -> Kernel:
    """As `compiled_loosely` where all numbers are known to be finite: the largest of many is found by vectors, too."""
    return _compile(function, {"reassoc", "contract", "nnan", "nsz"})


def _compile(function: Kernel, fastmath: bool | set[str]) -> Kernel:
    import numba

    def compile_(cache: bool) -> Kernel:
        return cast(Kernel, numba.njit(cache=cache, nogil=True, error_model="numpy", fastmath=fastmath)(function))

    try:
        return compile_(True)
    except RuntimeError:  # nowhere to write the cache: compile in every process
        return compile_(False)
