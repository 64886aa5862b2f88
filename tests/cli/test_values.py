from __future__ import annotations

import pytest

from slice3d.cli.values import gib, millimetres, super_resolution
from slice3d.errors import InputError


@pytest.mark.parametrize(
    ("text", "value"), [("8GiB", 8.0), ("8", 8.0), (" 512 MiB ", 0.5), ("1073741824000MB", 1073741824000e6 / 2**30)]
)
def test_memory(text: str, value: float) -> None:
    assert gib(text) == pytest.approx(value)
    assert gib(None) is None


@pytest.mark.parametrize("text", ["", "lots", "-3GiB", "0", "8 TB", "nan"])
def test_no_memory(text: str) -> None:
    with pytest.raises(InputError, match="8GiB"):
        gib(text)


def test_spacing() -> None:
    assert millimetres("0.8,0.8,3") == (0.8, 0.8, 3.0)
    assert millimetres(None) is None
    for text in ("1,2", "a,b,c", "1;2;3", ""):
        with pytest.raises(InputError, match="three numbers"):
            millimetres(text)


def test_how_to_superresolve_needs_the_wish_to() -> None:
    with pytest.raises(InputError, match="add --superres"):
        super_resolution(False, 2.0, None)
    assert super_resolution(False, None, None) is None
    asked = super_resolution(True, 2.0, "bspline")
    assert asked is not None
    assert (asked.spacing_mm, asked.method) == (2.0, "bspline")
