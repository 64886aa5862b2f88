"""`slice3d models add` and `remove`: foreign or native models become packages in the cache, entirely or not at all."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slice3d.errors import InputError, ModelError
from slice3d.models import bundle, nnunet
from slice3d.models.archive import unzip
from slice3d.models.known import KNOWN, KnownModel
from slice3d.models.package import (
    MALFORMED,
    NAME,
    ModelPackage,
    file_sha256,
    one_line,
    parse_package,
    read_package,
)
from slice3d.models.registry import cache_folder, packages
from slice3d.progress import Progress, silent

_DOWNLOADS = "downloads"  # of the cache folder: what is on its way


@dataclass(frozen=True)
class AddSettings:
    """How to add a model. name: under which (default: the model's own). folder: cache to add to (default: the user's).

    configuration, folds: which of an nnU-Net's. orientation: axes the network wants ("native": as the study has them).
    sha256: expected hash of the download or zip. trust: evaluate a MONAI bundle's expressions. replace: overwrite.
    """

    name: str | None = None
    folder: Path | None = None
    configuration: str | None = None
    folds: tuple[int, ...] | None = None
    orientation: str | None = None
    sha256: str = ""
    trust: bool = False
    replace: bool = False


def add(source: str | Path, *, settings: AddSettings | None = None, progress: Progress = silent) -> ModelPackage:
    """Install a model from a folder, a zip, an address, or the name of a known public model.

    Takes native packages, nnU-Net v2 results (also as exported by `nnUNetv2_export_model_to_zip`, which is how
    TotalSegmentator ships) and MONAI bundles. Weights are read without running code, converted to safetensors, tried
    in the network they claim to be for, and only then moved into place. Raises `ModelError` or `InputError`; nothing
    is left behind then.
    """
    settings = settings or AddSettings()
    root = settings.folder or cache_folder()
    root.mkdir(parents=True, exist_ok=True)
    known = KNOWN.get(str(source))
    with _staging(root) as staging:
        folder, label = _fetch(source, known, root, staging, settings, progress)
        made = staging / "package"
        made.mkdir()
        _translate(folder, made, label, known, settings, progress)
        package = _verified(made)
        return _move_in(made, root, package, settings)


def remove(name: str, *, folder: Path | None = None) -> None:
    """Delete an added model. Raises `ModelError` for a shipped one or one that is not there."""
    root = folder or cache_folder()
    installed = packages(folder=folder)
    target = root / name
    if not NAME.fullmatch(name) or name == _DOWNLOADS or not target.is_dir():
        if name in installed and installed[name].builtin:
            raise ModelError(f"model {name!r} ships with slice3d and cannot be removed")
        added = ", ".join(n for n, p in installed.items() if not p.builtin) or "none"
        raise ModelError(f"no added model {name!r}; added: {added}")
    shutil.rmtree(target)


@contextmanager
def _staging(root: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=".adding-", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fetch(
    source: str | Path, known: KnownModel | None, root: Path, staging: Path, settings: AddSettings, progress: Progress
) -> tuple[Path, str]:
    """The folder to read, and what to call it when nothing better is known."""
    from slice3d.models.download import fetch

    text = str(source)
    expected = settings.sha256 or (known.sha256 if known else "")
    url = known.url if known else text
    downloaded = None
    if known or re.match(r"https?://", text):
        downloaded = fetch(url, root / _DOWNLOADS, sha256=expected, progress=progress)
        path, label = downloaded, known.name if known else Path(url.split("?")[0]).stem
    else:
        path = Path(source).expanduser()
        label = path.stem if path.is_file() else path.name
        if not path.exists():
            close = ", ".join(sorted(KNOWN))
            raise InputError(
                f"no file or folder {path.name!r}; expected a model folder, a zip, an http(s) address, or one of {close}"
            )
        if expected and path.is_file() and file_sha256(path) != expected:
            raise ModelError(
                f"{path.name} does not have the expected SHA-256 {expected[:12]}…; it is damaged or another file"
            )
    if path.is_dir():
        return path, label
    progress("unpack", 0.0)
    unpacked = staging / "unpacked"
    unpacked.mkdir()
    unzip(path, unpacked)
    if downloaded is not None:
        downloaded.unlink(missing_ok=True)
    progress("unpack", 1.0)
    return unpacked, label


def _translate(
    folder: Path, made: Path, label: str, known: KnownModel | None, settings: AddSettings, progress: Progress
) -> None:
    """Write a package into `made` from whatever kind of model `folder` holds."""
    natives = sorted(
        p.parent for p in folder.rglob("model.json") if (p.parent / "README.md").is_file() or p.parent == folder
    )
    trained = nnunet.find(folder)
    bundles = bundle.find(folder)
    name = settings.name or (known.name if known else _clean_name(label))
    if natives:
        _copy_native(natives, made, settings)
        return
    if trained:
        chosen = nnunet.choose(trained, settings.configuration)
        if settings.name is None and known is None:
            name = _clean_name(chosen.parent.name if chosen.parent.name.startswith("Dataset") else label)
        with _described("plans.json or dataset.json"):
            foreign = nnunet.translate(chosen, name=name, folds=settings.folds)
        weights_of: Callable[[Path], dict[str, Any]] = nnunet.weights_of
    elif bundles:
        if len(bundles) > 1:
            raise ModelError(f"{len(bundles)} MONAI bundles found; add them one at a time")
        with _described("configs/metadata.json or configs/inference.json"):
            foreign = bundle.translate(bundles[0], name=name, trust=settings.trust)
        weights_of = bundle.weights_of
    else:
        raise ModelError(
            f"{label!r} holds no model: found neither model.json, nor plans.json with dataset.json and "
            "fold_N/checkpoint_final.pth (nnU-Net v2), nor configs/metadata.json (MONAI bundle)"
        )
    _write(foreign, weights_of, made, known, settings, progress)


@contextmanager
def _described(files: str) -> Iterator[None]:
    """Whatever else a foreign description may hold instead of what belongs there ends in one line."""
    try:
        yield
    except MALFORMED as error:
        raise ModelError(
            f"{files} of the model holds a value of another kind than expected ({one_line(error)}); copy it again"
        ) from error


def _copy_native(natives: list[Path], made: Path, settings: AddSettings) -> None:
    if len(natives) > 1:
        raise ModelError(f"{len(natives)} packages found; add them one at a time")
    package = read_package(natives[0])
    package.verify()
    description = dict(package.description)
    if settings.name:
        description["name"] = settings.name
    for weights in package.weights:
        shutil.copyfile(natives[0] / weights.file, made / weights.file)
    if (natives[0] / "README.md").is_file():
        shutil.copyfile(natives[0] / "README.md", made / "README.md")
    _write_json(made, description)


def _write(
    foreign: nnunet.Foreign,
    weights_of: Callable[[Path], dict[str, Any]],
    made: Path,
    known: KnownModel | None,
    settings: AddSettings,
    progress: Progress,
) -> None:
    from slice3d.models.loading import write_weights

    description = dict(foreign.description)
    if settings.orientation:
        description["orientation"] = settings.orientation
    if known:
        description["licence"] = known.licence
        description["source"] = known.source or known.url
        if known.orientation and not settings.orientation:
            description["orientation"] = known.orientation
        if known.modality and not description.get("modality"):
            description["modality"] = list(known.modality)
    weights = []
    for fold, checkpoint in enumerate(foreign.checkpoints):
        progress("convert", fold / len(foreign.checkpoints))
        path = made / f"weights-{fold}.safetensors"
        write_weights(weights_of(checkpoint), path)
        weights.append({"file": path.name, "sha256": file_sha256(path), "dtype": "float32"})
    progress("convert", 1.0)
    description["weights"] = weights
    _write_json(made, description)
    (made / "README.md").write_text(_card(description), encoding="utf-8")


def _card(description: dict[str, Any]) -> str:
    names = ", ".join(description["labels"].values())
    return (
        f"# {description['name']}\n\nAdded from a foreign model ({description['origin']}); its weights were converted, "
        f"not changed.\n\n- Licence, as stated by its source: {description['licence']}\n- Structures: {names}\n"
        f"- Training: {json.dumps(description['training'], ensure_ascii=False)}\n"
    )


def _write_json(made: Path, description: dict[str, Any]) -> None:
    text = json.dumps(description, indent=1, ensure_ascii=False, default=str)
    (made / "model.json").write_text(text + "\n", encoding="utf-8")


def _verified(made: Path) -> ModelPackage:
    """The staged package, its network built and every fold's weights tried in it."""
    from slice3d.models.loading import load_network

    package = read_package(made)
    for fold in range(len(package.weights)):
        load_network(package, fold)
    return package


def _move_in(made: Path, root: Path, package: ModelPackage, settings: AddSettings) -> ModelPackage:
    installed = packages(folder=settings.folder)
    if package.name in installed and installed[package.name].builtin:
        raise ModelError(f"a model {package.name!r} ships with slice3d; choose another --name")
    if package.name == _DOWNLOADS:
        raise ModelError(f"a model cannot be called {package.name!r}, a folder beside it is; choose another --name")
    target = root / package.name
    if target.exists():
        if not settings.replace:
            raise ModelError(f"a model {package.name!r} is already there; pass --replace or another --name")
        target.replace(made.with_name("replaced"))  # it goes with the staging folder
    made.replace(target)
    return parse_package(dict(package.description), target)


def _clean_name(text: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:100]
    return name or "model"
