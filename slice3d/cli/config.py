"""Defaults for commands out of a TOML file: one table per command, keys as the long options are called."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import typer

from slice3d.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NAME = "slice3d.toml"
_TYPED_ONLY = ("trust",)  # runs foreign code: a file that happens to lie in the working folder must not say so


def defaults(context: typer.Context, path: Path) -> dict[str, Any]:
    """What a click context takes as its `default_map`. context: of the group whose commands the tables name.

    Raises `InputError` for a file that cannot be read, an unknown command or option (with the nearest spelling), or a
    value the option does not take.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path.name}: {error.strerror}; expected a TOML file of defaults") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name} is not TOML: {error}; expected e.g. [segment] and organ = ['liver']") from error
    return _tables(context, context.command, content, path.name)


def _tables(
    context: typer.Context, group: Any, content: Mapping[str, Any], file: str, prefix: str = ""
) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, table in content.items():
        command = group.commands.get(name)
        if command is None:
            what = f"[{prefix}{name}]" if isinstance(table, dict) else f"{prefix}{name}"
            raise InputError(_unknown(file, what, "command", name, group.commands))
        if not isinstance(table, dict):
            raise InputError(f"{file}: {prefix}{name} is {table!r}; expected a table, [{prefix}{name}]")
        if hasattr(command, "commands"):
            out[name] = _tables(context, command, table, file, f"{prefix}{name}.")
        else:
            out[name] = _options(context, command, table, file, f"{prefix}{name}")
    return out


def _options(context: typer.Context, command: Any, table: Mapping[str, Any], file: str, where: str) -> dict[str, Any]:
    options = {
        option[2:]: parameter
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--") and option != "--help"
    }
    out: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("_", "-")
        if name not in options:
            raise InputError(_unknown(file, f"{key} in [{where}]", "option", name, options))
        if name in _TYPED_ONLY:
            raise InputError(f"{file}: {key} in [{where}] cannot be a default; type --{name} where you mean it")
        parameter = options[name]
        out[parameter.name] = _value(context, parameter, value, f"{file}: {key} in [{where}] is {value!r}")
    return out


def _value(context: typer.Context, parameter: Any, value: Any, found: str) -> Any:
    if parameter.is_flag:
        if not isinstance(value, bool):
            raise InputError(f"{found}; expected true or false")
        return value
    many = parameter.multiple or parameter.nargs != 1
    values = value if many and isinstance(value, list) else [value]
    for one in values:
        if isinstance(one, (bool, list, dict)):
            raise InputError(f"{found}; expected {'a list of ' if many else ''}plain text or numbers")
    text = [str(one) for one in values] if many else str(value)
    try:
        parameter.process_value(context, text)
    except typer.BadParameter as error:
        raise InputError(f"{found}; {str(error.message).rstrip('.')}") from error
    return text


def _unknown(file: str, what: str, kind: str, name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "remove it"
    return f"{file}: {what} is no {kind}; expected one of {', '.join(names)}; {hint}"
