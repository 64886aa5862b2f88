"""`slice3d`: registers the commands and turns a `Slice3DError` into one line and an exit code."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from slice3d import __version__
from slice3d.cli import config, console, models
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

EXIT_CODES = {
    0: "done",
    1: "the reader of the output went away, or an error in slice3d itself",
    2: "bad input or wrong use",
    3: "a model or an extra is missing",
    4: "a quality gate failed (--print-ready)",
    130: "stopped by Ctrl-C",
    143: "stopped by SIGTERM",
}
app = typer.Typer(
    name="slice3d",
    help="From the 2D slices of a CT or MR study to measured 3D models. Not a medical device.",
    epilog="Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + ".",
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
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    defaults: Annotated[
        Path | None,
        typer.Option("--config", help=f"TOML file of defaults per command (default: {config.NAME} here, if any)."),
    ] = None,
) -> None:
    path = defaults if defaults is not None else Path(config.NAME)
    if defaults is not None or path.is_file():
        context.default_map = config.defaults(context, path)
        if sys.stderr.isatty():
            print(f"defaults from {path}", file=sys.stderr)


def _terminate(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut the cleaning short
    console.fail("stopped before the results were complete; run the same command again")
    sys.exit(143)


def main() -> None:
    """Run the command line. What it exits with: `EXIT_CODES`."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without "²", a file name that is no text: no traceback
            stream.reconfigure(errors="replace")
    # GNU's OpenMP reads this when torch is imported: its threads would spin between two layers, for milliseconds, on
    # cores that compiled kernels need then
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
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
