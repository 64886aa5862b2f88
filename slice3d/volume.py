"""`Volume` and `Segmentation`: an array, the `Grid` it lies on, and what is known about it. Immutable values."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import GeometryError, InputError
from slice3d.findings import Finding
from slice3d.grid import Grid, describe


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    """The array itself when nobody can write to it, else a read-only copy of it; in this machine's byte order."""
    array = np.asarray(array)
    if not array.dtype.isnative:  # compiled code would read its bytes the wrong way round
        array = array.astype(array.dtype.newbyteorder("="))
    owner = array.base if array.base is not None else array
    if not array.flags.writeable and not getattr(getattr(owner, "flags", None), "writeable", False):
        return array
    array = array.copy(order="K")
    array.flags.writeable = False
    return array


def _check_shape(what: str, array: NDArray[Any], grid: Grid) -> None:
    if array.shape != grid.shape:
        raise GeometryError(f"{what} has shape {array.shape}, its grid {grid.shape}; expected the same")


@dataclass(frozen=True, eq=False)
class Volume:
    """A scalar image in patient space.

    data: (i, j, k) numeric array, read-only; CT in HU. grid: where it lies.
    modality: DICOM Modality (`"CT"`, `"MR"`, `"PT"`) or `""` when the file does not say.
    metadata: acquisition facts without identifiers, by DICOM keyword (`SliceThickness`, `ConvolutionKernel`, …).
    findings: what was repaired or is odd. source: what `io` needs to write results back on the acquired slices.
    synthesised: (i, j, k) bool, voxels that were estimated rather than measured; None when all were measured.
    uncertainty: (i, j, k) float, standard deviation of the estimate in units of `data`; None when unknown.

    The array is copied unless nobody can write to it any more (`freeze` hands one over without a copy).
    """

    data: NDArray[Any]
    grid: Grid
    modality: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    source: Any = None
    synthesised: NDArray[np.bool_] | None = None
    uncertainty: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        data = _frozen(self.data)
        if data.dtype.kind not in "iufb":
            raise InputError(f"volume data has dtype {data.dtype}; expected numbers")
        _check_shape("volume data", data, self.grid)
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))
        object.__setattr__(self, "findings", tuple(self.findings))
        _freeze_marks(self)

    def with_findings(self, findings: Iterable[Finding]) -> Volume:
        """The same volume with more findings."""
        return replace(self, findings=(*self.findings, *findings))

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_volume, (
            self.data, self.grid, self.modality, dict(self.metadata), self.findings,
            self.source, self.synthesised, self.uncertainty,
        )  # fmt: skip

    def __repr__(self) -> str:
        parts = [describe(self.grid), str(self.data.dtype)]
        if self.modality:
            parts.append(self.modality)
        return f"Volume({', '.join(parts)})"

    def _repr_html_(self) -> str:
        return str(_notebook().html_of(self))

    def show(self) -> Any:
        """An interactive widget for a notebook. Needs the extra `viewer`."""
        return _notebook().widget_of(self)


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Labelled structures in patient space.

    labels: (i, j, k) integer array, 0 is background, read-only. names: label value → structure name.
    groups: structure name → label values whose union it is, for structures that overlap others (`"lungs"`, a liver that
    holds its tumour, the body that holds everything); a name in `groups` wins over the same name in `names`.
    probabilities: structure name → (i, j, k) float array in 0…1, where the method gave one.
    findings: what a reader of the result must know. metadata: how it was made (model, settings).
    synthesised, uncertainty: of the image that was segmented, as in `Volume`: where it was estimated, and how surely.
    """

    labels: NDArray[Any]
    grid: Grid
    names: Mapping[int, str]
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    probabilities: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    synthesised: NDArray[np.bool_] | None = None
    uncertainty: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        labels = _frozen(self.labels)
        if labels.dtype.kind == "b":
            labels = _frozen(labels.astype(np.uint8))
        if labels.dtype.kind not in "iu":
            raise InputError(f"labels have dtype {labels.dtype}; expected integers; round or threshold them first")
        _check_shape("labels", labels, self.grid)
        names = {int(value): str(name) for value, name in self.names.items()}
        if 0 in names:
            raise InputError(f"label 0 is named {names[0]!r}; 0 is background and carries no name")
        if len(set(names.values())) != len(names):
            raise InputError("two labels carry the same name; give each its own and join them in `groups`")
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "names", MappingProxyType(names))
        groups = {str(name): tuple(int(v) for v in values) for name, values in self.groups.items()}
        object.__setattr__(self, "groups", MappingProxyType(groups))
        object.__setattr__(self, "findings", tuple(self.findings))
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))
        probabilities = {}
        for name, array in self.probabilities.items():
            _check_shape(f"probability of {name}", array, self.grid)
            probabilities[name] = _frozen(array)
        object.__setattr__(self, "probabilities", MappingProxyType(probabilities))
        _freeze_marks(self)

    @property
    def structures(self) -> tuple[str, ...]:
        """Every name that `mask` understands: labels in order of value, then groups."""
        return tuple(dict.fromkeys([*(self.names[v] for v in sorted(self.names)), *self.groups]))

    def values(self, structure: str) -> tuple[int, ...]:
        """The label values whose union is `structure`. Raises `InputError` listing the names there are."""
        if structure in self.groups:
            return self.groups[structure]
        found = tuple(value for value, name in self.names.items() if name == structure)
        if not found:
            known = ", ".join(self.structures) or "none"
            raise InputError(f"no structure {structure!r} in this segmentation; it holds: {known}")
        return found

    def mask(self, structure: str) -> NDArray[np.bool_]:
        """(i, j, k) bool array of one structure."""
        values = self.values(structure)
        out: NDArray[np.bool_] = self.labels == values[0] if len(values) == 1 else np.isin(self.labels, values)
        return out

    def volume_ml(self, structure: str) -> float:
        """Volume of the voxels of one structure in millilitres."""
        return float(np.count_nonzero(self.mask(structure)) * self.grid.voxel_volume_mm3 / 1000.0)

    def with_findings(self, findings: Iterable[Finding]) -> Segmentation:
        """The same segmentation with more findings."""
        return replace(self, findings=(*self.findings, *findings))

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_segmentation, (
            self.labels, self.grid, dict(self.names), dict(self.groups),
            dict(self.probabilities), self.findings, dict(self.metadata), self.synthesised, self.uncertainty,
        )  # fmt: skip

    def __repr__(self) -> str:
        names = ", ".join(self.names[v] for v in sorted(self.names)[:4])
        more = f", … {len(self.names)} in all" if len(self.names) > 4 else ""
        return f"Segmentation({describe(self.grid)}: {names}{more})"

    def _repr_html_(self) -> str:
        return str(_notebook().html_of(self))

    def show(self, *, over: Volume | None = None) -> Any:
        """An interactive widget for a notebook, over an image when one is given. Needs the extra `viewer`."""
        return _notebook().widget_of(self, over=over)


def freeze(array: NDArray[Any]) -> NDArray[Any]:
    """Hand an array over: it becomes read-only, and `Volume` and `Segmentation` take it without a copy."""
    if array.base is not None and isinstance(array.base, np.ndarray):
        freeze(array.base)
    array.flags.writeable = False
    return array


def _freeze_marks(value: Volume | Segmentation) -> None:
    for name in ("synthesised", "uncertainty"):
        array = getattr(value, name)
        if array is not None:
            array = _frozen(array)
            _check_shape(name, array, value.grid)
            object.__setattr__(value, name, array)


def _make_volume(*args: Any) -> Volume:
    return Volume(*args)


def _make_segmentation(*args: Any) -> Segmentation:
    return Segmentation(*args)


def _notebook() -> Any:
    # Values know nothing of pictures; a notebook that asks for one gets the viewer, looked up by name at that moment.
    return importlib.import_module("slice3d.viewer.notebook")
