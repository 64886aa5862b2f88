"""What a caller may choose about a run. None of it changes the result beyond rounding, unless it says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from slice3d.errors import InputError

Precision = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class InferenceSettings:
    """How to run a model.

    device: `"cpu"`, `"cuda"`, `"cuda:1"` or None (CUDA when there is one). precision: of the network's arithmetic;
    `auto` is bfloat16 on CPUs with instructions for it, float16 autocast on CUDA, else float32. memory_gib: what the
    whole process may use (default: 60 % of what is free). threads: CPU threads (default: the cores this process has).
    batch: tiles at once (default: 1 on CPU, planned from memory on CUDA).

    These change the result: overlap (share of the patch that tiles overlap) and mirror (average over flips), both
    by default as the package says; folds to average (default: all); region (`"auto"` looks for the wanted structures
    first and works out only their neighbourhood where that saves time, `"whole"` never does); postprocess (keep the
    one component of a single organ, drop fragments; by default as the package says); probabilities, structures
    whose probability to return; allow_unexpected_input: report a wrong modality or intensity range as a finding and
    go on instead of stopping.
    """

    device: str | None = None
    precision: Precision = "auto"
    memory_gib: float | None = None
    threads: int | None = None
    batch: int | None = None
    overlap: float | None = None
    mirror: bool | None = None
    folds: tuple[int, ...] | None = None
    region: Literal["auto", "whole"] = "auto"
    postprocess: bool | None = None
    probabilities: tuple[str, ...] = ()
    allow_unexpected_input: bool = False

    def __post_init__(self) -> None:
        if self.precision not in ("auto", "float32", "bfloat16", "float16"):
            raise InputError(f"precision is {self.precision!r}; expected auto, float32, bfloat16 or float16")
        if self.overlap is not None and not 0 <= self.overlap < 1:
            raise InputError(f"overlap is {self.overlap}; expected 0 to below 1")
        for name in ("memory_gib", "threads", "batch"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"{name} is {value}; expected a positive number")
