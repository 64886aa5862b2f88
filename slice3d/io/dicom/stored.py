"""Files → stored pixels: native bytes read straight into place, compressed frames cut out and decoded."""

from __future__ import annotations

import io
import struct
import threading
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import InputError
from slice3d.io.dicom.codecs import Data, decode_frame
from slice3d.io.dicom.header import Header, stored_dtype
from slice3d.io.dicom.separate import Plane
from slice3d.io.files import Opener

IMPLICIT = "1.2.840.10008.1.2"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
# GE's private syntax: little-endian header, big-endian pixels
GE_PRIVATE = "1.2.840.113619.5.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
NATIVE = frozenset({IMPLICIT, "1.2.840.10008.1.2.1", BIG_ENDIAN, GE_PRIVATE})

# what a compressed file may promise unseen: this much, or this many times its own size
MAX_UNCHECKED_BYTES = 256 * 2**20
MAX_COMPRESSION = 1000
_UNDEFINED = 0xFFFFFFFF
_KEPT_MEMBERS = 4


def check_size(planes: Sequence[Plane]) -> None:
    """Refuse headers that promise more pixels than the files can hold, before any memory is taken."""
    for plane in {id(p.header): p for p in planes}.values():
        header = plane.header
        if header.transfer_syntax in NATIVE:
            need = header.rows * header.columns * stored_dtype(header).itemsize * header.number_of_frames
            have = header.file_size - header.pixel_offset
            if have < need:
                raise InputError(
                    f"{header.file.name} is truncated: {have} bytes where its header promises {need} bytes of "
                    "pixels; copy it again"
                )
        elif planes_bytes(header) > max(MAX_UNCHECKED_BYTES, MAX_COMPRESSION * header.file_size):
            raise InputError(
                f"{header.file.name} promises {planes_bytes(header) / 2**30:.1f} GiB of pixels in a file of "
                f"{header.file_size / 2**20:.1f} MiB; expected a compression of at most {MAX_COMPRESSION}"
            )


def planes_bytes(header: Header) -> int:
    """Bytes of all frames of a file when they are decoded."""
    return int(header.rows * header.columns * stored_dtype(header).itemsize * header.number_of_frames)


class Frames:
    """Undecoded frames by (file, index); a multi-frame file is cut into frames once."""

    def __init__(self, opener: Opener) -> None:
        self._opener = opener
        self._places: dict[int, list[tuple[int, int]]] = {}
        self._cut: dict[int, list[bytes]] = {}
        self._unpacked: dict[int, bytes] = {}
        self._members: dict[int, bytes] = {}
        self._lock = threading.Lock()

    def open(self, header: Header) -> BinaryIO:
        """The file of a header. A member of a .zip with many frames stays unpacked, else each would unpack all."""
        if not header.file.member or header.number_of_frames == 1:
            return self._opener.open(header.file)
        with self._lock:
            if id(header) not in self._members:
                if len(self._members) >= _KEPT_MEMBERS:
                    del self._members[next(iter(self._members))]
                with self._opener.open(header.file) as stream:
                    self._members[id(header)] = stream.read()
            return io.BytesIO(self._members[id(header)])

    def encapsulated(self, plane: Plane) -> Data:
        """The compressed bytes of one frame."""
        header = plane.header
        if header.number_of_frames == 1:
            return _joined(_fragments(self._load(header), header.file.name))
        with self._lock:
            if id(header) not in self._places:
                self._places[id(header)] = self._find(header)
        places = self._places[id(header)]
        if len(places) == header.number_of_frames:
            start, length = places[plane.frame.index]
            with self.open(header) as stream:
                stream.seek(start)
                return stream.read(length)
        with self._lock:
            if id(header) not in self._cut:
                self._cut[id(header)] = self._frames(header)
        frames = self._cut[id(header)]
        if plane.frame.index >= len(frames):
            raise InputError(
                f"{header.file.name} is truncated: frame {plane.frame.index + 1} of {header.number_of_frames} is "
                "missing; copy it again"
            )
        return frames[plane.frame.index]

    def _find(self, header: Header) -> list[tuple[int, int]]:
        """Where the fragments of a file lie and how long they are; not one per frame when frames are in pieces."""
        places: list[tuple[int, int]] = []
        with self._opener.open(header.file) as stream:
            stream.seek(header.pixel_offset + 4)
            position = header.pixel_offset + (12 if stream.read(2).isalpha() else 8)
            while len(places) <= header.number_of_frames + 1:
                stream.seek(position)
                item = stream.read(8)
                if len(item) < 8 or item[:4] != b"\xfe\xff\x00\xe0":
                    break
                (length,) = struct.unpack_from("<I", item, 4)
                places.append((position + 8, length))
                position += 8 + length
        # the first item is the table of offsets
        return [] if position > header.file_size else places[1:]

    def deflated(self, header: Header) -> bytes:
        """The pixels of a deflated file, which can only be unpacked whole; kept while it has more frames."""
        if header.number_of_frames == 1:
            return self._inflate(header)
        with self._lock:
            if id(header) not in self._unpacked:
                self._unpacked = {id(header): self._inflate(header)}
            return self._unpacked[id(header)]

    def _inflate(self, header: Header) -> bytes:
        import pydicom

        with self._opener.open(header.file) as stream:
            return bytes(pydicom.dcmread(stream).get("PixelData", b""))

    def _load(self, header: Header) -> memoryview:
        with self._opener.open(header.file) as stream:
            stream.seek(header.pixel_offset)
            data = stream.read()
        return memoryview(data)[12 if data[4:6].isalpha() else 8 :]

    def _frames(self, header: Header) -> list[bytes]:
        from pydicom.encaps import generate_frames

        try:
            return list(generate_frames(bytes(self._load(header)), number_of_frames=header.number_of_frames))
        except Exception as error:  # the fragments' lengths may say anything
            raise InputError(f"{header.file.name} is truncated inside its compressed pixels; copy it again") from error


def _fragments(body: memoryview, name: str) -> list[memoryview]:
    """The items of encapsulated pixels (PS3.5 A.4) without the offset table, which comes first."""
    items: list[memoryview] = []
    position = 0
    while position + 8 <= len(body):
        group, element, length = struct.unpack_from("<HHI", body, position)
        if (group, element) == (0xFFFE, 0xE0DD):
            break
        position += 8 + length
        if (group, element) != (0xFFFE, 0xE000) or position > len(body):
            raise InputError(f"{name} is truncated inside its compressed pixels; copy it again")
        items.append(body[position - length : position])
    return items[1:] if len(items) > 1 else items


def _joined(fragments: list[memoryview]) -> Data:
    return fragments[0] if len(fragments) == 1 else b"".join(fragments)


def read_stored(plane: Plane, frames: Frames, target: NDArray[Any] | None) -> NDArray[Any]:
    """Stored values (rows, columns) of one plane, in `target` when it can be filled directly."""
    header = plane.header
    if header.transfer_syntax in NATIVE:
        return _read_native(plane, frames, target)
    if header.transfer_syntax == DEFLATED:
        return _read_deflated(plane, frames)
    return decode_frame(frames.encapsulated(plane), header, out=target)


def _read_native(plane: Plane, frames: Frames, target: NDArray[Any] | None) -> NDArray[Any]:
    header = plane.header
    dtype = stored_dtype(header)
    count = header.rows * header.columns
    big = header.transfer_syntax == BIG_ENDIAN
    begin, size = plane.frame.index * count * dtype.itemsize, count * dtype.itemsize
    with frames.open(header) as stream:
        stream.seek(header.pixel_offset)
        start = stream.read(12)
        explicit = start[4:6] in (b"OW", b"OB", b"UN", b"OF", b"OD")
        (length,) = struct.unpack_from(">I" if big else "<I", start, 8 if explicit else 4)
        if length == _UNDEFINED:
            raise InputError(
                f"{header.file.name} holds wrapped pixels where its transfer syntax says plain ones; expected either; "
                "export it again"
            )
        # what follows the element are no pixels, even when there is enough of it
        if length < begin + size:
            raise InputError(
                f"{header.file.name} is truncated: {length} bytes of pixels, expected at least {begin + size}; copy it "
                "again"
            )
        place = header.pixel_offset + (12 if explicit else 8)
        out: Any = target if target is not None else np.empty((header.rows, header.columns), dtype=dtype)
        if big and dtype.itemsize == 1 and start[4:6] == b"OW":
            got = _read_swapped(stream, place, begin, out)
        else:
            stream.seek(place + begin)
            reader: Any = stream
            got = reader.readinto(memoryview(out).cast("B"))
    if got != size:
        raise InputError(f"{header.file.name} is truncated: {got} of {size} bytes of pixels; copy it again")
    if big or header.transfer_syntax == GE_PRIVATE:
        out.byteswap(inplace=True)
    filled: NDArray[Any] = out
    return filled


def _read_swapped(stream: BinaryIO, place: int, begin: int, out: NDArray[Any]) -> int:
    """Fill `out` with bytes that lie in 16-bit words, the second of each pair first (PS3.5 D.1)."""
    skip = begin % 2
    stream.seek(place + begin - skip)
    words = np.frombuffer(stream.read((out.size + skip + 1) // 2 * 2), np.uint8)
    values = words[: len(words) // 2 * 2].reshape(-1, 2)[:, ::-1].ravel()[skip : skip + out.size]
    out.reshape(-1)[: len(values)] = values.view(out.dtype)
    return len(values)


def _read_deflated(plane: Plane, frames: Frames) -> NDArray[Any]:
    header = plane.header
    data = frames.deflated(header)
    dtype = stored_dtype(header).newbyteorder("<")
    count = header.rows * header.columns
    start = plane.frame.index * count * dtype.itemsize
    if len(data) < start + count * dtype.itemsize:
        raise InputError(f"{header.file.name} is truncated: its pixels are incomplete; copy it again")
    return np.frombuffer(data, dtype, count, start).reshape(header.rows, header.columns).astype(stored_dtype(header))
