"""Stored pixels → physical values, decoded by several threads straight into the final array.

The stored value becomes HU or whatever the modality means by it: mask to the stored bits (PS3.5 8.1.1), modality lookup
table or rescale (PS3.3 C.11.1), padding (C.7.5.1.1.2), display inversion (C.7.6.3.1.2).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.findings import Finding
from slice3d.io.dicom.header import Header, stored_dtype
from slice3d.io.dicom.separate import Plane
from slice3d.io.dicom.stored import NATIVE, Frames, check_size, read_stored
from slice3d.io.files import Opener, quiet
from slice3d.progress import Progress, silent

CT_AIR = -1024
# a native plane that takes longer than this comes from a slow disk or a network
_SLOW_S = 0.004


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
    """values: (K, rows, columns). padded: how many of them were padding. odd: whether some were NaN or infinite."""

    values: NDArray[Any]
    padded: int = 0
    odd: bool = False


def decode(planes: Sequence[Plane], *, progress: Progress = silent) -> Decoded:
    """Physical values of the planes, (K, rows, columns): int16 where exact, else int32 or float32.

    Raises `InputError` when pixels are missing, truncated or cannot be decoded.
    """
    check_size(planes)
    with Opener() as opener, quiet():
        return _decode(planes, Frames(opener), progress)


def decode_parts(planes: Sequence[Plane], *, size: int = 16) -> Iterator[Decoded]:
    """The same a few planes at a time, for those who need not hold all; the type may differ from part to part."""
    check_size(planes)
    with Opener() as opener:
        frames = Frames(opener)
        for start in range(0, len(planes), size):
            with quiet():
                part = _decode(planes[start : start + size], frames, silent)
            yield part


def _decode(planes: Sequence[Plane], frames: Frames, progress: Progress) -> Decoded:
    first = planes[0].header
    dtypes = {stored_dtype(p.header) for p in planes}
    scales = [scale_of(p) for p in planes]
    luts = any(p.header.lut is not None for p in planes)
    inverted = first.photometric == "MONOCHROME1" and first.modality not in ("CT", "PT", "NM")
    whole = all(s.exact for s in scales) and not luts and all(d.kind in "iu" and d.itemsize <= 2 for d in dtypes)
    work = next(iter(dtypes)) if whole and len(dtypes) == 1 else np.dtype(np.int32 if whole else np.float32)
    if whole and work.itemsize == 1:
        work = np.dtype(np.int16)
    base = np.empty((len(planes), first.rows, first.columns), dtype=work)
    low, high = np.zeros(len(planes)), np.zeros(len(planes))
    padded = np.zeros(len(planes), dtype=np.int64)

    def one(k: int) -> None:
        plane, place = planes[k], base[k]
        stored = read_stored(plane, frames, place if work == stored_dtype(plane.header) else None)
        stored = _mask_bits(stored, plane.header)
        if whole:
            if stored is not place:
                place[...] = stored
            low[k], high[k] = place.min(), place.max()
        else:
            padded[k] = _physical(stored, plane, scales[k], inverted, place)

    _each(one, len(planes), progress, cheap=all(p.header.transfer_syntax in NATIVE for p in planes))
    odd = not whole and not bool(np.isfinite(base).all())
    if whole:
        base, padded = _finish_whole(base, planes, scales, inverted, low, high)
    elif odd:
        finite = np.isfinite(base)
        base[~finite] = base[finite].min() if finite.any() else 0
    return Decoded(base, int(padded.sum()), odd)


def decode_findings(planes: Sequence[Plane], parts: Sequence[tuple[int, bool]]) -> list[Finding]:
    """What is worth saying about the pixels. parts: (padded voxels, whether there were NaN) of each part."""
    first = planes[0].header
    findings: list[Finding] = []
    if any(odd for _, odd in parts):
        findings.append(
            Finding("not-finite", "Some voxels held NaN or infinity; they were set to the lowest value.", "warning")
        )
    if first.modality == "MR" and planes[0].frame.philips is not None:
        findings.append(_philips_finding(planes[0]))
    if first.photometric == "MONOCHROME1" and first.modality not in ("CT", "PT", "NM"):
        findings.append(
            Finding("inverted", "The pixels were stored for display with white as lowest; they were inverted.", "info")
        )
    padded = sum(count for count, _ in parts)
    if padded:
        findings.append(
            Finding(
                "padding-replaced",
                f"{padded} padding voxels outside the scanner's field of view were set to {CT_AIR} HU.",
                "info",
                {"voxels": padded},
            )
        )
    return findings


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


def _each(work: Callable[[int], None], count: int, progress: Progress, *, cheap: bool) -> None:
    """Do the work for every plane, by several threads. cheap: it is hardly more than reading, for which threads pay
    only when the files come slowly.
    """

    def note(done: int) -> None:
        if done % 8 == 0 or done == count:
            progress("reading pixels", done / count)

    done, started = 0, time.perf_counter()
    while cheap and done < count and time.perf_counter() - started <= _SLOW_S * (done + 1):
        work(done)
        done += 1
        note(done)
    if done == count:
        return
    # more than there are cores: some wait for files or the interpreter while others decode
    workers = min(count - done, 2 * (os.cpu_count() or 1), 16)
    with ThreadPoolExecutor(workers) as pool:
        try:
            for n, _ in enumerate(pool.map(work, range(done, count)), start=done + 1):
                note(n)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


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

    for k in range(len(planes)):
        one(k)
    return out, padded


def _wrap(value: int, dtype: np.dtype[Any]) -> Any:
    bits = dtype.itemsize * 8
    wrapped = value & ((1 << bits) - 1)
    return dtype.type(wrapped - (1 << bits) if wrapped >= 1 << (bits - 1) else wrapped)
