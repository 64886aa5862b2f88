"""Unpacking archives that may be hostile: no entry leaves the folder, no links, no endless files."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath

from slice3d.errors import ModelError

_MOST_BYTES = 40 * 1024**3
_MOST_ENTRIES = 20_000


def unzip(archive: Path, folder: Path) -> None:
    """Extract every file of `archive` below `folder`.

    Raises `ModelError` for a file that is not a complete zip and for entries with absolute paths, `..`, drive letters
    or links; nothing is written outside `folder`, and every name is checked before the first byte is written.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            entries = packed.infolist()
            if entries and min(entry.header_offset for entry in entries) > 0:
                # checkpoints are zips themselves: of a cut-off archive the last whole one in it would be read
                raise zipfile.BadZipFile("something lies before its first file")
            _check(entries)
            for entry in entries:
                target = folder.joinpath(*PurePosixPath(entry.filename).parts)
                if entry.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with packed.open(entry) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise ModelError(f"{archive.name} is not a complete zip archive ({error}); download it again") from error
    except RuntimeError as error:  # zipfile's way of saying that a password is needed
        raise ModelError(f"{archive.name} cannot be unpacked ({error}); expected a zip without a password") from error


def _check(entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > _MOST_ENTRIES or sum(e.file_size for e in entries) > _MOST_BYTES:
        raise ModelError(
            f"the archive holds {len(entries)} files of {sum(e.file_size for e in entries) / 1024**3:.0f} GiB in all; "
            f"expected a model of at most {_MOST_BYTES // 1024**3} GiB"
        )
    for entry in entries:
        name = entry.filename
        path = PurePosixPath(name)
        linked = stat.S_ISLNK(entry.external_attr >> 16)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name or linked:
            raise ModelError(
                f"the archive holds the entry {name[:80]!r}, which would be written outside its folder; "
                "expected plain relative names; do not use this archive"
            )
