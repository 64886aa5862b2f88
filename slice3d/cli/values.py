"""Values that people type: sizes of memory, lists of millimetres, key files, addresses of studies."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from slice3d.errors import InputError

if TYPE_CHECKING:
    from slice3d.io.dicom.deidentify import Key
    from slice3d.superres import Superres

OnIrregular = Literal["resample", "refuse"]
Precision = Literal["auto", "float32", "bf16", "float16"]
PRECISIONS: Mapping[Precision, Any] = {"auto": "auto", "float32": "float32", "bf16": "bfloat16", "float16": "float16"}

_UNITS = {"": 1.0, "GIB": 1.0, "G": 1.0, "GB": 1e9 / 2**30, "MIB": 1 / 1024, "M": 1 / 1024, "MB": 1e6 / 2**30}


def gib(text: str | None) -> float | None:
    """`8GiB`, `8`, `500MB` → GiB. Raises `InputError` for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS or float(match[1]) <= 0:
        raise InputError(f"--memory is {text!r}; expected a size such as 8GiB or 500MB")
    return float(match[1]) * _UNITS[match[2].upper()]


def listed(entries: Iterable[str]) -> tuple[str, ...]:
    """`["liver, spleen", "aorta"]` → `("liver", "spleen", "aorta")`: an option given twice, or separated by commas."""
    return tuple(part.strip() for entry in entries for part in entry.split(",") if part.strip())


def millimetres(text: str | None) -> tuple[float, float, float] | None:
    """`0.8,0.8,3` → three numbers. Raises `InputError` for anything else."""
    if text is None:
        return None
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--spacing is {text!r}; expected three numbers in mm, e.g. 0.8,0.8,3") from error
    return x, y, z


def secret(path: Path | None) -> bytes | None:
    """What is in a key file. Raises `InputError` when it cannot be read or is short."""
    if path is None:
        return None
    try:
        key = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the key file: {error.strerror}; expected a file with a secret") from error
    if len(key) < 16:
        raise InputError(f"the key has {len(key)} bytes; expected 16 or more; make one with `openssl rand 32`")
    return key


def pseudonyms(wanted: bool, key: Path | None) -> Key | None:
    """`--deidentify` and `--key`. Raises `InputError` for a key without the other."""
    from slice3d.io.dicom.deidentify import Key

    if key is not None and not wanted:
        raise InputError("--key is for de-identified DICOM results; add --deidentify")
    return Key(secret(key)) if wanted else None


@contextmanager
def local_study(study: str) -> Iterator[Path]:
    """The study as a path; one in an archive is fetched into a private folder that is removed at the end."""
    from slice3d.pacs import credentials, fetched, is_address

    if not is_address(study):
        yield Path(study)
        return
    with fetched(study, auth=credentials(os.environ)) as folder:
        yield folder


def super_resolution(wanted: bool, spacing_mm: float | None, method: str | None) -> Superres | None:
    """What the options of `--superres` ask for. Raises `InputError` for one of them without it."""
    if not wanted:
        if spacing_mm is not None or method is not None:
            raise InputError("--superres-spacing and --superres-method say how; add --superres")
        return None
    from slice3d.superres import Superres

    return Superres(1.0 if spacing_mm is None else spacing_mm, method or "auto")
