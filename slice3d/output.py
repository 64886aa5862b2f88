"""A folder of results that appears all at once or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from slice3d.errors import InputError


class Transaction:
    """Collects files in a hidden folder beside `out`, or in `out` where it exists; `commit` moves them into `out`.

    Nothing in `out` changes before `commit`. On commit, files that an earlier run listed in its `manifest.json` and
    that this run did not write again are removed, so that no stale result is left beside new ones; files that slice3d
    did not make are kept. Raises `InputError` when `out` cannot be written to, before any work is done.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = Path()

    def __enter__(self) -> Transaction:
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"{self.out.name!r} is a file; expected a folder for the results; choose another --out")
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            # Inside a folder that is there: it may be a mounted volume or a link to another disk, to which nothing can
            # be moved from beside it, and its parent may be read-only.
            home = self.out if self.out.is_dir() else self.out.parent
            self.folder = Path(tempfile.mkdtemp(prefix=".slice3d-", dir=home))
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise InputError(f"cannot write to {self.out}: {reason}; choose a writable folder with --out") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if isinstance(error, OSError):
            reason = error.strerror or type(error).__name__
            raise InputError(
                f"could not write the results to {self.out}: {reason}; free space or choose another --out"
            ) from error

    def write_json(self, name: str, value: Any) -> None:
        """Write one JSON document; NaN and infinity are refused because JSON has none."""
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        (self.folder / name).write_text(text + "\n", encoding="utf-8")

    def hashes(self) -> dict[str, str]:
        """File name → SHA-256 of everything written so far."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): _sha256(path) for path in files}

    def commit(self) -> None:
        """Move everything into `out`."""
        stale = self._listed_before()
        if not self.out.exists():
            self.folder.chmod(0o755)
            self.folder.rename(self.out)
            return
        # The manifest goes last: while files are being moved, the old one must not vouch for new results.
        names = sorted((p.relative_to(self.folder) for p in self.folder.rglob("*") if p.is_file()), key=_manifest_last)
        (self.out / "manifest.json").unlink(missing_ok=True)
        for name in names:
            (self.out / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).replace(self.out / name)
            stale.discard(name.as_posix())
        for old in stale:
            if not (self.out / old).is_dir():
                (self.out / old).unlink(missing_ok=True)

    def _listed_before(self) -> set[str]:
        try:
            listed = json.loads((self.out / "manifest.json").read_text(encoding="utf-8"))["outputs"]
            names = {str(name) for name in listed}
        except (OSError, ValueError, KeyError, TypeError):
            return set()
        return {name for name in names if not Path(name).is_absolute() and ".." not in Path(name).parts}


def _manifest_last(name: Path) -> tuple[bool, str]:
    return name.name == "manifest.json", name.as_posix()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
