"""One compressed frame → its stored pixels."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import InputError
from slice3d.io.dicom.header import Header


def decode_frame(data: bytes, header: Header) -> NDArray[Any]:
    """(rows, columns) stored values. Raises `InputError` when the syntax is unknown or the frame is damaged."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    syntax = UID(header.transfer_syntax)
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise InputError(
            f"{header.file.name} uses transfer syntax {syntax.name}; expected one for pictures; convert it first"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            values, _ = decoder.as_array(
                encapsulate([data]),
                raw=True,
                rows=header.rows,
                columns=header.columns,
                samples_per_pixel=1,
                photometric_interpretation=header.photometric or "MONOCHROME2",
                pixel_representation=int(header.signed),
                bits_allocated=header.bits_allocated,
                bits_stored=header.bits_stored,
                number_of_frames=1,
                pixel_keyword="PixelData",
            )
        except Exception as error:  # each decoder has its own errors
            raise InputError(f"{header.file.name} holds damaged {syntax.name} pixels; copy it again") from error
    if values.shape != (header.rows, header.columns):
        raise InputError(
            f"{header.file.name} decodes to {values.shape} pixels; expected {(header.rows, header.columns)}"
        )
    out: NDArray[Any] = np.array(values)
    return out
