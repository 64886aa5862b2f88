"""The cohort's table: one row per structure per case, as Parquet and CSV."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slice3d.cohort.store import Record

if TYPE_CHECKING:
    import pandas as pd

FIRST = ("number", "case", "status", "kind", "reason", "structure", "volume_ml", "components", "findings")
LAST = ("seconds", "attempts", "model", "model_version", "slice3d", "input_sha256", "key")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """One row per structure from the `metrics.json` and `manifest.json` of a case: numbers, findings, versions."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    model = manifest.get("model") or {}
    common = {
        "findings": ";".join(sorted({str(f.get("code", "")) for f in manifest.get("findings", ())})),
        "input_sha256": (manifest.get("input") or {}).get("sha256", ""),
        "modality": (manifest.get("input") or {}).get("modality", ""),
        "model": str(model.get("model") or model.get("name") or ""),
        "model_version": str(model.get("model_version") or model.get("version") or ""),
        "slice3d": str(manifest.get("slice3d", "")),
    }
    return [
        {"structure": str(name), **_flat(values), **common}
        for name, values in (metrics.get("structures") or {}).items()
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Numbers, truths and short words of nested values, with `_` between the names; lists are left out."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}_"))
        elif isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
            flat[f"{prefix}{name}"] = value
    return flat


def table(records: Iterable[tuple[int, Record]]) -> pd.DataFrame:
    """A frame with a row per structure of each finished case and one row per failed case, in order of the cohort."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for number, record in sorted(records, key=lambda pair: pair[0]):
        common = {
            "number": number,
            "case": record.case,
            "status": record.status,
            "kind": record.kind,
            "reason": record.reason,
            "seconds": record.seconds,
            "attempts": record.attempts,
            "key": record.key,
            **{f"stage_{name}_s": value for name, value in record.stages.items()},
        }
        rows.extend({**row, **common} for row in (record.rows or ({"structure": ""},)))
    frame = pd.DataFrame(rows)
    middle = sorted(set(frame.columns) - set(FIRST) - set(LAST))
    return frame.reindex(columns=[*FIRST, *middle, *(name for name in LAST if name in frame.columns)])


def write_table(frame: pd.DataFrame, out: Path) -> None:
    """`cohort.csv` and `cohort.parquet`, each replaced as a whole."""
    for name, write in (("cohort.csv", _csv), ("cohort.parquet", _parquet)):
        part = out / ".slice3d" / f"{name}.part"
        write(frame, part)
        part.replace(out / name)


def _csv(frame: pd.DataFrame, path: Path) -> None:
    safe = frame.copy()
    for name in safe.columns:
        if safe[name].dtype == object or str(safe[name].dtype).startswith("str"):
            safe[name] = safe[name].map(_no_formula)
    safe.to_csv(path, index=False, encoding="utf-8", lineterminator="\n")


def _no_formula(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula gets an apostrophe in front (OWASP, CSV injection)."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _parquet(frame: pd.DataFrame, path: Path) -> None:
    mixed = frame.copy()
    for name in mixed.columns:
        if mixed[name].dtype == object:
            kinds = {type(v) for v in mixed[name] if v is not None and v == v}
            if len(kinds) > 1:  # one column, one type
                mixed[name] = mixed[name].map(lambda v: None if v is None or v != v else str(v))
    with path.open("wb") as file:  # pyarrow opens no path that is not UTF-8
        mixed.to_parquet(file, index=False)
