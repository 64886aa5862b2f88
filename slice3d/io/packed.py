"""gzip all at once, with libdeflate or zlib-ng: several times as fast as zlib, and every reader reads it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_IMAGES = 6
_LABELS = 2  # repetitive: more effort would save a little of what is little already
_HEADER = b"\x1f\x8b\x08" + bytes(6) + b"\xff"  # deflate, no flags, no time, unknown system


def packed(payload: bytes, *, labels: bool) -> bytes:
    """One gzip member without name and time: the same bytes for the same input. labels: the payload is repetitive."""
    import imagecodecs

    if not labels:
        return bytes(imagecodecs.gzip_encode(payload, level=_IMAGES))
    # on labels zlib-ng takes a fifth of libdeflate's time for files as small; its stream, without the frame of zlib
    deflated = imagecodecs.zlibng_encode(payload, level=_LABELS)[2:-4]
    return _HEADER + deflated + struct.pack("<II", imagecodecs.zlibng_crc32(payload), len(payload) % 2**32)


def unpacked(path: Path, size: int) -> NDArray[np.uint8] | None:
    """The `size` bytes that a gzip file of one member holds, checksum verified; None for anything else."""
    import imagecodecs

    out: Any = np.empty(size, np.uint8)
    try:
        found = imagecodecs.gzip_decode(path.read_bytes(), out=out)
    except (imagecodecs.GzipError, imagecodecs.DeflateError, ValueError):
        return None
    return out if len(found) == size else None
