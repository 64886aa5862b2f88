"""Values of a configuration file, checked against the dataclass that they are meant for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args, get_origin, get_type_hints

from slice3d.errors import InputError


def checked(raw: Any, kind: type, where: str, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The table `raw` as arguments of the dataclass `kind`, lists as tuples.

    where: how messages call the table. without: fields that may not be set. Raises `InputError` for what is no table, a key that is not known, or a value of another type.
    """
    if not isinstance(raw, Mapping):
        raise InputError(f"{where} is {raw!r}; expected a table of settings")
    known = sorted({f.name for f in fields(kind)} - set(without))
    hints = get_type_hints(kind)
    out = {}
    for name, value in raw.items():
        if name not in known:
            raise InputError(f"{where} sets {name!r}; expected some of {', '.join(known)}")
        if not _fits(value, hints[name]):
            raise InputError(f"{where} sets {name} to {value!r}; expected {_words(hints[name])}")
        out[name] = tuple(value) if isinstance(value, list) else value
    return out


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool):
        return isinstance(value, hint)
    if origin is tuple and isinstance(value, (list, tuple)):
        each = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        return len(each) == len(value) and all(_fits(v, h) for v, h in zip(value, each, strict=True))
    if origin is tuple:
        return False
    if origin is Mapping or type(None) in inner:
        return isinstance(value, Mapping)
    return True  # a dataclass of its own: its table is checked by itself


def _words(hint: Any) -> str:
    simple = {float: "a number", int: "a whole number", str: "text in quotes", bool: "true or false"}
    inner = get_args(hint)
    if get_origin(hint) is not tuple:
        return simple.get(hint, "a table")
    return f"a list of {'' if inner[-1] is Ellipsis else f'{len(inner)}, '}each {_words(inner[0])}"
