"""Which way round is it? Told by the sides that organs lie on, and where a network goes by these, by what they don't hide.

A network that tells liver from spleen by their sides calls the liver of a mirrored image spleen, so its labels lie in
the usual order from right to left. It cannot hide on which side most of both lies, nor what is behind or below what: the
liver outweighs the spleen and reaches the front, spleen and kidneys lie along the back; lungs lie above the liver, it and
the spleen above the kidneys.
"""

from __future__ import annotations

from collections.abc import Mapping

from slice3d.findings import Finding

_SIDE_MARGIN_MM = 10.0
_TURNED = "mirrored or back to front"
_UPSIDE = "upside down"

# structure, structure, world axis, mm that the first has to lie further back or down, which way, what the image may be
_USUALLY = (
    ("liver", "kidney_right", 2, 20.0, "below", _UPSIDE),
    ("lung_right", "liver", 2, 20.0, "below", _UPSIDE),
    ("lung_left", "liver", 2, 20.0, "below", _UPSIDE),
    ("liver", "spleen", 1, 10.0, "behind", _TURNED),
    ("liver", "kidney_right", 1, 10.0, "behind", _TURNED),
    ("liver", "kidney_left", 1, 10.0, "behind", _TURNED),
    ("spleen", "kidney_left", 2, 20.0, "below", _UPSIDE),
)


# (structure, structure, world axis, what it means when the first does not lie further along the axis)
_ORDER = (
    ("liver", "spleen", 0, "the liver lies left of the spleen"),
    ("kidney_right", "kidney_left", 0, "the right kidney lies left of the left one"),
    ("lung_right", "lung_left", 0, "the right lung lies left of the left one"),
    ("lung_right", "kidney_right", 2, "the lung lies below the kidney"),
    ("lung_left", "kidney_left", 2, "the lung lies below the kidney"),
    ("liver", "body", 0, "the liver lies left of the middle of the body"),
    ("cerebral_white_matter_right", "cerebral_white_matter_left", 0, "the right hemisphere lies left of the left one"),
    ("thalamus_right", "thalamus_left", 0, "the right thalamus lies left of the left one"),
    ("thalamus_left", "cerebellum_left", 2, "the cerebellum lies above the thalamus"),
    ("thalamus_left", "cerebellum_left", 1, "the cerebellum lies in front of the thalamus"),
    ("hippocampus_anterior", "hippocampus_posterior", 1, "the anterior hippocampus lies behind the posterior one"),
)


def check_sides(centres: Mapping[str, tuple[float, float, float]]) -> list[Finding]:
    """A finding when organs lie on the wrong side of each other. centres: structure → world RAS mm."""
    for first, second, axis, what in _ORDER:
        if first in centres and second in centres:
            ahead = centres[first][axis] - centres[second][axis]
            if ahead < -_SIDE_MARGIN_MM:
                cause = ("mirrored (or this is situs inversus)", "back to front", "upside down")[axis]
                text = (
                    f"{what} by {-ahead:.0f} mm: the image's orientation is wrong, or it is {cause}; "
                    "check left and right before use"
                )
                details = {"first": first, "second": second, "distance_mm": round(-ahead, 1)}
                return [Finding("orientation-implausible", text, severity="error", details=details)]
    return []


def check_orientation(
    centres: Mapping[str, tuple[float, float, float]], volumes_ml: Mapping[str, float]
) -> list[Finding]:
    """At most one finding: names against their sides first, then what names don't hide. As `check_places` takes it."""
    return check_sides(centres) or check_places(centres, volumes_ml)


def check_places(
    centres: Mapping[str, tuple[float, float, float]], volumes_ml: Mapping[str, float] | None = None
) -> list[Finding]:
    """A warning when what was named liver, spleen, lungs and kidneys lies as in few people; nothing where one of two is missing.

    centres: structure → world RAS mm. volumes_ml: structure → volume, of all that was found.
    """
    pair = [(centres[n][0], (volumes_ml or {}).get(n, 0.0)) for n in ("liver", "spleen") if n in centres]
    if "body" in centres and len(pair) == 2 and all(ml > 0 for _, ml in pair):
        off = sum(x * ml for x, ml in pair) / sum(ml for _, ml in pair) - centres["body"][0]
        if off < 0:
            seen = f"most of what was named liver and spleen lies left, {-off:.0f} mm from the middle of the body on average"
            return [_finding(seen, "mirrored", {"left_mm": round(-off, 1)})]
    for first, second, axis, margin, where, what in _USUALLY:
        if first in centres and second in centres:
            off = centres[second][axis] - centres[first][axis]
            if off > margin:
                seen = f"what was named {first} lies {off:.0f} mm {where} what was named {second}"
                return [_finding(seen, what, {"first": first, "second": second, "distance_mm": round(off, 1)})]
    return []


def _finding(seen: str, what: str, details: dict[str, str | float]) -> Finding:
    others = "an organ displaced" if what == _UPSIDE else "situs inversus, a very large spleen, an organ displaced"
    text = (
        f"{seen}, unlike in most people: the image may be {what}, or its header wrong about orientation (or this is "
        f"{others} or cut off); check left and right, front and top against the source before use"
    )
    return Finding("orientation-implausible", text, details=details)
