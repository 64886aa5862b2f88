"""`slice3d`: registers the commands and turns a `Slice3DError` into one line and an exit code."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from slice3d import __version__
from slice3d.cli import console, models
from slice3d.cli.batch import batch
from slice3d.cli.deidentify import deidentify
from slice3d.cli.evaluate import evaluate
from slice3d.cli.info import info
from slice3d.cli.mesh import mesh
from slice3d.cli.push import push
from slice3d.cli.render import render
from slice3d.cli.sample import sample
from slice3d.cli.segment import segment
from slice3d.cli.train import train
from slice3d.cli.upsample import upsample
from slice3d.cli.view import view
from slice3d.cli.watch import watch
from slice3d.errors import Slice3DError

app = typer.Typer(
    name="slice3d",
    help="From the 2D slices of a CT or MR study to measured 3D models. Not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_HERE: tuple[Callable[..., None], ...] = (segment, info, view, mesh, render, evaluate, upsample, train, sample)
_FAR: tuple[Callable[..., None], ...] = (batch, watch, push, deidentify)
for _command in _HERE:
    app.command()(_command)
for _command in _FAR:
    app.command(rich_help_panel="Cohorts and archives")(_command)
app.add_typer(models.app, name="models")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"slice3d {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line. Exit codes: 2 bad input, 3 missing model or extra, 4 quality gate failed, 130 stopped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without "²", a file name that is no text: no traceback
            stream.reconfigure(errors="replace")
    try:
        app()
    except Slice3DError as error:
        console.fail(str(error))
        sys.exit(error.exit_code)
    except SystemExit as stop:
        if stop.code == 130:  # what typer makes of Ctrl-C
            console.fail("stopped before the results were complete; run the same command again")
        raise
    except BrokenPipeError:
        # the reader of our output went away (`slice3d info … | head`): not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except MemoryError:
        console.fail("out of memory; close other programs, crop the study, or pass a lower --memory")
        sys.exit(2)


if __name__ == "__main__":
    main()
