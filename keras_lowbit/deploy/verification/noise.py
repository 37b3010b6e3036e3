"""Signal-to-noise ratios."""

import math

import numpy as np


class Noise:
    """Signal and noise of one array of values against another, summed up."""

    def __init__(self) -> None:
        self.signal, self.noise = 0.0, 0.0

    def add(self, wanted: np.ndarray, got: np.ndarray) -> None:
        """Values as they should be, and as they are; in as many pieces as one likes."""
        wanted = wanted.astype(np.float64, copy=False)
        self.signal += float(np.square(wanted).sum())
        self.noise += float(np.square(wanted - got.reshape(wanted.shape)).sum())

    @property
    def snr_db(self) -> float:
        """``10 log10(signal / noise)``: infinite where nothing differs, minus infinity where there is noise alone."""
        if not self.noise:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf
