"""What the shell offers for values: structures and models that are installed. No torch here."""

from __future__ import annotations

from collections.abc import Iterable


def organs(incomplete: str) -> list[str]:
    """Structures of all installed models that go on from `incomplete`; of a list, its last entry."""
    from slice3d.models.registry import packages

    before, comma, last = incomplete.rpartition(",")
    return _matching(last, {s for package in packages().values() for s in package.structures}, before + comma)


def models(incomplete: str) -> list[str]:
    """Installed models that begin with `incomplete`."""
    from slice3d.models.registry import packages

    return _matching(incomplete, packages(), "")


def _matching(start: str, names: Iterable[str], before: str) -> list[str]:
    return [before + name for name in sorted(names) if name.startswith(start)]
