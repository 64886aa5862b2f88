"""Find the DICOM files under a path and read their headers, several at a time."""

from __future__ import annotations

import io
import itertools
import os
import time
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from slice3d.errors import InputError
from slice3d.findings import Finding
from slice3d.io.dicom.header import Header, looks_like_dicom, read_header
from slice3d.io.dicom.quick import check_deflated
from slice3d.io.files import FileRef, check_zip, quiet, read_member
from slice3d.progress import Progress, silent

MAX_FILES = 1_000_000
# a header rarely exceeds this; longer ones are read whole
_HEAD_BYTES = 256 * 1024
# after so many files it is known how long one takes, and whether that is the computer or the way to the file
_PROBE = 16
_SLOW_S = 0.004


@dataclass
class Found:
    """What a walk came across: headers of DICOM files, other files by name, damaged files with the reason."""

    headers: list[Header] = field(default_factory=list)
    others: list[FileRef] = field(default_factory=list)
    damaged: list[tuple[FileRef, str]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def discover(path: Path, *, progress: Progress = silent) -> Found:
    """Headers of every DICOM file under `path` (folder, DICOMDIR, file or .zip).

    Raises `InputError` when the path does not exist, or a .zip is damaged, unsafe or absurdly large.
    """
    if not path.exists():
        raise InputError(
            f"{path.name or path} does not exist; expected a study folder, file or .zip; check the spelling"
        )
    with quiet():
        return _discover(path, progress)


def _discover(path: Path, progress: Progress) -> Found:
    try:
        if path.is_dir():
            return _read_folder(path, progress)
        # an archive at the end of a DICOM file (a document within it) does not make it one
        if not _has_preamble(path) and zipfile.is_zipfile(path):
            return _read_zip(path, progress)
        if path.name.upper() == "DICOMDIR" or _is_dicomdir(path):
            return _read_dicomdir(path, progress)
        return _read_all([FileRef(str(path))], progress)
    except OSError as error:
        raise InputError(f"cannot read {path.name}: {error.strerror or error}; check the permissions") from error


def _read_folder(folder: Path, progress: Progress) -> Found:
    away: list[Path] = []
    found = _read_all([FileRef(str(p)) for p in walk(folder, away=away)], progress)
    if away:
        text = f"{len(away)} links that lead out of the study's folder were left out; copy the files in if they belong."
        found.findings.append(Finding("links-left-out", text, "warning", {"links": len(away)}))
    return found


def walk(folder: Path, *, away: list[Path] | None = None) -> Iterator[Path]:
    """Regular files below a folder in a fixed order; hidden files and links that lead back are left out.

    Links that lead out of the folder are left out too, and added to `away`: a study that was sent by somebody must not
    reach files that were not sent.
    """
    count, top = 0, folder.resolve()
    for root, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__MACOSX")
        if away is not None:
            linked = (Path(root) / f for f in folders if (Path(root) / f).is_symlink())
            away.extend(link for link in linked if top not in link.resolve().parents and link.resolve() != top)
        for name in sorted(names):
            path = Path(root) / name
            # a pipe or a device would block or never end
            if name.startswith(".") or not path.is_file():
                continue
            if path.is_symlink() and top not in path.resolve().parents:
                if away is not None:
                    away.append(path)
                continue
            count += 1
            if count > MAX_FILES:
                raise InputError(
                    f"{folder.name} holds more than {MAX_FILES} files; expected a study; name one folder of it"
                )
            yield path


def _unreadable(error: OSError) -> None:
    name = Path(error.filename or "").name
    raise InputError(
        f"cannot read folder {name}: {error.strerror}; a study without it would be incomplete; check the permissions"
    ) from error


def _read_one(file: FileRef) -> Header | InputError | None:
    try:
        with file.open() as stream:
            size = os.fstat(stream.fileno()).st_size if not file.member else stream.seek(0, 2)
            stream.seek(0)
            return read_header(file, stream, size=size)
    except InputError as error:
        return error
    except OSError as error:
        return InputError(f"cannot read {file.name}: {error.strerror or error}")


def _collect(
    files: Iterable[FileRef], headers: Iterable[Header | InputError | None], total: int, progress: Progress
) -> Found:
    found = Found()
    for index, (file, header) in enumerate(zip(files, headers, strict=True)):
        if header is None:
            found.others.append(file)
        elif isinstance(header, InputError):
            found.damaged.append((file, str(header)))
        elif header.sop_class == "1.2.840.10008.1.3.10":
            continue  # a DICOMDIR describes files that the walk meets anyway
        elif header.ends_early:
            reason = f"{file.name} ends before it says which series it belongs to; copy it again"
            found.damaged.append((file, reason))
        else:
            found.headers.append(header)
        if index % 64 == 0:
            progress("reading headers", index / max(total, 1))
    progress("reading headers", 1.0)
    return found


def _read_all(files: list[FileRef], progress: Progress) -> Found:
    started = time.perf_counter()
    first = [_read_one(file) for file in files[:_PROBE]]
    # from a disk, threads only wait for each other; from a network they wait for files at the same time
    if time.perf_counter() - started < _SLOW_S * len(first):
        return _collect(files, itertools.chain(first, map(_read_one, files[_PROBE:])), len(files), progress)
    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 2)) as pool:
        rest = pool.map(_read_one, files[_PROBE:])
        return _collect(files, itertools.chain(first, rest), len(files), progress)


def _read_zip(path: Path, progress: Progress) -> Found:
    try:
        with zipfile.ZipFile(path) as archive:
            members = check_zip(archive, path.name)
            files = [FileRef(str(path), m.filename) for m in members if not _skip(m.filename)]
            return _collect(files, (_zip_header(archive, file) for file in files), len(files), progress)
    except zipfile.BadZipFile as error:
        raise InputError(f"{path.name} is not a complete .zip; expected a packed study; copy it again") from error


def _skip(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return "__MACOSX" in parts or parts[-1].startswith(".")


def _zip_header(archive: zipfile.ZipFile, file: FileRef) -> Header | InputError | None:
    size = archive.getinfo(file.member).file_size
    try:
        with archive.open(file.member) as stream:
            head = stream.read(_HEAD_BYTES)
        if not looks_like_dicom(head[:140]):
            return None
        try:
            header = read_header(file, io.BytesIO(head), size=size)
            if header is None or header.pixel_tag or len(head) == size:
                return header
        except InputError:
            if len(head) == size:
                raise
        return read_header(file, io.BytesIO(read_member(archive, file.member)), size=size)
    except InputError as error:
        return error
    except Exception as error:  # damaged or encrypted members: zlib, zipfile and runtime errors have no common base
        return InputError(f"{file.name} in the .zip cannot be read ({type(error).__name__}); pack the study again")


def _has_preamble(path: Path) -> bool:
    with path.open("rb") as stream:
        start = stream.read(132)
    return start[128:] == b"DICM" and not start.startswith(b"PK")


def _is_dicomdir(path: Path) -> bool:
    with path.open("rb") as stream:
        start = stream.read(1024)
    return start[128:132] == b"DICM" and b"1.2.840.10008.1.3.10\0" in start


def _read_dicomdir(path: Path, progress: Progress) -> Found:
    import pydicom

    root = path.parent.resolve()
    with path.open("rb") as stream:
        check_deflated(stream, path.stat().st_size, path.name)
    try:
        records = list(pydicom.dcmread(path).DirectoryRecordSequence)
    except Exception as error:  # pydicom raises whatever the damaged bytes lead it into
        raise InputError(f"{path.name} is damaged; expected a DICOM directory; name the folder instead") from error
    files: list[FileRef] = []
    missing = outside = 0
    for record in records:
        parts = record.get("ReferencedFileID")
        if not parts:
            continue
        target = root.joinpath(*([parts] if isinstance(parts, str) else list(parts)))
        actual = _existing(target)
        if actual is None:
            missing += 1
        elif root not in actual.resolve().parents:
            outside += 1
        else:
            files.append(FileRef(str(actual)))
    if not files:
        raise InputError(
            f"{path.name} lists no file that exists; expected the media's files beside it; name the folder instead"
        )
    found = _read_all(files, progress)
    if missing or outside:
        found.findings.append(
            Finding(
                "dicomdir-incomplete",
                f"The DICOMDIR lists {missing} files that are missing and {outside} outside its folder; they were "
                "left out.",
                "warning",
                {"missing": missing, "outside": outside},
            )
        )
    return found


def _existing(target: Path) -> Path | None:
    """The file itself, or its lower-case spelling, which is how some systems copy a CD."""
    for candidate in (target, target.parent / target.name.lower(), target.parent / f"{target.name}.dcm"):
        if candidate.is_file():
            return candidate
    return None
