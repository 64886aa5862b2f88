"""The elements of an ordinary DICOM file before its pixels, at a fraction of what a full parser takes.

Only little-endian files with a preamble, which is what nearly all are (PS3.5 7.1, PS3.10 7.1). Whatever is unusual or
damaged is left to pydicom, so there is one judge of what is wrong with a file.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import ItemsView
from typing import Any, BinaryIO, NamedTuple

from slice3d.errors import InputError
from slice3d.io.dicom.elements import vr_of
from slice3d.io.files import MAX_EXPANSION

_LONG = frozenset(b"OB OW OF OD OL OV SQ UC UR UT UN SV UV".split())
_SHORT = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_PER_FRAME = 0x52009230
_IMPLICIT = b"1.2.840.10008.1.2"
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_NOT_LITTLE = frozenset({b"1.2.840.10008.1.2.2", _DEFLATED})
_UNDEFINED = 0xFFFFFFFF
_MOST_BYTES = 4 * 2**20
_BLOCK = 32 * 1024
_MOST_INFLATED = 256 * 2**20


class Raw(NamedTuple):
    """An element as it stands in the file, which may not say its VR."""

    value: bytes
    VR: str | None


class QuickDataset:
    """What `Elements` asks a pydicom data set for. meta: the elements of group 2."""

    is_little_endian = True

    def __init__(self, table: dict[int, Raw], meta: QuickDataset | None = None, *, implicit: bool = False) -> None:
        self._table, self.file_meta = table, meta
        self.is_implicit_VR = implicit

    def items(self) -> ItemsView[int, Raw]:
        """Tags with their elements."""
        return self._table.items()

    def __getitem__(self, tag: int) -> Any:
        """The element; the items of a sequence by pydicom."""
        raw = self._table[tag]
        if (raw.VR or vr_of(tag)) != "SQ":
            return raw
        from pydicom.filebase import DicomBytesIO
        from pydicom.filereader import read_sequence

        stream = DicomBytesIO(raw.value)
        stream.is_little_endian, stream.is_implicit_VR = True, self.is_implicit_VR
        return Raw(read_sequence(stream, self.is_implicit_VR, True, len(raw.value), "iso8859"), "SQ")  # type: ignore[arg-type]


class _UnusualError(Exception):
    pass


class _Reader:
    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.data = b""
        self.implicit = False

    def reach(self, end: int) -> None:
        """Have the bytes up to `end`. Raises `_UnusualError` where the file does not."""
        while end > len(self.data):
            if end > _MOST_BYTES:
                raise _UnusualError
            block = self._stream.read(max(_BLOCK, end - len(self.data)))
            if not block:
                raise _UnusualError
            self.data += block

    def at_end(self, position: int) -> bool:
        """Whether the file ends exactly here."""
        if position < len(self.data):
            return False
        self.data += self._stream.read(_BLOCK)
        return position == len(self.data)

    def element(self, position: int) -> tuple[int, str | None, int, int]:
        """Tag, VR, where the value starts, its length."""
        self.reach(position + 8)
        if self.implicit:
            group, element, length = struct.unpack_from("<HHI", self.data, position)
            return group << 16 | element, None, position + 8, length
        group, element, vr, length = struct.unpack_from("<HH2sH", self.data, position)
        if vr in _SHORT:
            return group << 16 | element, vr.decode(), position + 8, length
        if vr not in _LONG:
            raise _UnusualError
        self.reach(position + 12)
        (length,) = struct.unpack_from("<I", self.data, position + 8)
        return group << 16 | element, vr.decode(), position + 12, length

    def sequence_end(self, position: int, depth: int = 0) -> int:
        """Where the delimiter of a sequence of undefined length starts; its items start at `position`."""
        if depth > 8:
            raise _UnusualError
        while True:
            self.reach(position + 8)
            group, element, length = struct.unpack_from("<HHI", self.data, position)
            if (group, element) == (0xFFFE, 0xE0DD):
                return position
            if (group, element) != (0xFFFE, 0xE000):
                raise _UnusualError
            position += 8
            if length != _UNDEFINED:
                position += length
                continue
            while True:
                self.reach(position + 8)
                if self.data[position : position + 4] == b"\xfe\xff\x0d\xe0":
                    position += 8
                    break
                _, vr, start, length = self.element(position)
                if length != _UNDEFINED:
                    position = start + length
                elif vr in ("SQ", None):
                    position = self.sequence_end(start, depth + 1) + 8
                else:
                    raise _UnusualError


def read_quick(stream: BinaryIO) -> tuple[QuickDataset, int] | None:
    """The elements and where the pixels start (or the file ends). None for pydicom to judge."""
    reader = _Reader(stream)
    try:
        reader.reach(132)
        if reader.data[128:132] != b"DICM":
            return None
        return _read(reader)
    except (_UnusualError, struct.error):
        return None


def check_deflated(stream: BinaryIO, size: int, name: str) -> None:
    """Refuse a deflated file (PS3.5 A.5) that would unpack to more than a study holds, before pydicom unpacks it all.

    size: of the file. Raises `InputError`.
    """
    reader = _Reader(stream)
    try:
        start, syntax = _meta_end(reader)
    except (_UnusualError, struct.error):
        if _DEFLATED in reader.data:
            raise InputError(f"{name} is deflated behind a damaged preamble; export it again") from None
        return
    if syntax != _DEFLATED:
        return
    stream.seek(start)
    most, found = max(_MOST_INFLATED, MAX_EXPANSION * size), 0
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    data = stream.read(_BLOCK)
    while data and not inflate.eof:
        found += len(inflate.decompress(data, 2**20))
        if found > most:
            raise InputError(
                f"{name} unpacks to more than {most / 2**20:.0f} MiB from {size / 2**20:.1f} MiB; expected a study; "
                "export it without deflating"
            )
        data = inflate.unconsumed_tail or stream.read(_BLOCK)


def _meta_end(reader: _Reader) -> tuple[int, bytes]:
    """Where group 2 ends, and the transfer syntax in it."""
    reader.reach(132)
    position, syntax = 132 if reader.data[128:132] == b"DICM" else 0, b""
    while not reader.at_end(position):
        reader.reach(position + 2)
        if reader.data[position : position + 2] != b"\x02\x00":
            break
        tag, _, start, length = reader.element(position)
        position = start + length
        reader.reach(position)
        if tag == 0x00020010:
            syntax = reader.data[start:position].strip(b"\0 ")
    return position, syntax


def _read(reader: _Reader) -> tuple[QuickDataset, int]:
    meta: dict[int, Raw] = {}
    table: dict[int, Raw] = {}
    position, last = 132, 0
    while not reader.at_end(position):
        if last >> 16 == 2 and reader.data[position : position + 2] != b"\x02\x00":
            syntax = meta.get(0x00020010, Raw(b"", "")).value.strip(b"\0 ")
            if syntax in _NOT_LITTLE:
                raise _UnusualError
            reader.implicit = syntax == _IMPLICIT
            reader.reach(position + 6)
            # some writers name one syntax and use the other
            if reader.implicit and reader.data[position + 4 : position + 6].isupper():
                raise _UnusualError
        tag, vr, start, length = reader.element(position)
        if tag in _PIXELS:
            break
        # elements out of order, or frames each with their own geometry
        if tag <= last or tag == _PER_FRAME or tag >> 16 > 0x7FE0:
            raise _UnusualError
        # a sequence that passed through an archive which did not know it is implicit within (PS3.5 6.2.2)
        if vr == "UN" and vr_of(tag) == "SQ":
            raise _UnusualError
        last = tag
        if length == _UNDEFINED:
            if vr not in ("SQ", None):
                raise _UnusualError
            end = reader.sequence_end(start)
            position = end + 8
        else:
            position = end = start + length
        reader.reach(position)
        (meta if tag >> 16 == 2 else table)[tag] = Raw(reader.data[start:end], vr)
    if 0x00020010 not in meta or not table:
        raise _UnusualError
    return QuickDataset(table, QuickDataset(meta), implicit=reader.implicit), position
