"""Which way round is it? Evidence that does not lean on the side that a network expects an organ on.

A network that tells liver from spleen by their sides calls the liver of a mirrored image spleen, so its labels lie in
the usual order from right to left. It cannot hide on which side most of both lies, nor what is behind or below what: the
liver outweighs the spleen and reaches the front, spleen and kidneys lie along the back; lungs lie above the liver, it and
the spleen above the kidneys.
"""

from __future__ import annotations

from collections.abc import Mapping

from slice3d.findings import Finding

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
