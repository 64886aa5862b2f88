"""Lenient access to the raw elements of a pydicom data set, quick enough for thousands of files.

Values are taken from the undecoded bytes: a malformed descriptive element must not cost a study, and reading one value
must not convert (and judge) all others.
"""

from __future__ import annotations

import functools
import math
import struct
from typing import Any

_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FD": "d", "FL": "f", "US or SS": "H", "AT": "HH"}
# the largest number of values unpacked from one element
_MANY = 1_000_000


@functools.cache
def tag_of(keyword: str) -> int:
    """The tag of a DICOM keyword."""
    from pydicom.datadict import tag_for_keyword

    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    return tag


@functools.cache
def vr_of(tag: int) -> str:
    """The VR of a tag in the standard, "UN" where it has none."""
    from pydicom.datadict import dictionary_VR

    try:
        return str(dictionary_VR(tag))
    except KeyError:
        return "UN"


class Elements:
    """One level of a data set. Every method answers with its default where an element is absent or unreadable."""

    def __init__(self, dataset: Any, *, order: str = "") -> None:
        """order: `<` or `>` of an item, which does not know it itself."""
        self.dataset = dataset
        self._table = {int(tag): element for tag, element in dataset.items()} if dataset is not None else {}
        self.order = order or ("<" if dataset is None or dataset.is_little_endian in (True, None) else ">")

    def __contains__(self, keyword: str) -> bool:
        return tag_of(keyword) in self._table

    def __len__(self) -> int:
        return len(self._table)

    def text(self, keyword: str) -> str:
        """One string without padding; empty when absent."""
        value = self.value(tag_of(keyword))
        if isinstance(value, bytes):
            return value.split(b"\0")[0].decode("latin-1").strip()
        return "" if value is None else str(value).strip()

    def words(self, keyword: str) -> list[str]:
        """A multi-valued string."""
        value = self.value(tag_of(keyword))
        if isinstance(value, bytes):
            return [part.strip(" \0") for part in value.decode("latin-1").split("\\")]
        if value is None or isinstance(value, str):
            return [] if value is None else [value]
        return [str(part) for part in value] if hasattr(value, "__iter__") else [str(value)]

    def numbers(self, keyword: str, count: int) -> tuple[float, ...] | None:
        """Exactly `count` finite numbers, else None."""
        try:
            out = tuple(float(part) for part in self._parts(tag_of(keyword)))
        except (TypeError, ValueError, OverflowError):
            return None
        return out if len(out) == count and all(math.isfinite(x) for x in out) else None

    def number(self, keyword: str, default: float | None = None) -> float | None:
        """The first value as a finite number."""
        return self.number_at(tag_of(keyword), default)

    def number_at(self, tag: int, default: float | None = None, *, vr: str | None = None) -> float | None:
        """The first value at a tag as a finite number; `vr` where the file does not say (implicit, private)."""
        try:
            value = float(self._parts(tag, vr)[0])
        except (TypeError, ValueError, IndexError, OverflowError):
            return default
        return value if math.isfinite(value) else default

    def private_number(self, group: int, creator: str, offset: int) -> float | None:
        """The first value of a private element as a finite number."""
        tag = self.private(group, creator, offset)
        if tag is None:
            return None
        from pydicom.datadict import private_dictionary_VR

        try:
            vr = str(private_dictionary_VR(tag, creator))
        except KeyError:
            vr = "UN"
        return self.number_at(tag, vr=vr)

    def integer(self, keyword: str, default: int) -> int:
        """The first value as an integer."""
        value = self.number(keyword)
        return default if value is None else int(value)

    def maybe_integer(self, keyword: str) -> int | None:
        """The first value as an integer, None when absent."""
        value = self.number(keyword)
        return None if value is None else int(value)

    def private(self, group: int, creator: str, offset: int) -> int | None:
        """The tag of a private element in the block that `creator` reserved (PS3.5 7.8.1)."""
        blocks = [tag for tag in self._table if tag >> 16 == group and 0x10 <= tag & 0xFFFF <= 0xFF]
        for tag in blocks:
            value = self.value(tag)
            title = value.decode("latin-1") if isinstance(value, bytes) else str(value)
            wanted = group << 16 | (tag & 0xFF) << 8 | offset
            if title.strip(" \0") == creator and wanted in self._table:
                return wanted
        return None

    def item(self, keyword: str) -> Elements | None:
        """The first item of a sequence."""
        return self.item_at(tag_of(keyword))

    def item_at(self, tag: int) -> Elements | None:
        """The first item of the sequence at a tag."""
        items = self.items_at(tag)
        return Elements(items[0], order=self.order) if items else None

    def items_at(self, tag: int) -> list[Any]:
        """The data sets in the sequence at a tag."""
        if tag not in self._table:
            return []
        try:
            value = self.dataset[tag].value
            return list(value) if not isinstance(value, bytes | str) else []
        except Exception:  # pydicom raises whatever the damaged bytes lead it into
            return []

    def value(self, tag: int) -> Any:
        """The raw bytes, or what pydicom has converted already; None when absent."""
        element = self._table.get(tag)
        return None if element is None else element.value

    def _parts(self, tag: int, known_vr: str | None = None) -> list[Any]:
        value = self.value(tag)
        if value is None:
            return []
        if not isinstance(value, bytes):
            return list(value) if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
        vr = self._table[tag].VR
        if vr in (None, "UN"):
            vr = known_vr or vr_of(tag)
        if vr in _BINARY:
            size = struct.calcsize(self.order + _BINARY[vr])
            count = min(len(value) // size, _MANY)
            return list(struct.unpack(self.order + _BINARY[vr] * count, value[: count * size]))
        return [part.strip(b" \0") for part in value[: 16 * _MANY].split(b"\\")]
