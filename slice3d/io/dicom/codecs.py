"""One compressed frame → its stored pixels.

imagecodecs' decoders release the interpreter lock, so several threads decode at once; pydicom's plugins are the second
opinion for streams they refuse. Before anything is decoded the stream's own size is compared with the header, so that
neither a wrong picture nor an absurd amount of memory can come out. PS3.5 section 8.2 and annex A.4.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import InputError
from slice3d.io.dicom.header import Header, stored_dtype

_T = "1.2.840.10008.1.2."
JPEG = frozenset(_T + s for s in ("4.50", "4.51", "4.53", "4.55", "4.57", "4.70"))
JPEG_LS = frozenset(_T + s for s in ("4.80", "4.81"))
JPEG_2000 = frozenset(_T + s for s in ("4.90", "4.91", "4.92", "4.93", "4.201", "4.202", "4.203"))
RLE = _T + "5"
UNCOMPRESSED = _T + "1.98"
DEFLATED_FRAMES = _T + "8.1"
SUPPORTED = JPEG | JPEG_LS | JPEG_2000 | {RLE, UNCOMPRESSED, DEFLATED_FRAMES}


# bytes, or a view of some
Data = bytes | memoryview


def decode_frame(data: Data, header: Header, *, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """(rows, columns) stored values, in `out` where it is of their type.

    Raises `InputError` when the syntax is unknown or the frame is damaged.
    """
    syntax, label = header.transfer_syntax, header.file.name
    if syntax not in SUPPORTED:
        raise InputError(
            f"{label} uses transfer syntax {_title(syntax)}; expected one for still pictures; convert it first"
        )
    if syntax in (UNCOMPRESSED, DEFLATED_FRAMES, RLE):
        return _bytes_to_pixels(_expand(data, header), header)
    size = stream_size(data, syntax)
    if size is not None and size != (header.rows, header.columns, 1):
        raise InputError(
            f"{label} holds a picture of {size[0]}×{size[1]} pixels in {size[2]} colours where its header says "
            f"{header.rows}×{header.columns} in 1; expected the same; export it again"
        )
    if size is None or (syntax not in JPEG_2000 and b"\xff\xd9" not in _end(data)):
        raise InputError(f"{label} is truncated inside its {_title(syntax)} pixels; copy it again")
    return _as_stored(_decode(data, header, out), header)


def _end(data: Data) -> bytes:
    """The last bytes that are no padding."""
    for length in (256, len(data)):
        end = bytes(data[-length:]).rstrip(b"\0")
        if len(end) >= 64:
            break
    return end[-64:]


def _decode(data: Data, header: Header, out: NDArray[Any] | None) -> NDArray[Any]:
    import imagecodecs

    syntax = header.transfer_syntax
    decoder: Any = (
        imagecodecs.jpeg2k_decode
        if syntax in JPEG_2000
        else imagecodecs.jpegls_decode
        if syntax in JPEG_LS
        else imagecodecs.jpeg8_decode
    )
    # JPEG-LS knows no sign; a signed JPEG 2000 stream would be written over unsigned pixels without a word
    if out is not None and syntax in JPEG_LS and out.dtype.kind == "u":
        try:
            decoder(data, out=out)
        except (TypeError, ValueError):
            pass  # the stream is of another type than the header says
        except Exception:  # each codec has its own error type
            return _second_opinion(data, header)
        else:
            return out
    try:
        values: NDArray[Any] = decoder(data)
    except Exception:  # as above
        return _second_opinion(data, header)
    return values


def _second_opinion(data: Data, header: Header) -> NDArray[Any]:
    """What pydicom's plugins make of it."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    try:
        decoder = get_decoder(UID(header.transfer_syntax))
        plugins = [name for name in ("pylibjpeg", "pyjpegls") if name in decoder.available_plugins]
        options: dict[str, Any] = {
            "rows": header.rows,
            "columns": header.columns,
            "samples_per_pixel": 1,
            "photometric_interpretation": header.photometric or "MONOCHROME2",
            "pixel_representation": int(header.signed),
            "bits_allocated": header.bits_allocated,
            "bits_stored": header.bits_stored,
            "number_of_frames": 1,
            "pixel_keyword": "PixelData",
        }
        values, _ = decoder.as_array(encapsulate([bytes(data)]), raw=True, decoding_plugin=plugins[0], **options)
    except Exception as error:  # the plugins likewise
        title = _title(header.transfer_syntax)
        raise InputError(f"{header.file.name} holds damaged {title} pixels; copy it again") from error
    return np.asarray(values)


def _as_stored(values: NDArray[Any], header: Header) -> NDArray[Any]:
    """The decoder's type → the header's, bit by bit; contradictions about the sign are refused."""
    if values.shape != (header.rows, header.columns):
        raise InputError(
            f"{header.file.name} decodes to {values.shape} pixels; expected {(header.rows, header.columns)}; "
            "export it again"
        )
    wanted = stored_dtype(header)
    if values.dtype.kind not in "iu" or wanted.kind not in "iu":
        raise InputError(f"{header.file.name} decodes to {values.dtype}; expected {wanted}; export it again")
    if values.dtype.itemsize > wanted.itemsize and values.size:
        limit = 1 << header.bits_allocated
        if int(values.max()) >= limit or int(values.min()) < -(limit // 2):
            raise InputError(f"{header.file.name} decodes to more than {header.bits_allocated} bits; export it again")
    if values.dtype.kind == "i" and wanted.kind == "u" and values.size and int(values.min()) < 0:
        raise InputError(
            f"{header.file.name} says that its pixels are unsigned but holds negative ones; expected one or the other; "
            "convert it first"
        )
    # An unsigned stream of signed pixels keeps the bit pattern; the sign is extended from the stored bits later.
    return np.ascontiguousarray(values.astype(wanted, casting="unsafe", copy=False))


def _expand(data: Data, header: Header) -> Data:
    need = header.rows * header.columns * (header.bits_allocated // 8)
    label = header.file.name
    try:
        if header.transfer_syntax == RLE:
            from rle.rle import decode_frame as decode_rle

            return bytes(decode_rle(bytes(data), header.rows * header.columns, header.bits_allocated, "<"))
        if header.transfer_syntax == DEFLATED_FRAMES:
            return zlib.decompressobj(-15).decompress(data, need)
    except BaseException as error:  # the codecs raise their own kinds, a panic in Rust is no Exception
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise InputError(f"{label} holds damaged {_title(header.transfer_syntax)} pixels; copy it again") from error
    return data


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust gave up, which Python sees as neither an error nor an interruption."""
    return type(error).__name__ == "PanicException"


def _bytes_to_pixels(data: Data, header: Header) -> NDArray[Any]:
    dtype = stored_dtype(header)
    count = header.rows * header.columns
    if len(data) < count * dtype.itemsize:
        raise InputError(
            f"{header.file.name} is truncated: {len(data)} of {count * dtype.itemsize} bytes; copy it again"
        )
    values = np.frombuffer(data, dtype.newbyteorder("<"), count).reshape(header.rows, header.columns)
    return values.astype(dtype)


def stream_size(data: Data, syntax: str) -> tuple[int, int, int] | None:
    """(rows, columns, components) as the compressed stream itself says, None when it does not get that far."""
    try:
        return _size_2000(data) if syntax in JPEG_2000 else _size_jpeg(data)
    except (struct.error, IndexError):
        return None


def _size_2000(data: Data) -> tuple[int, int, int] | None:
    # SOC then SIZ (ISO/IEC 15444-1 A.5.1); some writers put a JP2 box around the codestream
    data = bytes(data[:4200])
    start = data.find(b"\xff\x4f\xff\x51", 0, 4096)
    if start < 0:
        return None
    x1, y1, x0, y0 = struct.unpack(">IIII", data[start + 8 : start + 24])
    (components,) = struct.unpack(">H", data[start + 40 : start + 42])
    return y1 - y0, x1 - x0, components


def _size_jpeg(data: Data) -> tuple[int, int, int] | None:
    # segments up to the start of frame (ITU T.81 B.1, T.87 C.1)
    position = bytes(data[:64]).find(b"\xff\xd8")
    if position < 0:
        return None
    position += 2
    while position < len(data) - 9:
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            rows, columns, components = struct.unpack(">HHB", data[position + 5 : position + 10])
            return rows, columns, components
        (length,) = struct.unpack(">H", data[position + 2 : position + 4])
        position += 2 + max(length, 2)
    return None


def _title(syntax: str) -> str:
    from pydicom.uid import UID

    # anything else than digits and dots would make pydicom warn about a value that is not ours
    return str(UID(syntax).name) if re.fullmatch(r"[0-9.]{1,64}", syntax) else "an unknown one"
