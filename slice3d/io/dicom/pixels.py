"""Stored pixels → physical values, decoded by several threads straight into the final array.

The stored value becomes HU or whatever the modality means by it: mask to the stored bits (PS3.5 8.1.1), modality lookup
table or rescale (PS3.3 C.11.1), padding (C.7.5.1.1.2), display inversion (C.7.6.3.1.2).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import InputError
from slice3d.findings import Finding
from slice3d.io.dicom.codecs import decode_frame
from slice3d.io.dicom.header import Header, stored_dtype
from slice3d.io.dicom.stacks import Plane
from slice3d.io.files import Opener, quiet
from slice3d.progress import Progress, silent

IMPLICIT = "1.2.840.10008.1.2"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
# GE's private syntax: little-endian header, big-endian pixels
GE_PRIVATE = "1.2.840.113619.5.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
NATIVE = frozenset({IMPLICIT, "1.2.840.10008.1.2.1", BIG_ENDIAN, GE_PRIVATE})

CT_AIR = -1024


@dataclass(frozen=True)
class Scale:
    """value = stored × slope + intercept."""

    slope: float
    intercept: float

    @property
    def exact(self) -> bool:
        """Whether 16-bit integers stay integers of at most 32 bits."""
        whole = float(self.slope).is_integer() and float(self.intercept).is_integer()
        return whole and abs(self.slope) * 65536 + abs(self.intercept) < 2**31


@dataclass
class Decoded:
    """values: (K, rows, columns)."""

    values: NDArray[Any]
    findings: list[Finding] = field(default_factory=list)


# what a compressed file may promise unseen: this much, or this many times its own size
MAX_UNCHECKED_BYTES = 256 * 2**20
MAX_COMPRESSION = 1000


def decode(planes: Sequence[Plane], *, progress: Progress = silent) -> Decoded:
    """Physical values of the planes, (K, rows, columns): int16 where exact, else int32 or float32.

    Raises `InputError` when pixels are missing, truncated or cannot be decoded.
    """
    first = planes[0].header
    dtypes = {stored_dtype(p.header) for p in planes}
    scales = [scale_of(p) for p in planes]
    luts = any(p.header.lut is not None for p in planes)
    inverted = first.photometric == "MONOCHROME1" and first.modality not in ("CT", "PT", "NM")
    whole = all(s.exact for s in scales) and not luts and all(d.kind in "iu" and d.itemsize <= 2 for d in dtypes)
    work = next(iter(dtypes)) if whole and len(dtypes) == 1 else np.dtype(np.int32 if whole else np.float32)
    if whole and work.itemsize == 1:
        work = np.dtype(np.int16)
    shape = (len(planes), first.rows, first.columns)
    _check_size(planes, shape)
    base = np.empty(shape, dtype=work)
    low, high = np.zeros(len(planes)), np.zeros(len(planes))
    padded = np.zeros(len(planes), dtype=np.int64)
    with Opener() as opener, quiet():
        frames = _Frames(opener)

        def one(k: int) -> None:
            plane = planes[k]
            stored = _read(plane, frames, base[k] if work == stored_dtype(plane.header) else None)
            stored = _mask_bits(stored, plane.header)
            if whole:
                if stored is not base[k]:
                    base[k] = stored
                low[k], high[k] = base[k].min(), base[k].max()
            else:
                padded[k] = _physical(stored, plane, scales[k], inverted, base[k])

        _parallel(one, len(planes), progress)
    findings: list[Finding] = []
    if whole:
        base, padded = _finish_whole(base, planes, scales, inverted, low, high)
    elif not np.isfinite(base).all():
        base[~np.isfinite(base)] = (
            np.nanmin(np.where(np.isfinite(base), base, np.nan)) if np.isfinite(base).any() else 0
        )
        findings.append(
            Finding("not-finite", "Some voxels held NaN or infinity; they were set to the lowest value.", "warning")
        )
    if first.modality == "MR" and planes[0].frame.philips is not None:
        findings.append(_philips_finding(planes[0]))
    if inverted:
        findings.append(
            Finding("inverted", "The pixels were stored for display with white as lowest; they were inverted.", "info")
        )
    if padded.sum():
        findings.append(
            Finding(
                "padding-replaced",
                f"{int(padded.sum())} padding voxels outside the scanner's field of view were set to {CT_AIR} HU.",
                "info",
                {"voxels": int(padded.sum())},
            )
        )
    return Decoded(base, findings)


def scale_of(plane: Plane) -> Scale:
    """Rescale of one plane. Philips MR: the private scale takes the place of the display scale, (stored + RI/RS) /
    SS.
    """
    frame = plane.frame
    if frame.philips is not None and plane.header.modality == "MR":
        return Scale(1.0 / frame.philips, frame.intercept / (frame.slope * frame.philips))
    return Scale(frame.slope, frame.intercept)


def _philips_finding(plane: Plane) -> Finding:
    frame = plane.frame
    factor = 1.0 / (frame.slope * (frame.philips or 1.0))
    return Finding(
        "philips-scaling",
        "Values are on Philips' private scale, which is comparable between series; scanners and most viewers "
        "display them "
        f"{factor:.4g} times smaller.",
        "info",
        {"per_displayed_value": factor},
    )


def _parallel(work: Callable[[int], None], count: int, progress: Progress) -> None:
    workers = min(count, max(2, os.cpu_count() or 1), 16)
    done = 0
    with ThreadPoolExecutor(workers) as pool:
        try:
            for _ in pool.map(work, range(count)):
                done += 1
                if done % 8 == 0 or done == count:
                    progress("reading pixels", done / count)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _check_size(planes: Sequence[Plane], shape: tuple[int, int, int]) -> None:
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


class _Frames:
    """Undecoded frames by (file, index); a multi-frame file is cut into frames once."""

    def __init__(self, opener: Opener) -> None:
        import threading

        self._opener = opener
        self._cut: dict[int, list[bytes]] = {}
        self._lock = threading.Lock()

    def open(self, header: Header) -> BinaryIO:
        return self._opener.open(header.file)

    def encapsulated(self, plane: Plane) -> bytes:
        header = plane.header
        if header.number_of_frames == 1:
            return b"".join(self._load(header))
        with self._lock:
            if id(header) not in self._cut:
                self._cut[id(header)] = self._load(header)
        frames = self._cut[id(header)]
        if plane.frame.index >= len(frames):
            raise InputError(
                f"{header.file.name} is truncated: frame {plane.frame.index + 1} of {header.number_of_frames} is "
                "missing; copy it again"
            )
        return frames[plane.frame.index]

    def _load(self, header: Header) -> list[bytes]:
        from pydicom.encaps import generate_fragments, generate_frames

        with self.open(header) as stream:
            stream.seek(header.pixel_offset)
            data = stream.read()
        skip = 12 if data[4:6].isalpha() else 8
        body = data[skip:]
        try:
            if header.number_of_frames == 1:
                fragments = list(generate_fragments(body))
                return fragments[1:] if len(fragments) > 1 else fragments
            return list(generate_frames(body, number_of_frames=header.number_of_frames))
        except Exception as error:  # the fragments' lengths may say anything
            raise InputError(f"{header.file.name} is truncated inside its compressed pixels; copy it again") from error


def _read(plane: Plane, frames: _Frames, target: NDArray[Any] | None) -> NDArray[Any]:
    """Stored values (rows, columns) of one plane, in `target` when it can be filled directly."""
    header = plane.header
    if header.transfer_syntax in NATIVE:
        return _read_native(plane, frames, target)
    if header.transfer_syntax == DEFLATED:
        return _read_deflated(plane, frames)
    return decode_frame(frames.encapsulated(plane), header)


def _read_native(plane: Plane, frames: _Frames, target: NDArray[Any] | None) -> NDArray[Any]:
    header = plane.header
    dtype = stored_dtype(header)
    count = header.rows * header.columns
    with frames.open(header) as stream:
        stream.seek(header.pixel_offset)
        start = stream.read(12)
        explicit = start[4:6] in (b"OW", b"OB", b"UN", b"OF", b"OD")
        stream.seek(header.pixel_offset + (12 if explicit else 8) + plane.frame.index * count * dtype.itemsize)
        out: Any = target if target is not None else np.empty((header.rows, header.columns), dtype=dtype)
        reader: Any = stream
        got = reader.readinto(memoryview(out).cast("B"))
    if got != count * dtype.itemsize:
        raise InputError(
            f"{header.file.name} is truncated: {got} of {count * dtype.itemsize} bytes of pixels; copy it again"
        )
    if header.transfer_syntax in (BIG_ENDIAN, GE_PRIVATE):
        out.byteswap(inplace=True)
    filled: NDArray[Any] = out
    return filled


def _read_deflated(plane: Plane, frames: _Frames) -> NDArray[Any]:
    import pydicom

    header = plane.header
    with frames.open(header) as stream:
        data = pydicom.dcmread(stream).get("PixelData", b"")
    dtype = stored_dtype(header).newbyteorder("<")
    count = header.rows * header.columns
    start = plane.frame.index * count * dtype.itemsize
    if len(data) < start + count * dtype.itemsize:
        raise InputError(f"{header.file.name} is truncated: its pixels are incomplete; copy it again")
    return np.frombuffer(data, dtype, count, start).reshape(header.rows, header.columns).astype(stored_dtype(header))


def _mask_bits(stored: NDArray[Any], header: Header) -> NDArray[Any]:
    """Drop what old files keep above the stored bits (overlays), and extend the sign."""
    if stored.dtype.kind not in "iu" or not 0 < header.bits_stored < header.bits_allocated:
        return stored
    high = (
        header.high_bit if header.bits_stored - 1 <= header.high_bit < header.bits_allocated else header.bits_stored - 1
    )
    unused = header.bits_allocated - 1 - high
    if stored.dtype.itemsize * 8 != header.bits_allocated:
        return stored
    if header.signed:
        # up to the top, then back down arithmetically: extends the sign and drops what was above and below
        np.left_shift(stored, unused, out=stored)
        np.right_shift(stored, header.bits_allocated - header.bits_stored, out=stored)
        return stored
    if high + 1 > header.bits_stored:
        np.right_shift(stored, high + 1 - header.bits_stored, out=stored)
    np.bitwise_and(stored, (1 << header.bits_stored) - 1, out=stored)
    return stored


def _padding_limit(header: Header, scale: Scale) -> float | None:
    """CT values at or below this (after rescale) are padding; None when no padding is declared that lies below air."""
    if header.modality != "CT" or header.padding is None or scale.slope <= 0:
        return None
    declared = [header.padding] if header.padding_limit is None else [header.padding, header.padding_limit]
    value = max(p * scale.slope + scale.intercept for p in declared)
    return value if value < CT_AIR else None


def _physical(stored: NDArray[Any], plane: Plane, scale: Scale, inverted: bool, out: NDArray[Any]) -> int:
    header = plane.header
    if header.lut is not None:
        first, table = header.lut
        values = table[np.clip(stored.astype(np.int64) - first, 0, len(table) - 1)]
    else:
        values = stored.astype(np.float32 if out.dtype == np.float32 else np.float64)
        if inverted:
            values = _invert(values, header)
        values = values * np.float64(scale.slope) + scale.intercept if scale.slope != 1 or scale.intercept else values
    limit = _padding_limit(header, scale)
    count = 0
    if limit is not None:
        mask = values <= limit
        count = int(mask.sum())
        values[mask] = CT_AIR
    out[...] = values
    return count


def _invert(values: NDArray[Any], header: Header) -> NDArray[Any]:
    low = -(1 << (header.bits_stored - 1)) if header.signed else 0
    high = low + (1 << header.bits_stored) - 1
    return (low + high) - values


def _finish_whole(
    base: NDArray[Any],
    planes: Sequence[Plane],
    scales: Sequence[Scale],
    inverted: bool,
    low: NDArray[Any],
    high: NDArray[Any],
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rescale integers in place where the result fits 16 bits, else into 32."""
    smallest, largest = [], []
    for plane, scale, a, b in zip(planes, scales, low, high, strict=True):
        if inverted:
            header = plane.header
            total = float(_invert(np.zeros(1, dtype=np.int64), header)[0])
            a, b = total - b, total - a
        ends = sorted((a * scale.slope + scale.intercept, b * scale.slope + scale.intercept))
        limit = _padding_limit(plane.header, scale)
        smallest.append(max(ends[0], CT_AIR) if limit is not None and ends[0] <= limit else ends[0])
        largest.append(ends[1])
    fits = min(smallest) >= -32768 and max(largest) <= 32767 and base.dtype.itemsize == 2
    padded = np.zeros(len(planes), dtype=np.int64)
    out = base.view(np.int16) if fits else np.empty(base.shape, dtype=np.int32)

    def one(k: int) -> None:
        scale, header = scales[k], planes[k].header
        limit = _padding_limit(header, scale)
        mask = None
        if limit is not None:
            mask = base[k] <= int(np.floor((limit - scale.intercept) / scale.slope))
        # modular 16-bit arithmetic is exact because the result is known to fit
        values = out[k]
        if not fits:
            values[...] = base[k]
        if inverted:
            np.subtract(_wrap(int(_invert(np.zeros(1, dtype=np.int64), header)[0]), values.dtype), values, out=values)
        if scale.slope != 1:
            np.multiply(values, _wrap(int(scale.slope), values.dtype), out=values)
        if scale.intercept:
            np.add(values, _wrap(int(scale.intercept), values.dtype), out=values)
        if mask is not None:
            padded[k] = np.count_nonzero(mask)
            values[mask] = CT_AIR

    _parallel(one, len(planes), silent)
    return out, padded


def _wrap(value: int, dtype: np.dtype[Any]) -> Any:
    bits = dtype.itemsize * 8
    wrapped = value & ((1 << bits) - 1)
    return dtype.type(wrapped - (1 << bits) if wrapped >= 1 << (bits - 1) else wrapped)
