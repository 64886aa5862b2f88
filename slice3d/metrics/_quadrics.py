"""Kernels that fit a plane or a quadric between the inside and the outside voxel centres of a window.

Imported only when a surface is needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.compiled import compiled, compiled_loosely

# What a fit is about: the crossed lattice edges (i, j, k, 2·axis + whether (i, j, k) is inside), which of them, the steps
# of a voxel in mm, and the origin and unit of the fit's coordinates in mm.
Window = tuple[NDArray[np.int16], NDArray[np.int32], NDArray[np.float64], NDArray[np.float64], float]

TERMS = 10  # 1, x, y, z, x², y², z², xy, yz, zx
CHUNK = 256  # crossings whose terms are in memory at a time
SAMPLES = (64, 320)  # crossings that are tried before all of them


@compiled_loosely
def _rows(out: NDArray[np.float64], window: Window, first: int, last: int) -> None:
    """out[:, 2c], out[:, 2c + 1]: the terms at both ends of crossing first + c, positive where rightly placed."""
    ends, chosen, steps, middle, size = window
    for c in range(last - first):
        end = ends[chosen[first + c]]
        axis = end[3] >> 1
        i, j, k = float(end[0]), float(end[1]), float(end[2])
        side = -1.0 if end[3] & 1 else 1.0
        x = (steps[0, 0] * i + steps[0, 1] * j + steps[0, 2] * k - middle[0]) / size
        y = (steps[1, 0] * i + steps[1, 1] * j + steps[1, 2] * k - middle[1]) / size
        z = (steps[2, 0] * i + steps[2, 1] * j + steps[2, 2] * k - middle[2]) / size
        for n in range(2 * c, 2 * c + 2):
            out[0, n] = side
            out[1, n] = side * x
            out[2, n] = side * y
            out[3, n] = side * z
            out[4, n] = side * x * x
            out[5, n] = side * y * y
            out[6, n] = side * z * z
            out[7, n] = side * x * y
            out[8, n] = side * y * z
            out[9, n] = side * z * x
            side = -side
            x += steps[0, axis] / size
            y += steps[1, axis] / size
            z += steps[2, axis] / size


@compiled_loosely
def _values(rows: NDArray[np.float64], q: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    """out = rows·q."""
    for i in range(len(out)):
        v = 0.0
        for a in range(len(q)):
            v += rows[a, i] * q[a]
        out[i] = v


@compiled_loosely
def _add(
    rows: NDArray[np.float64],
    w: NDArray[np.float64],
    v: NDArray[np.float64],
    work: NDArray[np.float64],
    h: NDArray[Any],
    g: NDArray[np.float64],
) -> None:
    """h += Σ w·row·rowᵀ, the lower triangle, and g += Σ v·row."""
    n = len(w)
    for a in range(len(g)):
        s = 0.0
        for i in range(n):
            work[i] = w[i] * rows[a, i]
            s += v[i] * rows[a, i]
        g[a] += s
        for b in range(a + 1):
            s = 0.0
            for i in range(n):
                s += work[i] * rows[b, i]
            h[a, b] += s


@compiled_loosely
def _hinge(value: NDArray[np.float64], move: NDArray[np.float64], t: float) -> float:
    s = 0.0
    for i in range(len(value)):
        r = max(1.0 - value[i] - t * move[i], 0.0)
        s += r * r
    return s


@compiled
def _solve(h: NDArray[np.float64], g: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    """out = h⁻¹·g by Cholesky, in place; a direction that no row pins down stays where it is."""
    for a in range(len(g)):
        floor = 1e-11 * h[a, a] + 1e-300
        for b in range(a):
            s = h[a, b]
            for c in range(b):
                s -= h[a, c] * h[b, c]
            h[a, b] = s * h[b, b]  # the diagonal holds reciprocals
        s = h[a, a]
        for c in range(a):
            s -= h[a, c] * h[a, c]
        h[a, a] = 1.0 / np.sqrt(s) if s > floor else 0.0
    for a in range(len(g)):
        s = g[a]
        for c in range(a):
            s -= h[a, c] * out[c]
        out[a] = s * h[a, a]
    for a in range(len(g) - 1, -1, -1):
        s = out[a]
        for c in range(a + 1, len(g)):
            s -= h[c, a] * out[c]
        out[a] = s * h[a, a]


@compiled
def _evaluate(window: Window, q: NDArray[np.float64], rows: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    """out = rows·q for all crossings."""
    for first in range(0, len(window[1]), CHUNK):
        last = min(first + CHUNK, len(window[1]))
        _rows(rows, window, first, last)
        _values(rows, q, out[2 * first : 2 * last])


@compiled
def _newton(
    window: Window,
    w: NDArray[np.float64],
    v: NDArray[np.float64],
    rows: NDArray[np.float64],
    h: NDArray[np.float64],
    g: NDArray[np.float64],
    out: NDArray[np.float64],
) -> float:
    """out = (Σ w·row·rowᵀ)⁻¹·(g + Σ v·row); returns what it gains, the product of both sides. g becomes that sum."""
    h[:] = 0.0
    spare = np.empty(2 * CHUNK)
    for first in range(0, len(window[1]), CHUNK):
        last = min(first + CHUNK, len(window[1]))
        _rows(rows, window, first, last)
        _add(rows, w[2 * first : 2 * last], v[2 * first : 2 * last], spare, h, g)
    for a in range(len(g)):
        h[a, a] *= 1.0 + 1e-10
    _solve(h, g, out)
    gain = 0.0
    for a in range(len(g)):
        gain += g[a] * out[a]
    return gain


@compiled
def _separate(window: Window, q: NDArray[np.float64], work: NDArray[np.float64]) -> bool:
    """Find q with all rows·q > 0 by Newton steps on Σ max(0, 1 − rows·q)²; False where there seems to be none."""
    n = 2 * len(window[1])
    value, weight, short = work[0, :n], work[1, :n], work[2, :n]
    rows, h = np.empty((TERMS, 2 * CHUNK)), np.empty((len(q), len(q)))
    g, move = np.empty(len(q)), np.empty(len(q))
    _evaluate(window, q, rows, value)
    before = np.inf
    for round_ in range(60):
        wrong = 0
        loss = 0.0
        for i in range(n):
            r = 1.0 - value[i]
            wrong += r >= 1.0
            weight[i] = 1.0 if r > 0.0 else 0.0
            short[i] = max(r, 0.0)
            loss += short[i] * short[i]
        if wrong == 0:
            return True
        # a fit that still misses many is not going to separate: most windows of a rough surface end here
        if (
            (round_ == 3 and wrong > n // 8)
            or (round_ == 8 and wrong > n // 20)
            or (round_ == 16 and wrong > n // 60 + 1)
            or loss > before * (1 - 1e-6)
        ):
            return False
        before = loss
        g[:] = 0.0
        _newton(window, weight, short, rows, h, g, move)
        _evaluate(window, move, rows, short)
        t = 1.0
        while t > 1e-3 and _hinge(value, short, t) >= loss:
            t *= 0.5
        for a in range(len(q)):
            q[a] += t * move[a]
        for i in range(n):
            value[i] += t * short[i]
    return False


@compiled
def _centre(window: Window, q: NDArray[np.float64], work: NDArray[np.float64]) -> None:
    """From one separating q to their analytic centre: of all q with one mean of rows·q, the largest product of rows·q."""
    n = 2 * len(window[1])
    value, weight, square = work[0, :n], work[1, :n], work[2, :n]
    rows, h = np.empty((TERMS, 2 * CHUNK)), np.empty((len(q), len(q)))
    g, move, total, trial = np.empty(len(q)), np.empty(len(q)), np.zeros(len(q)), np.empty(len(q))
    square[:] = 0.0
    weight[:] = 1.0
    _newton(window, square, weight, rows, h, total, move)  # the sum of all rows
    scale = 0.0
    for a in range(len(q)):
        scale += total[a] * q[a] / n
    for a in range(len(q)):
        q[a] /= scale
    for _ in range(40):
        _evaluate(window, q, rows, value)
        for i in range(n):
            weight[i] = 1.0 / value[i]
            square[i] = weight[i] * weight[i]
        g[:] = -total
        gain = _newton(window, square, weight, rows, h, g, move)
        if gain < 0.01:
            break
        t = 1.0
        if gain > 0.25:  # far away: most of the way to the nearest wall
            _evaluate(window, move, rows, square)
            for i in range(n):
                if value[i] + t * square[i] < 0.2 * value[i]:
                    t = -0.8 * value[i] / square[i]
        for a in range(len(q)):
            trial[a] = q[a] + t * move[a]
        _evaluate(window, trial, rows, square)
        if square.min() <= 0.0:  # rounding: no better one is to be had
            break
        q[:] = trial


@compiled
def fit(window: Window, work: NDArray[np.float64], q: NDArray[np.float64]) -> bool:
    """Fit a plane, or else a quadric, that separates both ends of all chosen crossings; False where none is found.

    work: (3, 2 × the number of crossings) scratch. q: (10,), receives the coefficients of 1, x, y, z, x², y², z², xy,
    yz, zx; positive outside.
    """
    ends, chosen, steps, middle, size = window
    q[:] = 0.0
    for terms in (4, TERMS):
        part = q[:terms]
        part[:] = 0.0
        found = True
        for most in SAMPLES:
            stride = (len(chosen) + most - 1) // most
            if found and stride > 1:
                found = _separate((ends, chosen[::stride].copy(), steps, middle, size), part, work)
        if found and _separate(window, part, work):
            _centre(window, part, work)
            return True
    return False


@compiled
def shape(q: NDArray[np.float64], x: NDArray[np.float64], g: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """At x (in units of the fit): value, squared gradient (also fills g), κ₁ + κ₂ and κ₁² + κ₂² of the level set."""
    u, v, w = x[0], x[1], x[2]
    value = q[0] + q[1] * u + q[2] * v + q[3] * w + q[4] * u * u + q[5] * v * v + q[6] * w * w
    value += q[7] * u * v + q[8] * v * w + q[9] * w * u
    g[0] = q[1] + 2 * q[4] * u + q[7] * v + q[9] * w
    g[1] = q[2] + 2 * q[5] * v + q[7] * u + q[8] * w
    g[2] = q[3] + 2 * q[6] * w + q[8] * v + q[9] * u
    steep = g[0] * g[0] + g[1] * g[1] + g[2] * g[2]
    if not steep > 0.0:
        return value, 0.0, np.inf, np.inf
    hx = 2 * q[4] * g[0] + q[7] * g[1] + q[9] * g[2]
    hy = q[7] * g[0] + 2 * q[5] * g[1] + q[8] * g[2]
    hz = q[9] * g[0] + q[8] * g[1] + 2 * q[6] * g[2]
    along = (hx * g[0] + hy * g[1] + hz * g[2]) / steep
    whole = 4 * (q[4] ** 2 + q[5] ** 2 + q[6] ** 2) + 2 * (q[7] ** 2 + q[8] ** 2 + q[9] ** 2)
    squares = whole - 2 * (hx * hx + hy * hy + hz * hz) / steep + along * along
    return value, steep, (2 * (q[4] + q[5] + q[6]) - along) / np.sqrt(steep), squares / steep
