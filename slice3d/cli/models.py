"""`slice3d models list | show | add | verify | remove`: which models there are, and more of them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from slice3d.cli import console

app = typer.Typer(help="Model packages: list, show, add, verify, remove.", no_args_is_help=True)

_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_models(
    known: Annotated[bool, typer.Option("--known", help="Also public models that can be added.")] = False,
    as_json: _Json = False,
) -> None:
    """List installed models with what they find."""
    from slice3d.models import packages
    from slice3d.models.known import KNOWN

    installed = packages()
    if as_json:
        public = {name: {"licence": m.licence, "structures": list(m.structures)} for name, m in KNOWN.items()}
        rows = [_summary(package) for package in installed.values()]
        console.say_json({"installed": rows, **({"known": public} if known else {})})
        return
    for package in installed.values():
        modality = "/".join(package.modality) or "any modality"
        print(f"{package.name} {package.version}  {modality}  {package.licence}{_warning(package.licence)}")
        print(f"    {_shortened(package.structures)}")
    if known:
        for model in KNOWN.values():
            if model.name not in installed:
                print(f"{model.name}  not installed  {'/'.join(model.modality)}  {model.licence}: {model.summary}")


@app.command()
def show(name: Annotated[str, typer.Argument(help="Model name.")], as_json: _Json = False) -> None:
    """Show one model: structures, licence, training, scores, hash."""
    from slice3d.models import package as find_package
    from slice3d.models.known import KNOWN

    if name in KNOWN and not as_json:
        from slice3d.models import packages

        if name not in packages():
            model = KNOWN[name]
            print(f"{model.name}: {model.summary}, not installed; run `slice3d models add {name}`")
            print(f"licence: {model.licence}{_warning(model.licence)}\nsource: {model.source or model.url}")
            print(f"structures: {', '.join(model.structures)}")
            return
    package = find_package(name)
    summary = _summary(package)
    if as_json:
        console.say_json({**summary, "training": package.description.get("training", {}),
                          "scores": package.description.get("scores", {})})  # fmt: skip
        return
    for key, value in summary.items():
        print(f"{key}: {', '.join(map(str, value)) if isinstance(value, list) else value}")
    card = package.folder / "README.md"
    if card.is_file():
        print()
        print(card.read_text(encoding="utf-8"))


@app.command()
def add(
    source: Annotated[str, typer.Argument(help="Folder, zip, address, or the name of a known public model.")],
    name: Annotated[str | None, typer.Option("--name", help="Name to give it.")] = None,
    configuration: Annotated[str | None, typer.Option("--configuration", help="nnU-Net configuration.")] = None,
    folds: Annotated[str | None, typer.Option("--folds", help="nnU-Net folds, e.g. 0,1,2.")] = None,
    orientation: Annotated[
        str | None,
        typer.Option("--orientation", help="Axes the network wants, e.g. SAR; 'native': as the study has them."),
    ] = None,
    sha256: Annotated[str, typer.Option("--sha256", help="Expected hash of the zip or download.")] = "",
    trust: Annotated[
        bool, typer.Option("--trust", help="Evaluate a MONAI bundle's expressions (runs its code).")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite a model of that name.")] = False,
    quiet: _Quiet = False,
    as_json: _Json = False,
) -> None:
    """Add an nnU-Net v2 model, a MONAI bundle or a native package."""
    from slice3d.errors import InputError
    from slice3d.models.install import AddSettings
    from slice3d.models.install import add as install
    from slice3d.models.known import KNOWN

    try:
        chosen = None if folds is None else tuple(int(fold) for fold in folds.split(","))
    except ValueError as error:
        raise InputError(f"--folds is {folds!r}; expected numbers separated by commas, e.g. 0,1,2") from error
    quiet = quiet or as_json
    if source in KNOWN and not quiet:
        print(f"{source}: licence {KNOWN[source].licence}{_warning(KNOWN[source].licence)}")
    settings = AddSettings(
        name=name, configuration=configuration, folds=chosen, orientation=orientation, sha256=sha256, trust=trust,
        replace=replace,
    )  # fmt: skip
    with console.progress_bar(quiet) as progress:
        package = install(source, settings=settings, progress=progress)
    if as_json:
        console.say_json(_summary(package))
    console.say(f"added {package.name}: licence {package.licence}{_warning(package.licence)}", quiet=quiet)
    console.say(f"    {_shortened(package.structures)}", quiet=quiet)
    if package.orientation == "native":
        text = "it does not say which way its images lie and gets them as the study has them; see --orientation"
        console.say(f"    {text}", quiet=quiet)


@app.command()
def verify(
    name: Annotated[str | None, typer.Argument(help="Model name (default: all).")] = None,
    quiet: _Quiet = False,
    as_json: _Json = False,
) -> None:
    """Recompute the hash of installed weights."""
    from slice3d.errors import ModelError
    from slice3d.models import package as find_package
    from slice3d.models.registry import survey

    found, damaged = ({name: find_package(name)}, []) if name else survey()
    wanted = []
    for package in found.values():
        try:
            package.verify()
        except ModelError as error:
            damaged.append(str(error))
            continue
        wanted.append(package)
        console.say(f"{package.name}: weights are as model.json says ({package.sha256[:12]}…)", quiet=quiet or as_json)
    if damaged:
        raise ModelError("; ".join(damaged))
    if as_json:
        console.say_json({"verified": [{"name": p.name, "sha256": p.sha256} for p in wanted]})


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="Model name.")], quiet: _Quiet = False, as_json: _Json = False
) -> None:
    """Delete an added model."""
    from slice3d.models.install import remove as uninstall

    uninstall(name)
    if as_json:
        console.say_json({"removed": name})
    else:
        console.say(f"removed {name}", quiet=quiet)


def _summary(package: Any) -> dict[str, Any]:
    return {
        "name": package.name,
        "version": package.version,
        "licence": package.licence,
        "commercial_use": "forbidden" if package.non_commercial else "see the licence",
        "modality": list(package.modality),
        "structures": list(package.structures),
        "spacing_mm": list(package.spacing_mm),
        "origin": package.origin,
        "shipped": package.builtin,
        "sha256": package.sha256,
        "folds": len(package.weights),
    }


def _shortened(names: tuple[str, ...], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f", … {len(names)} in all" if len(names) > most else "")


def _warning(licence: str) -> str:
    from slice3d.models.package import forbids_commercial_use

    return "  (NO COMMERCIAL USE)" if forbids_commercial_use(licence) else ""
