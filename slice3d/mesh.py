"""`Mesh`: a triangle surface in patient millimetres."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import InputError
from slice3d.findings import Finding


@dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle surface.

    vertices: (N, 3) float64, world RAS mm. faces: (M, 3) int64 indices, counter-clockwise seen from outside.
    name: structure name. color: RGB 0…255, None for the structure's own. scalars: name → (N,) value per vertex.
    findings: what was closed, repaired or dropped on the way. metadata: how it was made (settings, measured error).
    """

    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]
    name: str = ""
    color: tuple[int, int, int] | None = None
    scalars: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        vertices = _own(self.vertices, np.float64)
        faces = _own(self.faces, np.int64)
        if faces.size and (faces.min() < 0 or faces.max() >= len(vertices)):
            raise InputError(
                f"faces point at vertices {int(faces.min())} to {int(faces.max())}; expected 0 to {len(vertices) - 1}"
            )
        if not np.isfinite(vertices).all():
            raise InputError("mesh vertices hold NaN or infinity; expected finite millimetres")
        vertices.flags.writeable = False
        faces.flags.writeable = False
        object.__setattr__(self, "vertices", vertices)
        object.__setattr__(self, "faces", faces)
        object.__setattr__(self, "findings", tuple(self.findings))
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))
        scalars = {name: np.array(values) for name, values in self.scalars.items()}
        for name, values in scalars.items():
            values.flags.writeable = False
            if values.shape != (len(vertices),):
                raise InputError(
                    f"scalar {name!r} has shape {values.shape}; expected ({len(vertices)},), one per vertex"
                )
        object.__setattr__(self, "scalars", MappingProxyType(scalars))

    @property
    def volume_mm3(self) -> float:
        """Enclosed volume by the divergence theorem; positive for outward faces of a closed surface."""
        # Relative to the centre: far from the world origin the triple products would cancel badly.
        corner = self.vertices - (self.vertices.mean(axis=0) if len(self.vertices) else 0.0)
        a, b, c = (corner[self.faces[:, n]] for n in range(3))
        return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6.0)

    @property
    def volume_ml(self) -> float:
        """Enclosed volume in millilitres."""
        return self.volume_mm3 / 1000.0

    @property
    def area_mm2(self) -> float:
        """Surface area."""
        a, b, c = (self.vertices[self.faces[:, n]] for n in range(3))
        return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2.0)

    @property
    def bounds_mm(self) -> NDArray[np.float64]:
        """(2, 3): smallest and largest world RAS coordinate."""
        if not len(self.vertices):
            raise InputError("the mesh is empty and has no bounds")
        return np.stack([self.vertices.min(axis=0), self.vertices.max(axis=0)])

    def with_findings(self, findings: Iterable[Finding]) -> Mesh:
        """The same mesh with more findings."""
        return replace(self, findings=(*self.findings, *findings))

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_mesh, (
            self.vertices, self.faces, self.name, self.color, dict(self.scalars), self.findings, dict(self.metadata),
        )  # fmt: skip

    def __repr__(self) -> str:
        name = f"{self.name}: " if self.name else ""
        return f"Mesh({name}{len(self.vertices)} vertices, {len(self.faces)} faces, {self.volume_ml:.1f} ml)"

    def _repr_html_(self) -> str:
        return str(_notebook().html_of(self))

    def show(self) -> Any:
        """An interactive widget for a notebook. Needs the extra `viewer`."""
        return _notebook().widget_of(self)


def _own(rows: Any, kind: type) -> NDArray[Any]:
    """Rows of three as an array that nobody else can write to: the given one where that is so already, else a copy."""
    array: NDArray[Any] = np.asarray(rows, dtype=kind)
    if array.flags.writeable or not array.flags.owndata or array.ndim != 2:
        array = np.array(array)
    return array.reshape(-1, 3) if array.shape[1:] != (3,) else array


def _make_mesh(*args: Any) -> Mesh:
    return Mesh(*args)


def _notebook() -> Any:
    # Values know nothing of pictures; a notebook that asks for one gets the viewer, looked up by name at that moment.
    return importlib.import_module("slice3d.viewer.notebook")
