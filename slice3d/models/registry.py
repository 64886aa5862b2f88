"""Which model packages are installed, and which of them answers `--organ liver`. No torch here."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slice3d import anatomy
from slice3d.errors import InputError, ModelError
from slice3d.models.package import ModelPackage, read_package

log = logging.getLogger(__name__)

BUILTIN = Path(__file__).parent / "packages"


def cache_folder() -> Path:
    """Where added models live: the platform's cache folder for slice3d (on Linux `$XDG_CACHE_HOME/slice3d/models`)."""
    from platformdirs import user_cache_path

    return user_cache_path("slice3d", appauthor=False) / "models"


def packages(*, folder: Path | None = None) -> dict[str, ModelPackage]:
    """Every installed package by name, the shipped ones first. folder: where added models live (default: the cache).

    A damaged package is left out with a logged warning; `package(name)` says what is wrong with it.
    """
    found, damaged = survey(folder=folder)
    for problem in damaged:
        log.warning("model package left out: %s", problem)
    return found


def survey(*, folder: Path | None = None) -> tuple[dict[str, ModelPackage], list[str]]:
    """Every package that can be read, by name, and what is wrong with those that cannot."""
    found: dict[str, ModelPackage] = {}
    damaged = []
    for root, builtin in _roots(folder):
        for entry in sorted(root.glob("*/model.json")) if root.is_dir() else ():
            try:
                read = read_package(entry.parent, builtin=builtin)
            except ModelError as error:
                damaged.append(str(error))
                continue
            found.setdefault(read.name, read)
    return found, damaged


def _roots(folder: Path | None) -> tuple[tuple[Path, bool], ...]:
    return (BUILTIN, True), (folder or cache_folder(), False)


def package(name: str, *, folder: Path | None = None) -> ModelPackage:
    """One installed package, or that in the folder `name`, as `slice3d train` leaves it.

    Raises `ModelError` when there is none of that name (with the nearest spelling).
    """
    from slice3d.models.known import KNOWN

    for root, builtin in _roots(folder):
        # where it should be: what is wrong with it, if anything, is said once, and of no other one
        if Path(name).name == name and (root / name / "model.json").is_file():
            found = read_package(root / name, builtin=builtin)
            if found.name == name:
                return found
    installed = packages(folder=folder)
    if name in installed:
        return installed[name]
    if name in KNOWN:
        raise ModelError(f"model {name!r} is known but not installed; run `slice3d models add {name}`")
    if (Path(name) / "model.json").is_file():
        return read_package(Path(name))
    raise ModelError(
        f"no model {name!r}; installed: {', '.join(installed) or 'none'}{anatomy.suggest(name, installed)}; expected one of "
        "them, or the folder of a package"
    )


def identity(wanted: ModelPackage, *, folder: Path | None = None) -> str:
    """What a result of this package depends on: weights and description, and those of the package that finds its region.

    Findings and the expected Dice follow from the description alone.
    """
    other = packages(folder=folder).get(wanted.region.model) if wanted.region is not None else None
    return "+".join(f"{one.sha256}/{_digest(one.description)}" for one in (wanted, other) if one is not None)


def _digest(description: Mapping[str, Any]) -> str:
    text = json.dumps(dict(description), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def find(
    organ: str | Sequence[str], *, modality: str = "", size_mm: Sequence[float] | None = None, model: str | None = None,
    folder: Path | None = None,
) -> ModelPackage:  # fmt: skip
    """The installed package that knows every structure in `organ`, for images of `modality` (`""`: not known).

    Of several, those come first that take an image of `size_mm` (some know crops alone), then those that have the
    structures by that very name, then, for an image of known size, those made for crops, then shipped packages, then by name; `model` names one. Raises `InputError` for an unknown
    structure (listing what there is, with the nearest spelling) or an image of a modality no such model takes, and
    `ModelError` when `model` is not installed.
    """
    organs = (organ,) if isinstance(organ, str) else tuple(organ)
    candidates = [package(model, folder=folder)] if model is not None else list(packages(folder=folder).values())
    if not candidates:
        raise ModelError("no model package is installed; run `slice3d models add`")
    if not organs:
        raise InputError("no structure asked for; expected at least one, e.g. 'liver'")
    able = [c for c in candidates if all(_offers(c, o) for o in organs)]
    if not able:
        _explain(organs, candidates)
    fitting = [c for c in able if not modality or not c.modality or modality in c.modality]
    if not fitting:
        takes = sorted({m for c in able for m in c.modality})
        raise InputError(
            f"the image is {modality}, but {', '.join(organs)} can only be found in {' or '.join(takes)} by "
            f"{', '.join(c.name for c in able)}; use a {' or '.join(takes)} study or add a model for {modality}"
        )
    return min(fitting, key=lambda c: (_too_large(c, size_mm), not _by_name(c, organs), not _for_crops(c, size_mm)))


def _too_large(candidate: ModelPackage, size_mm: Sequence[float] | None) -> bool:
    limit = candidate.reliability.get("largest_field_of_view_mm")
    return limit is not None and size_mm is not None and max(size_mm) > float(limit)


def _for_crops(candidate: ModelPackage, size_mm: Sequence[float] | None) -> bool:
    return size_mm is not None and "largest_field_of_view_mm" in candidate.reliability


def _by_name(candidate: ModelPackage, organs: Sequence[str]) -> bool:
    return all(anatomy.canonical(organ) in candidate.structures for organ in organs)


def _offers(candidate: ModelPackage, organ: str) -> bool:
    try:
        anatomy.resolve(organ, candidate.structures)
    except InputError:
        return False
    return True


def _explain(organs: Sequence[str], candidates: Sequence[ModelPackage]) -> None:
    everything = sorted({name for c in candidates for name in c.structures})
    for organ in organs:
        anatomy.resolve(organ, everything)
        if not any(_offers(c, organ) for c in candidates):
            raise InputError(f"no single installed model knows all parts of {organ!r}; ask for one structure at a time")
    raise InputError(
        f"no installed model knows {', '.join(organs)} together; ask for them one model at a time with --model "
        f"({', '.join(c.name for c in candidates)})"
    )
