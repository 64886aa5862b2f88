"""What the site fills in while it is built: the command line, public names, benchmark tables, the changelog.

A page asks for it with a comment, so that it stays a readable page elsewhere: `<!-- fill: commands -->`.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

_FILL = re.compile(r"^<!-- fill: ([\w-]+)(?: ([\w.]+))? -->$", re.MULTILINE)
_NOT_RUN = re.compile(r"^<!-- not run: (.+?) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the comments of one page."""
    # with two arguments re.sub would read backslashes in what is filled in
    markdown = _NOT_RUN.sub(lambda found: f"*Not run by the tests: {found[1]}.*", markdown)
    return _FILL.sub(lambda found: FILLERS[found[1]](*filter(None, [found[2]])), markdown)


def on_files(files: Any, config: Any) -> Any:
    """Each notebook becomes a page, as it is in the repository: text and code, without results."""
    from mkdocs.structure.files import File

    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=notebook(path)))
    return files


def notebook(path: Path) -> str:
    """A notebook's cells as Markdown."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"]).strip()
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(filter(None, parts))


def names(module: str) -> list[str]:
    """The public names of a module, as dotted paths that the reference documents."""
    if module == "slice3d":
        from slice3d import _PUBLIC

        # `slice3d.surface` is a module and a function: the function is documented where it is defined
        return ["slice3d.surface.surface" if name == "surface" else f"slice3d.{name}" for name in _PUBLIC]
    found = importlib.import_module(module)
    public = getattr(found, "__all__", None) or [n for n, v in vars(found).items() if _defined_in(module, n, v)]
    return [f"{module}.{name}" for name in public]


def _defined_in(module: str, name: str, value: Any) -> bool:
    return not name.startswith("_") and getattr(value, "__module__", "").startswith(module)


def reference(module: str) -> str:
    """One mkdocstrings entry per public name."""
    # the package `slice3d.models` is listed as a name of `slice3d`; its own page documents what it holds
    entries = [n for n in names(module) if n != "slice3d.models"]
    return "\n\n".join(f"::: {name}" for name in entries)


def commands() -> str:
    """Every command with its arguments and options, from the command line itself."""
    return "\n\n".join(_command(path, command) for path, command in [("slice3d", root()), *walk()])


def root() -> Any:
    """The click group that holds every command."""
    import typer

    from slice3d.cli.main import app

    return typer.main.get_command(app)


def walk() -> list[tuple[str, Any]]:
    """(`slice3d models add`, click command) for every command."""
    out: list[tuple[str, Any]] = []

    def visit(path: str, command: Any) -> None:
        for name, child in getattr(command, "commands", {}).items():
            visit(f"{path} {name}", child)
        if not hasattr(command, "commands"):
            out.append((path, command))

    visit("slice3d", root())
    return out


def _command(path: str, command: Any) -> str:
    rows = ["| | | default |", "|---|---|---|"]
    for parameter in command.params:
        if parameter.name == "help" or getattr(parameter, "hidden", False):
            continue
        rows.append(f"| {_flags(parameter)} | {_cell(getattr(parameter, 'help', '') or '')} | {_default(parameter)} |")
    return f"## `{path}`\n\n{command.help or ''}\n\n" + "\n".join(rows)


def _flags(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = (parameter.metavar or parameter.name).upper()
        return f"`{name}{'…' if parameter.nargs == -1 else ''}`"
    return ", ".join(f"`{flag}`" for flag in [*parameter.opts, *parameter.secondary_opts])


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default() if callable(parameter.default) else parameter.default
    if value is True and parameter.secondary_opts:
        return f"`{parameter.opts[0]}`"
    if value is None or value is False or value in ((), [], ""):
        return ""
    return _cell(f"`{', '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}`")


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def exit_codes() -> str:
    """The errors and what the command line returns for each."""
    from slice3d import errors

    rows = ["| error | exit code | when |", "|---|---|---|"]
    for value in vars(errors).values():
        if isinstance(value, type) and issubclass(value, errors.Slice3DError):
            first = _cell((value.__doc__ or "").split("\n\n")[0])
            rows.append(f"| `{value.__name__}` | {value.exit_code} | {first} |")
    return "\n".join(rows)


def benchmarks() -> str:
    """Every file in benchmarks/results as tables."""
    parts = []
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        script = f"`benchmarks/{path.stem}.py` → " if (ROOT / "benchmarks" / f"{path.stem}.py").exists() else ""
        parts.append(f"## {path.stem.replace('_', ' ').capitalize()}\n\n{script}`benchmarks/results/{path.name}`")
        parts += _tables(found, 3)
    return "\n\n".join(parts)


def _tables(value: Any, level: int) -> list[str]:
    """A table where rows agree in shape, headings and a closer look where they do not."""
    if isinstance(value, list):
        if all(isinstance(entry, Mapping) for entry in value) and value:
            return [_table([("", _flat(entry)) for entry in value], "")]
        return [", ".join(map(_shown, value))]
    facts = {k: v for k, v in value.items() if not isinstance(v, (Mapping, list)) or _small(v)}
    out = ["; ".join(f"{_words(k)} {_shown(v)}" for k, v in facts.items())] if facts else []
    rest = {k: v for k, v in value.items() if k not in facts}
    if len(rest) > 1 and all(isinstance(v, Mapping) and _depth(v) == 1 for v in rest.values()):
        return [*out, _table([(str(k), _flat(v)) for k, v in rest.items()], "")]
    for key, entry in rest.items():
        if isinstance(entry, Mapping) and _depth(entry) == 1:
            out += [f"**{_words(key)}.** " + "; ".join(f"{_words(k)} {_shown(v)}" for k, v in entry.items())]
        else:
            out += [f"{'#' * min(level, 6)} {_words(key)}", *_tables(entry, level + 1)]
    return out


def _small(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 12 and not any(isinstance(v, (Mapping, list)) for v in value)


def _depth(value: Any) -> int:
    """How many tables deep: 1 for a row of plain values."""
    return 1 + max((_depth(v) for v in value.values()), default=0) if isinstance(value, Mapping) else (
        0 if not isinstance(value, list) or _small(value) else 1
    )  # fmt: skip


def _flat(row: Mapping[str, Any], before: str = "") -> dict[str, str]:
    out: dict[str, str] = {}
    for key, value in row.items():
        name = f"{before}{_words(key)}"
        out |= _flat(value, f"{name}: ") if isinstance(value, Mapping) else {name: _shown(value)}
    return out


def _table(rows: list[tuple[str, dict[str, str]]], corner: str) -> str:
    columns = list(dict.fromkeys(column for _, row in rows for column in row))
    named = any(name for name, _ in rows)
    head = [corner, *columns] if named else columns
    lines = [head, ["---"] * len(head)]
    lines += [([_words(name)] if named else []) + [row.get(column, "") for column in columns] for name, row in rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _words(key: Any) -> str:
    return str(key).replace("_", " ")


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, list):
        return ("×" if all(isinstance(v, (int, float)) for v in value) else ", ").join(map(_shown, value))
    return str(value)


def superres() -> str:
    """What the super-resolution benchmark measured: one row per volume, slices and method."""
    found = json.loads((ROOT / "benchmarks" / "results" / "superres.json").read_text(encoding="utf-8"))
    rows = []
    for case, protocols in found["cases"].items():
        for protocol, measured in sorted(protocols.items()):
            for method, row in measured["methods"].items():
                rows.append(("", {
                    "volume": case, "slices, mm": protocol, "method": method,
                    "gain, dB": f"{row['gain_db']:+.2f}" if "gain_db" in row else "",
                    "PSNR, dB": f"{row['psnr_db']:.2f}", "SSIM": f"{row['ssim']:.3f}",
                    "false detail": f"{row['false_detail']:.3f}",
                    "seconds": f"{row['seconds']:.0f}" if "seconds" in row else "",
                }))  # fmt: skip
    return _table(rows, "")


def changelog() -> str:
    """CHANGELOG.md without its title."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("\n")[2]


FILLERS: dict[str, Callable[..., str]] = {
    "commands": commands, "reference": reference, "exit-codes": exit_codes, "benchmarks": benchmarks,
    "changelog": changelog, "superres": superres,
}  # fmt: skip
