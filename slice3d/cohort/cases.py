"""What a cohort holds: a folder of studies, a CSV or Parquet table, or the answer to a DICOMweb query."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slice3d.errors import InputError
from slice3d.pacs import is_address

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TABLES = (".csv", ".tsv", ".parquet", ".pq")
_NOT_STUDIES = {".csv", ".tsv", ".parquet", ".pq", ".json", ".txt", ".md", ".html", ".log", ".xlsx", ".py", ".sh"}


@dataclass(frozen=True, repr=False)
class Case:
    """One study of a cohort.

    source: path or `dicomweb://` address. label: the user's own pseudonym for it ("" where there is none; the case is
    then called by its content). The representation shows the number alone: names of folders can be names of persons.
    """

    number: int
    source: str
    label: str = ""
    series: str | None = None
    reference: str | None = None
    problem: str = ""

    def __repr__(self) -> str:
        return f"Case({self.number})"


def find_cases(cohort: str | Path) -> tuple[Case, ...]:
    """The cases of a cohort in a fixed order.

    A folder gives one case per entry in it (folder or file; hidden ones, tables and texts are left out; links that lead
    out of the folder are refused, each as a case with a problem). A table needs a column `study` (path, relative to the
    table, or `dicomweb://` address) and may have `case` (a label of letters, digits, `.`, `_`, `-`), `series` and
    `reference`. Raises `InputError` when there is nothing, or the table is not usable.
    """
    text = str(cohort)
    if is_address(text):
        from slice3d.pacs import credentials, find_studies

        found = find_studies(text, auth=credentials(os.environ))
        cases = tuple(Case(n, address) for n, address in enumerate(found, start=1))
    else:
        path = Path(cohort)
        if path.is_dir():
            cases = tuple(_in_folder(path))
        elif path.is_file() and path.suffix.lower() in _TABLES:
            cases = tuple(_in_table(path))
        elif path.is_file():
            raise InputError(f"{path.name!r} is one file; expected a folder of studies, a .csv or .parquet table")
        else:
            raise InputError(f"{path.name!r} does not exist; expected a folder of studies, a table or dicomweb://…")
    if not cases:
        raise InputError("the cohort holds no study; expected one sub-folder, file or row per study")
    return cases


def _in_folder(folder: Path) -> Iterator[Case]:
    root = folder.resolve()
    number = 0
    for path in sorted(folder.iterdir(), key=os.fsencode):
        if path.name.startswith(".") or (not path.is_dir() and path.suffix.lower() in _NOT_STUDIES):
            continue
        number += 1
        problem = ""
        if path.is_symlink() and root not in path.resolve().parents:
            problem = "a link that leads out of the cohort's folder; expected a study; name it in a table instead"
        elif not path.exists():
            problem = "a link that leads nowhere; expected a study"
        yield Case(number, str(path), problem=problem)


def _in_table(path: Path) -> Iterator[Case]:
    import pandas as pd

    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            with path.open("rb") as file:  # pyarrow opens no path that is not UTF-8
                table = pd.read_parquet(file)
        else:
            table = pd.read_csv(path, dtype=str, sep="\t" if path.suffix.lower() == ".tsv" else ",")
    except Exception as error:  # pandas and pyarrow raise whatever the damaged bytes lead them into
        raise InputError(
            f"{path.name} cannot be read as a table ({type(error).__name__}); expected CSV or Parquet"
        ) from error
    if "study" not in table.columns:
        raise InputError(f"{path.name} has no column 'study'; expected one row per study with its path in 'study'")
    seen: set[str] = set()
    for number, row in enumerate(table.to_dict("records"), start=1):
        values = {str(k): "" if v is None or v != v else str(v).strip() for k, v in row.items()}
        label = values.get("case", "")
        if label and not LABEL.fullmatch(label):
            raise InputError(f"row {number} of {path.name}: 'case' is no plain label; use letters, digits, . _ -")
        if label and label.lower() in seen:  # some file systems do not tell upper from lower case
            raise InputError(f"row {number} of {path.name}: the label in 'case' was used before; expected each once")
        seen.add(label.lower())
        if not values["study"]:
            raise InputError(f"row {number} of {path.name} has no 'study'; expected a path or dicomweb:// address")
        yield Case(
            number,
            _beside(path, values["study"]),
            label=label,
            series=values.get("series") or None,
            reference=_beside(path, values["reference"]) if values.get("reference") else None,
        )


def _beside(table: Path, entry: str) -> str:
    return entry if is_address(entry) else str(table.parent / entry)


def check_apart(folder: Path, out: Path) -> None:
    """Raises `InputError` when `out` is, or lies in, the folder of the studies."""
    if out.resolve() == folder.resolve() or folder.resolve() in out.resolve().parents:
        raise InputError(
            f"the output folder lies in {folder.name!r}, where its results would be taken for studies; "
            "choose an --out elsewhere"
        )


def study_files(source: Path, *, max_files: int, max_bytes: int) -> list[Path]:
    """Regular files of a study in order of their names; hidden ones and links that leave the study are left out.

    Raises `InputError` when the study is missing, empty or larger than the limits.
    """
    if source.is_file():
        found = [source]
    elif source.is_dir():
        found = sorted(_regular(source), key=os.fsencode)
    else:
        raise InputError("the study does not exist or is neither folder nor file; check the path")
    if not found:
        raise InputError("the study's folder holds no file; expected images")
    if len(found) > max_files:
        raise InputError(f"the study holds {len(found)} files; expected at most {max_files}; raise max_study_files")
    size = sum(path.stat().st_size for path in found)
    if size > max_bytes:
        limit = max_bytes / 2**30
        raise InputError(f"the study holds {size / 2**30:.1f} GiB; expected at most {limit:.1f}; raise max_study_gib")
    return found


def _regular(folder: Path) -> Iterator[Path]:
    root = folder.resolve()
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent) / name
            if name.startswith(".") or not path.is_file():
                continue
            if path.is_symlink() and root not in path.resolve().parents:
                continue
            yield path


def content_sha256(files: list[Path]) -> str:
    """SHA-256 over the files' hashes in order: the same for a study that was moved or renamed as a whole."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
        total.update(digest.digest())
    return total.hexdigest()
