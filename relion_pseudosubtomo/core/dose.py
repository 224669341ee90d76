"""Dose weighting (spec 2.4, step 5; Grant & Grigorieff 2015, eLife 4:e06980)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def dose_weight(k: Floats, dose: float, bfactor_per_dose: float = 0.0) -> Floats:
    """Return the dose weight at spatial frequencies k.

    Parameters
    ----------
    k : ndarray
        Spatial frequency in 1/A.
    dose : float
        Dose before the image, e/A^2.
    bfactor_per_dose : float
        Above 0, the weight is exp(-B dose k^2 / 4) instead.

    Returns
    -------
    ndarray
        1 at k = 0, never above 1.
    """
    if bfactor_per_dose > 0:
        return np.exp(-bfactor_per_dose * dose * k**2 / 4)
    return np.exp(-dose / 2 * inverse_critical_dose(k))


def inverse_critical_dose(k: Floats) -> Floats:
    """Return 1 / (0.245 k^-1.665 + 2.81), 0 at k = 0, in A^2/e."""
    power = np.power(k, 1.665, where=k > 0, out=np.zeros_like(k))
    return power / (0.245 + 2.81 * power)
