"""How long work reports that it is going on: a callback, so that the library itself never prints."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with the name of the stage and the fraction done, 0 to 1."""

    def __call__(self, stage: str, fraction: float, /) -> None:
        """Report that `stage` is done to `fraction`."""


def silent(stage: str, fraction: float, /) -> None:
    """The default: report to nobody."""
