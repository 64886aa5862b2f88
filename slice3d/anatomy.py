"""The structures slice3d knows by name: what people call them, SNOMED CT code, colour, and how big they plausibly are.

Codes are SNOMED CT concept identifiers as used in DICOM PS3.16 (CID 7140 and others). Volume ranges are wide limits for
adults: outside them a result deserves a second look, inside them it is not proven right. Colours are display colours.
"""

from __future__ import annotations

import difflib
import re
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
    thinnest_mm: about the least thickness in adults; 0 where nothing is known.
    """

    name: str
    code: str
    meaning: str
    color: tuple[int, int, int]
    kind: Kind = "organ"
    side: Side = ""
    aliases: tuple[str, ...] = ()
    volume_ml: tuple[float, float] | None = None
    thinnest_mm: float = 0.0


@dataclass(frozen=True)
class Group:
    """A name for several structures together, e.g. `lungs`."""

    name: str
    members: tuple[str, ...]
    aliases: tuple[str, ...] = ()


_TABLE: tuple[Structure, ...] = (
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
        "kidney_left", "64033007", "Kidney", (232, 190, 70), side="left", aliases=("left kidney",), volume_ml=(60, 400)
    ),
    Structure(
        "kidney_right",
        "64033007",
        "Kidney",
        (86, 180, 200),
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
    Structure("aorta", "15825003", "Aorta", (214, 39, 40), "vessel", volume_ml=(20, 500), thinnest_mm=12),
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

# the further structures of published label schemes: name → (code, meaning); ribs and vertebrae by number
_ORGANS = {
    "gallbladder": ("28231008", "Gallbladder", (139, 150, 98)),
    "stomach": ("69695003", "Stomach", (216, 132, 105)),
    "pancreas": ("15776009", "Pancreas", (249, 180, 111)),
    "esophagus": ("32849002", "Esophagus", (211, 171, 143)),
    "trachea": ("44567001", "Trachea", (182, 228, 255)),
    "thyroid_gland": ("69748006", "Thyroid", (62, 162, 114)),
    "small_bowel": ("30315005", "Small intestine", (205, 167, 142)),
    "duodenum": ("38848004", "Duodenum", (255, 253, 229)),
    "colon": ("71854001", "Colon", (204, 168, 143)),
    "urinary_bladder": ("89837001", "Bladder", (222, 154, 132)),
    "prostate": ("41216001", "Prostate", (230, 158, 140)),
    "heart": ("80891009", "Heart", (206, 110, 84)),
    "spinal_cord": ("2748008", "Spinal cord", (244, 214, 49)),
}
_PAIRED_ORGANS = {
    "adrenal_gland": ("23451007", "Adrenal gland", (244, 186, 150)),
    "lung_upper_lobe": ("45653009", "Upper lobe of lung", (172, 138, 115)),
    "lung_lower_lobe": ("90572001", "Lower lobe of lung", (224, 186, 162)),
}
_VESSELS = {
    "pulmonary_vein": ("122972007", "Pulmonary vein", (186, 77, 64)),
    "brachiocephalic_trunk": ("12691009", "Brachiocephalic trunk", (196, 121, 79)),
    "superior_vena_cava": ("48345005", "Superior vena cava", (0, 151, 206)),
    "inferior_vena_cava": ("64131007", "Inferior vena cava", (0, 138, 190)),
    "portal_vein_and_splenic_vein": ("32764006", "Portal vein", (0, 119, 170)),
}
_PAIRED_VESSELS = {
    "subclavian_artery": ("36765005", "Subclavian artery", (216, 101, 79)),
    "common_carotid_artery": ("32062004", "Common carotid artery", (210, 90, 75)),
    "brachiocephalic_vein": ("8887007", "Brachiocephalic vein", (0, 161, 196)),
    "iliac_artery": ("73634005", "Common iliac artery", (216, 113, 90)),
    "iliac_vena": ("46027005", "Common iliac vein", (20, 141, 196)),
}
_BONES = {
    "sacrum": ("54735007", "Sacrum", (212, 188, 102)),
    "skull": ("89546000", "Skull", (241, 213, 144)),
    "sternum": ("56873002", "Sternum", (244, 217, 154)),
    "costal_cartilages": ("50016007", "Costal cartilage", (111, 184, 210)),
}
_PAIRED_BONES = {
    "humerus": ("85050009", "Humerus", (205, 179, 108)),
    "scapula": ("79601000", "Scapula", (212, 188, 112)),
    "clavicula": ("51299004", "Clavicle", (222, 198, 101)),
    "femur": ("71341001", "Femur", (255, 238, 170)),
    "hip": ("29836001", "Hip", (218, 195, 130)),
}
_PAIRED_MUSCLES = {
    "gluteus_maximus": ("206007", "Gluteus maximus muscle", (188, 95, 76)),
    "gluteus_medius": ("78333006", "Gluteus medius muscle", (178, 105, 76)),
    "gluteus_minimus": ("71616004", "Muscle", (168, 85, 66)),
    "autochthon": ("44947003", "Erector spinae muscle", (171, 85, 68)),
    "iliopsoas": ("68455001", "Iliopsoas muscle", (198, 105, 86)),
}
_VERTEBRAE = {
    "C1": "14806007", "C2": "39976000", "C3": "113205007", "C4": "5329002", "C5": "36978003", "C6": "36054005",
    "C7": "87391001", "T1": "64864005", "T2": "53733008", "T3": "1626008", "T4": "73071006", "T5": "56401006",
    "T6": "45296009", "T7": "62487009", "T8": "11068009", "T9": "82687006", "T10": "7610001", "T11": "12989004",
    "T12": "23215003", "L1": "66794005", "L2": "14293000", "L3": "36470004", "L4": "11994002", "L5": "49668003",
}  # fmt: skip
_BRAIN = {
    "brain": ("12738006", "Brain", (250, 250, 225)),
    "third_ventricle": ("49841001", "Third ventricle", (88, 106, 215)),
    "fourth_ventricle": ("35918002", "Fourth ventricle", (70, 96, 205)),
    "brainstem": ("119238007", "Brain stem", (85, 188, 255)),
}
_PAIRED_BRAIN = {
    "cerebral_white_matter": ("68523003", "Cerebral white matter", (245, 245, 245)),
    "cerebral_cortex": ("40146001", "Cerebral cortex", (205, 62, 78)),
    "lateral_ventricle": ("66720007", "Lateral ventricle", (120, 18, 134)),
    "inferior_lateral_ventricle": ("53118009", "Inferior horn of lateral ventricle", (196, 58, 250)),
    "cerebellum_white_matter": ("33060004", "Cerebellar white matter", (220, 248, 164)),
    "cerebellum_cortex": ("25991003", "Cerebellar cortex", (230, 148, 34)),
    "thalamus": ("42695009", "Thalamus", (0, 118, 14)),
    "caudate": ("11000004", "Caudate nucleus", (122, 186, 220)),
    "putamen": ("89278009", "Putamen", (236, 13, 176)),
    "pallidum": ("14738005", "Globus pallidus", (12, 48, 255)),
    "hippocampus": ("5366008", "Hippocampus", (220, 216, 20)),
    "amygdala": ("4958002", "Amygdala", (103, 255, 255)),
    "accumbens": ("427667007", "Nucleus accumbens", (255, 165, 0)),
    "cerebellum": ("113305005", "Cerebellum", (230, 148, 34)),
    "ventral_diencephalon": ("", "", (165, 42, 42)),
}
_BRAIN_ML = {
    "brain": (800, 2000), "third_ventricle": (0.2, 8), "fourth_ventricle": (0.4, 7), "brainstem": (12, 35),
    "cerebral_white_matter": (120, 380), "cerebral_cortex": (130, 380), "lateral_ventricle": (1.5, 90),
    "cerebellum": (40, 100), "thalamus": (4, 12), "caudate": (1.8, 7), "putamen": (2.2, 8.5), "pallidum": (0.7, 3.2),
    "hippocampus": (1.6, 6.5), "amygdala": (0.6, 3), "accumbens": (0.15, 1.3), "ventral_diencephalon": (2, 7),
}  # fmt: skip
"""ml per side: wide limits around what FreeSurfer measures in adults of 18 to 94 years (Potvin et al. 2016,
doi:10.1016/j.neuroimage.2016.05.016; Dima et al. 2022, doi:10.1002/hbm.25320; whole brain and ventricles: Bethlehem et
al. 2022, doi:10.1038/s41586-022-04554-y)."""
_Entries = Mapping[str, tuple[str, str, tuple[int, int, int]]]


def _single(entries: _Entries, kind: Kind) -> tuple[Structure, ...]:
    known = {s.name for s in _TABLE}
    return tuple(
        Structure(name, *entry, kind, volume_ml=_BRAIN_ML.get(name))
        for name, entry in entries.items()
        if name not in known
    )


def _pairs(entries: _Entries, kind: Kind) -> tuple[Structure, ...]:
    sides: tuple[Side, Side] = ("left", "right")
    known = {s.name for s in _TABLE}
    return tuple(
        Structure(f"{name}_{side}", code, meaning, shade(color, side), kind, side, volume_ml=_BRAIN_ML.get(name))
        for name, (code, meaning, color) in entries.items()
        for side in sides
        if f"{name}_{side}" not in known
    )


def shade(color: tuple[int, int, int], side: Side) -> tuple[int, int, int]:
    """The right one of a pair a little darker, so that the two can be told apart where they meet."""
    return color if side != "right" else (color[0] * 9 // 10, color[1] * 9 // 10, color[2] * 9 // 10)


def _spine_and_ribs() -> tuple[Structure, ...]:
    out = [
        Structure(
            f"vertebrae_{level}", code, f"{level} vertebra", (226 + 14 * (n % 2), 202 + 14 * (n % 2), 134), "bone"
        )
        for n, (level, code) in enumerate(_VERTEBRAE.items())
    ]
    sides: tuple[Side, Side] = ("left", "right")
    for side in sides:
        for number in range(1, 13):
            tint = (253 - 12 * (number % 2), 232 - 14 * (number % 2), 158 - 8 * (number % 2))
            out.append(Structure(f"rib_{side}_{number}", "113197003", "Rib", shade(tint, side), "bone", side))
    return tuple(out)


_TABLE = (
    *_TABLE,
    *_single(_ORGANS, "organ"),
    *_pairs(_PAIRED_ORGANS, "organ"),
    Structure("lung_middle_lobe_right", "72481006", "Middle lobe of right lung", (202, 164, 140), side="right"),
    Structure("atrial_appendage_left", "33626005", "Left auricular appendage", (190, 98, 84), side="left"),
    *_single(_VESSELS, "vessel"),
    *_pairs(_PAIRED_VESSELS, "vessel"),
    *_single(_BONES, "bone"),
    *_pairs(_PAIRED_BONES, "bone"),
    *_spine_and_ribs(),
    *_pairs(_PAIRED_MUSCLES, "tissue"),
    *_single(_BRAIN, "brain"),
    *_pairs(_PAIRED_BRAIN, "brain"),
    *_single({"hippocampus_anterior": _PAIRED_BRAIN["hippocampus"]}, "brain"),
    *_single({"hippocampus_posterior": ("5366008", "Hippocampus", (200, 150, 20))}, "brain"),
)

_BRAIN_ALIASES = {
    "cerebral_white_matter": ("white matter",),
    "cerebral_cortex": ("cortex", "grey matter", "gray matter"),
    "lateral_ventricle": ("lateral ventricles",),
    "hippocampus": ("hippocampi",),
    "amygdala": ("amygdalae",),
    "thalamus": ("thalami",),
    "caudate": ("caudate nucleus",),
    "pallidum": ("globus pallidus",),
}
_GROUPS = (
    Group("lungs", ("lung_left", "lung_right"), ("lung",)),
    Group("kidneys", ("kidney_left", "kidney_right"), ("kidney",)),
    Group(
        "ventricles",
        ("lateral_ventricle_left", "lateral_ventricle_right", "third_ventricle", "fourth_ventricle"),
        ("ventricle", "ventricular system"),
    ),
    *(Group(name, (f"{name}_left", f"{name}_right"), _BRAIN_ALIASES.get(name, ())) for name in _PAIRED_BRAIN),
)

# structure → structures that lie inside it and belong to it
CONTAINS: dict[str, tuple[str, ...]] = {"liver": ("liver_tumor",)}

STRUCTURES: dict[str, Structure] = {s.name: s for s in _TABLE}
GROUPS: dict[str, Group] = {g.name: g for g in _GROUPS}

_GREY = (200, 200, 200)


def _normal(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


_ALIASES: dict[str, str] = {}
_ENTRIES: tuple[Structure | Group, ...] = (*_TABLE, *_GROUPS)
for _entry in _ENTRIES:
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


def label_name(name: str) -> str:
    """The table's name for a label of somebody's data set; others in lower case, of letters, digits and `_` alone."""
    return re.sub(r"\W+", "_", canonical(name)).strip("_") or "structure"


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
    """Display colour, RGB 0…255, of a group its first member's; grey for unknown structures."""
    known = canonical(name)
    structure = STRUCTURES.get(GROUPS[known].members[0] if known in GROUPS else known)
    return structure.color if structure else _GREY


def suggest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'liver'?"` when something in `known`, or an alias of it, is spelt alike, else an empty string."""
    known = list(known)
    spellings = {alias: target for alias, target in _ALIASES.items() if target in known}
    spellings.update({_normal(target): target for target in known})
    close = difflib.get_close_matches(_normal(name), list(spellings), n=1, cutoff=0.6)
    return f"; did you mean {spellings[close[0]]!r}?" if close else ""


def resolve(name: str, available: Iterable[str]) -> tuple[str, ...]:
    """The structures out of `available` that `name` asks for. Raises `InputError` with the nearest spelling."""
    available = list(available)
    wanted = canonical(name)
    for spelt in (name, wanted, label_name(name)):  # as it is said first, whatever the table would call it
        if spelt in available:
            return (spelt,)
    parts = members(wanted)
    if all(part in available for part in parts):
        return parts
    known = sorted({*available, *(g.name for g in _GROUPS if all(m in available for m in g.members))})
    raise InputError(f"no structure {name!r}; available: {', '.join(known)}{suggest(name, known)}")
