from __future__ import annotations

import pytest

from slice3d import anatomy
from slice3d.errors import InputError

TORSO = ["liver", "spleen", "kidney_left", "kidney_right", "lung_left", "lung_right", "bone", "aorta", "body"]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("Liver", "liver"),
        ("liver tumour", "liver_tumor"),
        ("left kidney", "kidney_left"),
        ("Left-Kidney", "kidney_left"),
        ("lungs", "lungs"),
        ("lung", "lungs"),
        ("Unheard Of", "unheard_of"),
    ],
)
def test_names_as_people_say_them(said: str, meant: str) -> None:
    assert anatomy.canonical(said) == meant


def test_resolves_groups_into_what_is_there() -> None:
    assert anatomy.resolve("kidneys", TORSO) == ("kidney_left", "kidney_right")
    assert anatomy.resolve("LIVER", TORSO) == ("liver",)


def test_unknown_names_get_the_nearest_spelling() -> None:
    with pytest.raises(InputError, match=r"no structure 'livver'; available: .*liver.*did you mean 'liver'\?"):
        anatomy.resolve("livver", TORSO)
    with pytest.raises(InputError, match="lungs"):
        anatomy.resolve("pancreas tail", TORSO)


def test_table_is_consistent() -> None:
    for name, structure in anatomy.STRUCTURES.items():
        assert structure.name == name == anatomy.canonical(name)
        assert structure.code == "" or structure.code.isdigit()
        assert all(0 <= c <= 255 for c in structure.color)
        assert structure.volume_ml is None or structure.volume_ml[0] < structure.volume_ml[1]
        if name.endswith(("_left", "_right")):
            assert structure.side == name.rsplit("_", 1)[1]
    for group in anatomy.GROUPS.values():
        assert all(member in anatomy.STRUCTURES for member in group.members)


def test_no_alias_means_two_things() -> None:
    seen: dict[str, str] = {}
    for entry in [*anatomy.STRUCTURES.values(), *anatomy.GROUPS.values()]:
        for alias in (entry.name, *entry.aliases):
            key = alias.lower().replace("_", " ")
            assert seen.setdefault(key, entry.name) == entry.name


@pytest.mark.parametrize(("typed", "meant"), [("skeletn", "bone"), ("lungz", "lungs"), ("Kidney-lef", "kidney_left")])
def test_what_is_available_is_listed_once_with_the_nearest_spelling(typed: str, meant: str) -> None:
    available = ["bone", "kidney_left", "lung_left", "lung_right", "lungs", "spleen"]
    with pytest.raises(InputError, match=f"did you mean {meant!r}") as caught:
        anatomy.resolve(typed, available)
    assert str(caught.value).count(" lungs,") == 1
