"""How bright a tissue is in an MR sequence: textbook signal equations with typical relaxation times at 3 T.

White and grey matter and fluid: Wansapura et al. 1999 (J Magn Reson Imaging 9:531); the rest are usual textbook values.
Good for test images whose contrast is physical, not for quantitative MR.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp


@dataclass(frozen=True)
class Relaxation:
    """T1 and T2 in ms, proton density relative to water."""

    t1_ms: float
    t2_ms: float
    density: float


@dataclass(frozen=True)
class MrSequence:
    """Repetition, echo and inversion time in ms (inversion 0: none)."""

    tr_ms: float
    te_ms: float
    ti_ms: float = 0.0


TISSUES: dict[str, Relaxation] = {
    "white": Relaxation(832, 80, 0.70),
    "grey": Relaxation(1331, 110, 0.82),
    "fluid": Relaxation(4000, 1500, 1.0),
    "thalamus": Relaxation(1080, 85, 0.77),
    "striatum": Relaxation(1220, 85, 0.80),
    "pallidum": Relaxation(930, 60, 0.74),
    "brainstem": Relaxation(950, 85, 0.72),
    "muscle": Relaxation(1400, 45, 0.75),
    "fat": Relaxation(380, 70, 0.95),
    "skin": Relaxation(600, 60, 0.75),
    "marrow": Relaxation(450, 60, 0.6),
    "bone": Relaxation(1000, 1, 0.1),
    "vessel": Relaxation(1650, 150, 0.3),
    "cartilage": Relaxation(1200, 40, 0.6),
}
SEQUENCES: dict[str, MrSequence] = {
    "t1": MrSequence(tr_ms=2300, te_ms=3, ti_ms=900),
    "t2": MrSequence(tr_ms=4500, te_ms=95),
    "flair": MrSequence(tr_ms=9000, te_ms=95, ti_ms=2500),
    "pd": MrSequence(tr_ms=3000, te_ms=15),
}


def signal(tissue: Relaxation, sequence: MrSequence) -> float:
    """Magnitude of the spin-echo (or inversion-recovery) signal, 0…1."""
    recovered = 1.0 + exp(-sequence.tr_ms / tissue.t1_ms) - 2.0 * exp(-sequence.ti_ms / tissue.t1_ms)
    if sequence.ti_ms <= 0:
        recovered = 1.0 - exp(-sequence.tr_ms / tissue.t1_ms)
    return abs(tissue.density * recovered * exp(-sequence.te_ms / tissue.t2_ms))
