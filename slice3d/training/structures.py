"""Which voxel values mean what while training: the torso classes, and labels that are only partly known.

A label volume holds class numbers, and above 249 *partial* labels: what a rule can tell without knowing the organ. A
voxel that is surely inside the body, but in no known organ of it, trains the network only that it must be one of the
structures allowed there (marginal likelihood, Shi et al. 2021, doi:10.1016/j.media.2021.101979).
"""

from __future__ import annotations

BACKGROUND = 0
LABELS: dict[int, str] = {
    1: "liver",
    2: "spleen",
    3: "kidney_left",
    4: "kidney_right",
    5: "lung_left",
    6: "lung_right",
    7: "bone",
    8: "aorta",
    9: "body",
    10: "liver_tumor",
}
CONTEXT: dict[int, str] = {11: "heart", 12: "gut", 13: "vessel", 14: "muscle", 15: "other"}
"""What else lies in a body, told apart while training only: a network that knows the stomach does not call it spleen."""
VALUES: dict[str, int] = {name: value for value, name in (LABELS | CONTEXT).items()}
GROUPS: dict[str, tuple[int, ...]] = {
    "body": tuple(LABELS),
    "liver": (1, 10),
    "lungs": (5, 6),
    "kidneys": (3, 4),
}

_BODY = (VALUES["body"], *CONTEXT)

IGNORE = 255
SOFT_TISSUE = 254
SOFT_TISSUE_OR_BONE = 253
IN_BODY = 252
NOT_LUNG_OR_BONE = 251
NO_ORGAN = 250
PARTIAL: dict[int, tuple[int, ...]] = {
    IGNORE: tuple(range(NO_ORGAN)),  # whatever a data set names
    SOFT_TISSUE: (1, 2, 3, 4, 8, 10, *_BODY),
    SOFT_TISSUE_OR_BONE: (1, 2, 3, 4, 7, 8, 10, *_BODY),
    IN_BODY: tuple(VALUES.values()),
    NOT_LUNG_OR_BONE: (0, 1, 2, 3, 4, 8, 10, *_BODY),
    NO_ORGAN: _BODY,
}
"""Partial label → classes that are possible there."""

_TOTALSEGMENTATOR: dict[str, tuple[int, ...]] = {
    "spleen": (1,),
    "kidney_right": (2, 24),
    "kidney_left": (3, 23),
    "liver": (5,),
    "lung_left": (10, 11),
    "lung_right": (12, 13, 14),
    "bone": (*range(25, 51), *range(69, 79), *range(91, 117)),
    "aorta": (52,),
    "heart": (51, 61),
    "gut": (6, 15, 18, 19, 20),
    "vessel": (*range(53, 61), *range(62, 69)),
    "muscle": tuple(range(80, 90)),
    "other": (4, 7, 8, 9, 16, 17, 21, 22, 79, 90, 117),
}
"""TotalSegmentator v2 class numbers; kidney cysts count as kidney, costal cartilage (117) is no bone."""

_SPL: dict[str, tuple[int, ...]] = {
    "liver": (3, 24, 25, 151, 152, 153),
    "spleen": (4,),
    "kidney_right": (51,),
    "kidney_left": (52,),
    "bone": (*range(409, 413), *range(501, 506), 299, 600, *range(686, 693)),
    "aorta": (7,),
    "gut": (9, 13),
    "vessel": (8, 12, *range(16, 23), 29, 117, 126, 128, 129),
    "muscle": (131, 137, 231, 237),
    "body": (32, 133, 135, 136, 233, 235, 236),
    "other": (6, 10, 111, 112),
}
"""SPL abdominal atlas label numbers (dataKey); the vessels inside the liver count as liver."""

SCHEMES: dict[str, dict[str, tuple[int, ...]]] = {"totalsegmentator-v2": _TOTALSEGMENTATOR, "spl-abdominal": _SPL}
