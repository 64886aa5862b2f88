"""How good a super-resolved volume is, with and without a truth to compare with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.superres import interpolate
from slice3d.superres.consistency import enforce
from slice3d.superres.profile import SliceOperator, slice_operator

Lines = Callable[[NDArray[np.float32], SliceOperator], NDArray[np.float32]]
# Fewer slices than this leave too few after every second one is taken away.
MIN_HOLD_OUT = 9


def body_mask(data: NDArray[Any], *, ct: bool) -> NDArray[np.bool_]:
    """(i, j, k) the largest object and what it encloses slice by slice along the last axis.

    ct: above −400 HU; otherwise above a quarter of Otsu's two-class mean (air is dark in MR). Holes are filled, so that
    lungs belong to the body.
    """
    from scipy import ndimage

    if ct:
        threshold = -400.0
    else:
        from skimage.filters import threshold_otsu

        threshold = 0.5 * float(threshold_otsu(np.asarray(data, dtype=np.float32)[::2, ::2, ::2]))  # type: ignore[no-untyped-call]
    solid = ndimage.binary_opening(np.asarray(data) > threshold, iterations=1)
    labels, count = ndimage.label(solid)
    if count == 0:
        return np.ones(data.shape, dtype=bool)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    body: NDArray[np.bool_] = labels == int(np.argmax(sizes))
    for k in range(body.shape[-1]):
        body[..., k] = ndimage.binary_fill_holes(body[..., k])
    return body


def sharpness(fine: NDArray[Any], in_plane_mm: tuple[float, float], operator: SliceOperator) -> float:
    """Sharpness along the normal divided by sharpness within the plane; 1 is isotropic, interpolation is far below.

    fine: (a, b, m). Sharpness is the Fourier power in the octave above the slices' Nyquist frequency, as a share of the
    power in the two octaves below it, of lines under a Hann window.
    """
    nyquist = 0.5 / operator.slice_step_mm
    # every fourth line is plenty for a mean
    along = _share(np.asarray(fine[::4, ::4], dtype=np.float32), operator.step_mm, nyquist)
    within = [
        _share(np.moveaxis(np.asarray(fine[:, ::4, ::4], dtype=np.float32), 0, -1), in_plane_mm[0], nyquist),
        _share(np.moveaxis(np.asarray(fine[::4, :, ::4], dtype=np.float32), 1, -1), in_plane_mm[1], nyquist),
    ]
    mean = float(np.mean([w for w in within if np.isfinite(w)])) if np.isfinite(within).any() else float("nan")
    return along / mean if mean > 0 else float("nan")


def _share(lines: NDArray[np.float32], step_mm: float, nyquist: float) -> float:
    centred = lines - lines.mean(axis=-1, keepdims=True)
    power = np.square(np.abs(np.fft.rfft(centred * np.hanning(lines.shape[-1]).astype(np.float32), axis=-1)))
    mean = power.reshape(-1, power.shape[-1]).mean(axis=0)
    frequency = np.fft.rfftfreq(lines.shape[-1], step_mm)
    above = mean[(frequency > nyquist) & (frequency <= 2 * nyquist)]
    below = mean[(frequency > nyquist / 4) & (frequency <= nyquist)]
    if len(above) == 0 or len(below) == 0 or below.sum() <= 0:
        return float("nan")
    return float(above.sum() / below.sum())


def false_detail(estimate: NDArray[Any], truth: NDArray[Any], step_mm: float, slice_step_mm: float) -> float:
    """High-frequency power along the normal that is not in the truth, as a share of the truth's.

    estimate, truth: (a, b, m). Frequencies above the slices' Nyquist frequency. Per frequency, the part of the estimate
    that is no multiple of the truth (one minus the squared coherence over all lines) counts as false. 0 for the truth
    and for an estimate without detail; the power of noise as strong as the truth's detail is 1."""
    window = np.hanning(truth.shape[-1]).astype(np.float32)
    x = np.fft.rfft(np.asarray(estimate, dtype=np.float32) * window, axis=-1).reshape(-1, truth.shape[-1] // 2 + 1)
    t = np.fft.rfft(np.asarray(truth, dtype=np.float32) * window, axis=-1).reshape(x.shape)
    high = np.fft.rfftfreq(truth.shape[-1], step_mm) > 0.5 / slice_step_mm
    x, t = x[:, high], t[:, high]
    own = np.square(np.abs(t)).sum(axis=0)
    shared = np.square(np.abs((x * t.conj()).sum(axis=0))) / np.maximum(own, 1e-12)
    false = np.square(np.abs(x)).sum(axis=0) - shared
    return float(max(0.0, false.sum()) / max(own.sum(), 1e-12))


def hold_out(
    slices: NDArray[np.float32], operator: SliceOperator, fit: Callable[[NDArray[np.float32], SliceOperator], Lines]
) -> dict[str, float] | None:
    """Take every second slice away, estimate it from the others, and compare with what was acquired.

    fit: trains or prepares the method on the remaining slices. Returns root mean square errors in units of the data for
    the method and for linear interpolation, or None with fewer than 9 slices or where linear interpolation is exact (an
    empty image). The distance bridged is twice the study's
    own: the result itself is better than these figures say, but a method that loses to linear here is not to be
    trusted."""
    count = slices.shape[-1]
    if count < MIN_HOLD_OUT:
        return None
    kept, left = np.arange(0, count, 2), np.arange(1, count - 1, 2)
    profile, z, fine = operator.profile, operator.slices_mm, operator.fine_mm
    half = slice_operator(z[kept], fine, profile)
    missing = slice_operator(z[left], fine, profile)
    known = np.ascontiguousarray(slices[..., kept])
    truth = slices[..., left]
    plain = known @ interpolate.linear(z[kept], z[left]).T.astype(np.float32)
    if np.array_equal(plain, truth):
        return None
    estimated = enforce(fit(known, half)(known, half), known, half)
    return {
        "rmse": _rms(missing.forward(estimated) - truth),
        "rmse_linear": _rms(plain - truth),
        "slices": float(len(left)),
    }


def _rms(difference: NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(np.square(difference, dtype=np.float64))))
