"""The structures slice3d knows by name: what people call them, SNOMED CT code, colour, and how big they plausibly are.

Codes are SNOMED CT concept identifiers as used in DICOM PS3.16 (CID 7140 and others). Volume ranges are wide limits for
adults: outside them a result deserves a second look, inside them it is not proven right. Colours are display colours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from slice3d.errors import InputError

Kind = Literal["organ", "bone", "vessel", "lesion", "tissue", "brain", "body"]
Side = Literal["", "left", "right"]


@dataclass(frozen=True)
class Structure:
    """One anatomical structure.

    code: SNOMED CT concept identifier of the structure without laterality ("" where there is none). meaning: its
    English name in the code's sense. color: RGB 0…255. volume_ml: (lowest, highest) plausible adult volume or None.
    """

    name: str
    code: str
    meaning: str
    color: tuple[int, int, int]
    kind: Kind = "organ"
    side: Side = ""
    aliases: tuple[str, ...] = ()
    volume_ml: tuple[float, float] | None = None


@dataclass(frozen=True)
class Group:
    """A name for several structures together, e.g. `lungs`."""

    name: str
    members: tuple[str, ...]
    aliases: tuple[str, ...] = ()


_TABLE = (
    Structure(
        "body",
        "38266002",
        "Entire body",
        (177, 122, 101),
        "body",
        aliases=("skin", "outline"),
        volume_ml=(2000, 250000),
    ),
    Structure("liver", "10200004", "Liver", (221, 130, 101), aliases=("hepar",), volume_ml=(700, 3500)),
    Structure("spleen", "78961009", "Spleen", (157, 108, 162), volume_ml=(40, 1200)),
    Structure(
        "kidney_left", "64033007", "Kidney", (185, 102, 83), side="left", aliases=("left kidney",), volume_ml=(60, 400)
    ),
    Structure(
        "kidney_right",
        "64033007",
        "Kidney",
        (200, 112, 90),
        side="right",
        aliases=("right kidney",),
        volume_ml=(60, 400),
    ),
    Structure(
        "lung_left", "39607008", "Lung", (197, 165, 145), side="left", aliases=("left lung",), volume_ml=(500, 5000)
    ),
    Structure(
        "lung_right", "39607008", "Lung", (210, 180, 160), side="right", aliases=("right lung",), volume_ml=(500, 5500)
    ),
    Structure(
        "bone", "272673000", "Bone", (241, 214, 145), "bone", aliases=("bones", "skeleton"), volume_ml=(200, 8000)
    ),
    Structure("aorta", "15825003", "Aorta", (224, 97, 76), "vessel", volume_ml=(20, 500)),
    Structure(
        "liver_tumor",
        "126851005",
        "Neoplasm of liver",
        (144, 238, 144),
        "lesion",
        aliases=("liver tumour", "liver lesion", "hepatic tumor", "hepatic tumour"),
        volume_ml=(0, 2500),
    ),
    Structure("tumor", "108369006", "Neoplasm", (144, 238, 144), "lesion", aliases=("tumour", "gtv", "lesion")),
    Structure("sarcoma", "2424003", "Sarcoma", (144, 238, 144), "lesion", aliases=("soft tissue sarcoma",)),
)

_GROUPS = (
    Group("lungs", ("lung_left", "lung_right"), ("lung",)),
    Group("kidneys", ("kidney_left", "kidney_right"), ("kidney",)),
)

# structure → structures that lie inside it and belong to it
CONTAINS: dict[str, tuple[str, ...]] = {"liver": ("liver_tumor",)}

STRUCTURES: dict[str, Structure] = {s.name: s for s in _TABLE}
GROUPS: dict[str, Group] = {g.name: g for g in _GROUPS}

_GREY = (200, 200, 200)


def _normal(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


_ALIASES: dict[str, str] = {}
for _entry in (*_TABLE, *_GROUPS):
    for _alias in (_entry.name, *_entry.aliases):
        _ALIASES[_normal(_alias)] = _entry.name


def canonical(name: str) -> str:
    """The table's name for what people say (`"Liver tumour"` → `"liver_tumor"`); unknown names in snake case."""
    plain = _normal(name)
    if plain in _ALIASES:
        return _ALIASES[plain]
    words = plain.split()
    if len(words) > 1 and words[0] in ("left", "right"):
        turned = " ".join([*words[1:], words[0]])
        if turned in _ALIASES:
            return _ALIASES[turned]
    return plain.replace(" ", "_")


def members(name: str) -> tuple[str, ...]:
    """The structures a name stands for: those of a group, or the one itself."""
    name = canonical(name)
    return GROUPS[name].members if name in GROUPS else (name,)


def standard_groups(names: Mapping[int, str]) -> dict[str, tuple[int, ...]]:
    """Structures that overlap others, for a label map with these names: what their union in label values is.

    A liver holds its tumour, the body holds everything, `lungs` are both lungs: where labels exclude one another, as in
    most label maps, the whole is the union of its own label and those inside it.
    """
    by_name = {canonical(name): (value,) for value, name in names.items()}
    groups: dict[str, tuple[int, ...]] = {}
    for whole, parts in CONTAINS.items():
        inside = [value for part in parts for value in by_name.get(part, ())]
        if whole in by_name and inside:
            groups[whole] = (*by_name[whole], *inside)
    if "body" in by_name and len(names) > 1:
        groups["body"] = tuple(sorted(names))
    for group in GROUPS.values():
        if group.name not in by_name and all(member in by_name for member in group.members):
            groups[group.name] = tuple(v for m in group.members for v in groups.get(m, by_name[m]))
    return groups


def color(name: str) -> tuple[int, int, int]:
    """Display colour, RGB 0…255; grey for unknown structures."""
    structure = STRUCTURES.get(canonical(name))
    return structure.color if structure else _GREY


def suggest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'liver'?"` when something in `known` is spelt alike, else an empty string."""
    close = difflib.get_close_matches(canonical(name), list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def resolve(name: str, available: Iterable[str]) -> tuple[str, ...]:
    """The structures out of `available` that `name` asks for. Raises `InputError` with the nearest spelling."""
    available = list(available)
    wanted = canonical(name)
    if wanted in available:
        return (wanted,)
    parts = members(wanted)
    if all(part in available for part in parts):
        return parts
    known = [*available, *(g.name for g in _GROUPS if all(m in available for m in g.members))]
    raise InputError(f"no structure {name!r}; available: {', '.join(sorted(known))}{suggest(name, known)}")
