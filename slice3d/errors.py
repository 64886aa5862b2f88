"""Errors that a user can act on: each message says what was found, what was expected and what to do."""

from __future__ import annotations


class Slice3DError(Exception):
    """Base of every error that slice3d raises on purpose; `exit_code` is what the command line returns."""

    exit_code: int = 2


class InputError(Slice3DError):
    """The input cannot be used: missing, damaged, the wrong kind, or not what the operation needs."""


class GeometryError(InputError):
    """Positions, orientations or spacings do not describe a volume in space, or two grids do not match."""


class ModelError(Slice3DError):
    """No model for what was asked, or a model package that is damaged or not trusted."""

    exit_code = 3


class MissingExtraError(Slice3DError):
    """An optional package or system library that this operation needs is not installed."""

    exit_code = 3


class QualityError(Slice3DError):
    """A result exists but failed a quality gate that the user asked for (for example `--print-ready`)."""

    exit_code = 4
