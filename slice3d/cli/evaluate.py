"""`slice3d evaluate PREDICTION REFERENCE`: overlap and surface distances of two files, or of two folders of cases."""

from __future__ import annotations

import json
import math
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slice3d.cli import console
from slice3d.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from slice3d.metrics.cases import CaseSettings
    from slice3d.progress import Progress

_SHORT = ("status", "dice", "hd_mm", "hd95_mm", "assd_mm", "nsd", "volume_ml", "reference_volume_ml")


def evaluate(
    prediction: Annotated[Path, typer.Argument(help="A segmentation file, or a folder of them.")],
    reference: Annotated[Path, typer.Argument(help="The reference: a file, or a folder with files of the same names.")],
    out: Annotated[Path | None, typer.Option("--out", help="Write the scores: .json or .csv.")] = None,
    structures: Annotated[
        str | None, typer.Option(help="Comma-separated names; default: all of the reference.")
    ] = None,
    tolerance_mm: Annotated[float, typer.Option("--tolerance-mm", help="Tolerance of the surface Dice (NSD).")] = 2.0,
    convention: Annotated[str, typer.Option(help="mesh, deepmind, monai, simpleitk or nnunet.")] = "mesh",
    percentile: Annotated[list[float], typer.Option(help="Percentile of the Hausdorff distance; repeatable.")] = [95.0],  # noqa: B006
    resample: Annotated[bool, typer.Option("--resample", help="Resample predictions to the reference's grid.")] = False,
    versus: Annotated[list[Path], typer.Option(help="Predictions of another method; repeatable.")] = [],  # noqa: B006
    ranking: Annotated[Path | None, typer.Option(help="With --versus: write the ranking plot here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar and no table.")] = False,
) -> None:
    """Score PREDICTION against REFERENCE. A missed structure counts with its worst value, never as a gap."""
    from slice3d.metrics.cases import CaseSettings
    from slice3d.metrics.distance import Convention

    for path, endings in ((out, (".json", ".csv")), (ranking, (".png", ".svg", ".pdf"))):
        if path is not None and path.suffix.lower() not in endings:
            raise InputError(f"output is {path.name!r}; expected a name that ends in {' or '.join(endings)}")
    if ranking is not None and not versus:
        raise InputError("--ranking compares methods; expected at least one other one: add --versus FOLDER")
    names = tuple(name.strip() for name in structures.split(",") if name.strip()) if structures else None
    settings = CaseSettings(
        names, tolerance_mm, Convention(convention, tuple(percentile)), "resample" if resample else "refuse"
    )
    with console.progress_bar(quiet or as_json) as progress:
        methods = {_name(path): _scores(path, reference, settings, progress) for path in (prediction, *versus)}
    if len(methods) < 1 + len(versus):
        raise InputError("two methods have the same folder name; expected different names; rename one folder")
    result = _document(methods, settings)
    if out is not None:
        _write(out, methods, result)
    if ranking is not None:
        from slice3d.metrics.plots import save_ranking_plot

        save_ranking_plot(methods, ranking)
    if as_json:
        console.say_json(result)
    elif not quiet:
        _show(methods)


def _name(path: Path) -> str:
    from slice3d.metrics.cases import stem

    return stem(path.resolve().name)


def _scores(prediction: Path, reference: Path, settings: CaseSettings, progress: Progress) -> pd.DataFrame:
    from slice3d.io import load_segmentation
    from slice3d.metrics.cases import evaluate_cases, pair_names, stem

    for path in (prediction, reference):
        if not path.exists():
            raise InputError(f"{path.name!r} does not exist; expected a segmentation file or a folder of them")
    if prediction.is_dir() != reference.is_dir():
        raise InputError("one of the two is a folder and the other a file; expected two files or two folders")
    if not reference.is_dir():
        case = {stem(reference.name): (partial(load_segmentation, prediction), partial(load_segmentation, reference))}
        return evaluate_cases(case, settings=settings, progress=progress)
    pairs, extra = pair_names(_files(prediction), _files(reference))
    if not pairs:
        raise InputError(f"no segmentation in {reference.name!r}; expected .nii.gz, .nrrd, .mha or DICOM SEG files")
    for name in extra:
        console.fail(f"{prediction.name}/{name} has no reference of that name and is left out")
    if not any(pairs.values()):
        raise InputError(
            f"no file in {prediction.name!r} has the name of a reference; expected e.g. {next(iter(pairs))!r}"
        )
    cases = {
        stem(name): (
            partial(load_segmentation, prediction / found) if found else None,
            partial(load_segmentation, reference / name),
        )
        for name, found in pairs.items()
    }
    return evaluate_cases(cases, settings=settings, progress=progress)


def _files(folder: Path) -> list[str]:
    from slice3d.metrics.cases import stem

    return sorted(
        p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and stem(p.name) != p.name
    )


def _document(methods: dict[str, pd.DataFrame], settings: CaseSettings) -> dict[str, Any]:
    from slice3d.metrics.cases import summarise
    from slice3d.metrics.distance import Convention

    convention = Convention.of(settings.convention)
    out: dict[str, Any] = {"convention": convention.name, "tolerance_mm": settings.tolerance_mm, "methods": {}}
    for name, scores in methods.items():
        cases: dict[str, dict[str, Any]] = {}
        for (case, structure), row in zip(scores.index, scores.to_dict("records"), strict=True):
            cases.setdefault(case, {})[structure] = {str(key): _plain(value) for key, value in row.items()}
        entry: dict[str, Any] = {"cases": cases}
        if len(cases) > 1:
            summary: dict[str, dict[str, Any]] = {}
            table = summarise(scores)
            for (structure, metric), row in zip(table.index, table.to_dict("records"), strict=True):
                summary.setdefault(structure, {})[metric] = {str(key): _plain(value) for key, value in row.items()}
            entry["summary"] = summary
        out["methods"][name] = entry
    return out


def _plain(value: Any) -> Any:
    """JSON has no infinity and no NaN: null, and `status` says why."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, methods: dict[str, pd.DataFrame], result: dict[str, Any]) -> None:
    import pandas as pd

    if path.suffix.lower() == ".json":
        text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    else:
        text = pd.concat(methods, names=["method"]).to_csv()
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)  # noqa: PTH105
    except OSError as error:
        raise InputError(f"cannot write {path.name!r} ({error.strerror}); expected a writable folder") from None


def _show(methods: dict[str, pd.DataFrame]) -> None:
    from slice3d.metrics.cases import summarise

    for name, scores in methods.items():
        cases = scores.index.get_level_values("case").nunique()
        console.say(f"{name}: {cases} case{'s' * (cases > 1)}")
        if cases == 1:
            table = scores.droplevel("case")
            console.say(table[[c for c in _SHORT if c in table.columns]].round(3).to_string())
        else:
            table = summarise(scores)
            keep = table.index.get_level_values("metric").isin(_SHORT)
            console.say(table[keep].round(3).to_string())
