"""`slice3d train DATASET --out DIR`: a model package from labelled images, or one of the shipped recipes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slice3d.cli import console

if TYPE_CHECKING:
    from slice3d.progress import Progress
    from slice3d.training.run import RunOptions


def train(
    dataset: Annotated[
        Path | None, typer.Argument(help="Data set folder with a dataset.json (MSD or nnU-Net raw layout).")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for checkpoints, logs and the package.")] = Path(
        "run"
    ),
    config: Annotated[Path | None, typer.Option("--config", help="TOML file that overrides the plan.")] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="Reproduce a shipped model, e.g. ct-torso.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", envvar="SLICE3D_TEST_DATA", help="Data folder of a recipe.")
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--start", help="Model (name or folder) of an earlier version that the recipe's last stage begins with."
        ),
    ] = None,
    synthesise: Annotated[
        bool, typer.Option("--synthesise", help="DATASET is a folder of label maps; paint the images from them.")
    ] = False,
    plan_only: Annotated[bool, typer.Option("--plan-only", help="Print the plan and stop.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print where the package is, or the plan, as JSON.")] = False,
) -> None:
    """Train a network and export it as a model package; run again after an interruption to go on."""
    from slice3d.allocator import keep_freed_memory
    from slice3d.errors import InputError
    from slice3d.training.loop import Processes
    from slice3d.training.recipes import BEGIN_WITH, RECIPES
    from slice3d.training.run import read_config, train_dataset
    from slice3d.training.synthetic_run import train_label_maps

    world, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    processes = Processes(devices=local, nodes=max(1, world // local))
    first = os.environ.get("RANK", "0") == "0"
    keep_freed_memory(all_of_it=True)

    def report(line: str) -> None:
        console.say(line, quiet=quiet or as_json or not first)

    with console.progress_bar(quiet or as_json or not first) as progress:
        if recipe is not None:
            if recipe not in RECIPES:
                raise InputError(f"no recipe {recipe!r}; there are: {', '.join(sorted(RECIPES))}")
            others = {"a data set": dataset, "--config": config, "--plan-only": plan_only, "--synthesise": synthesise}
            beside = [name for name, given in others.items() if given]
            if beside:
                raise InputError(
                    f"--recipe {recipe} was given with {beside[0]}; a recipe runs as it is: leave one of them out"
                )
            if data is None:
                raise InputError(f"recipe {recipe} needs its data; give --data or set SLICE3D_TEST_DATA")
            begun = {}
            if start is not None:
                if recipe not in BEGIN_WITH:
                    raise InputError(
                        f"--start goes with {' or '.join(BEGIN_WITH)}; recipe {recipe} begins from nothing"
                    )
                begun["recipe"] = BEGIN_WITH[recipe](start=start)
            package = RECIPES[recipe](data, out, report=report, processes=processes, progress=progress, **begun)
        elif start is not None:
            raise InputError(f"--start goes with --recipe {' or '.join(BEGIN_WITH)}; data sets begin from nothing")
        elif dataset is None:
            raise InputError("nothing to train on; give a data set folder, or --recipe")
        else:
            options = read_config(config)
            if plan_only:
                lines = _plan(dataset, options, synthesise, progress)
                for line in lines:
                    report(line)
                if as_json and first:
                    console.say_json({"plan": list(lines)})
                return
            run = train_label_maps if synthesise else train_dataset
            package = run(dataset, out, options, report=report, processes=processes, progress=progress)
    report(f"package in {console.link(package)}")
    if as_json and first:
        console.say_json({"package": str(package)})


def _plan(dataset: Path, options: RunOptions, synthesise: bool, progress: Progress) -> list[str]:
    """What a run would do, after everything that it would check before it begins."""
    from slice3d.training.dataset import read_dataset
    from slice3d.training.labelmaps import read_label_folder, read_maps
    from slice3d.training.run import plan_dataset, run_lines, settings_for, split
    from slice3d.training.synthetic_run import generator_settings, plan_maps

    if synthesise:
        folder = read_label_folder(dataset)
        maps = read_maps(folder, progress=progress)
        generator_settings(options)
        plan, names = plan_maps(folder, maps, options), [m.name for m in maps]
        settings = settings_for(plan, folder.labels, options)
    else:
        cases = read_dataset(dataset)
        plan, names = plan_dataset(cases, options, progress=progress), [pair.name for pair in cases.pairs]
        settings = settings_for(plan, cases.labels, options)
    return run_lines(plan, settings, *split(names, options))
