"""Public models that `slice3d models add NAME` can fetch: address, hash where published, licence, structures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownModel:
    """A published model. sha256 is "" where the publisher gives none; `labels` name outputs its files do not name."""

    name: str
    url: str
    licence: str
    summary: str
    modality: tuple[str, ...] = ("CT",)
    sha256: str = ""
    orientation: str = ""
    source: str = ""


KNOWN: dict[str, KnownModel] = {}
