"""What splits share at the finest frequencies where the object is smooth: noise, and no detail.

Detail lies at edges, noise everywhere. Which places are smooth is seen at coarser frequencies, which know nothing of
the noise at the finest ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

Float64Array = NDArray[np.float64]

#: Edge of the blocks, voxels.
_BLOCK = 8
#: Cycles per voxel between which the one filter ends and the other begins, both over as much.
_COARSE, _FINE = (0.2, 0.3), (0.3, 0.4)
#: Of the blocks of a slice.
_SMOOTHEST = 0.1
#: Of a block's voxels, those that differ from the one before in all splits: of whole numbers some are alike by chance.
_VARYING = 0.6
#: Share of the frequency plane that is looked at.
_SHARE = 0.5


class SmoothPlaces:
    """Sums over the smoothest tenth of each slice's blocks.

    Parameters
    ----------
    count
        Splits.
    mask
        (Y, X): where the object is, and the images are not tapered; blocks have to lie in it with all around them.
    """

    def __init__(self, count: int, mask: NDArray[np.bool_]) -> None:
        self._shape = mask.shape
        y, x = (np.fft.fftfreq(mask.shape[0])[:, None], np.fft.rfftfreq(mask.shape[1])[None, :])
        radius = np.hypot(y, x)
        self._coarse, self._fine = 1 - _ramp(radius, *_COARSE), _ramp(radius, *_FINE)
        full = _of_blocks(mask.astype(np.float64)) == _BLOCK**2
        self._usable = ndimage.binary_erosion(full, np.ones((3, 3))) if full.size else full
        self._cross, self._power = 0.0, np.zeros(count)
        self._blocks = 0

    def add(self, spectra: list[NDArray[np.complex128]], images: NDArray[np.float32]) -> None:
        """Another slice: half-plane transforms of all splits, and the splits (K, Y, X) as they are stored.

        Blocks count where all around them is finite and varies: not what was masked, clipped or filled.
        """
        varies = np.asarray(np.isfinite(images).all(axis=0))
        varies[:, 1:] &= (images[:, :, 1:] != images[:, :, :-1]).all(axis=0)
        usable = ndimage.binary_erosion(_of_blocks(varies.astype(np.float64)) > _VARYING * _BLOCK**2, np.ones((3, 3)))
        usable &= self._usable
        if not usable.any():
            return
        count = len(spectra)
        total = self._image(sum(spectra[1:], spectra[0]) * self._coarse)
        mean, square = (ndimage.uniform_filter(_of_blocks(v), 3) for v in (total, np.square(total)))
        roughness = (square - np.square(mean) / _BLOCK**2)[usable]
        chosen = usable.copy()
        chosen[usable] = roughness <= np.quantile(roughness, _SMOOTHEST)
        total, powers = np.zeros(self._shape), np.zeros(count)
        for k, spectrum in enumerate(spectra):
            fine = self._image(spectrum * self._fine)
            powers[k] = _of_blocks(np.square(fine))[chosen].sum()
            total += fine
        both = float(_of_blocks(np.square(total))[chosen].sum())
        self._cross += (both - float(powers.sum())) / (count * (count - 1))
        self._power += powers
        self._blocks += int(chosen.sum())

    def correlation(self) -> tuple[float, float] | None:
        """Of the splits in these places, and the standard error that chance gives it; None where there are none."""
        if not self._power.all():
            return None
        return self._cross / float(self._power.mean()), self._error

    def noise_ratio(self) -> tuple[float, float] | None:
        """Noise power of the noisiest split over that of the least noisy, without what they share; and its error."""
        noise = self._power - self._cross
        if not (noise > 0).all():
            return None
        return float(noise.max() / noise.min()), 2 * self._error * float(self._power.mean() / noise.min())

    @property
    def _error(self) -> float:
        return float(1 / np.sqrt(_SHARE * _BLOCK**2 * self._blocks))

    def _image(self, spectrum: NDArray[np.complex128]) -> Float64Array:
        return np.asarray(fft.irfft2(spectrum, self._shape, norm="ortho"))


def _ramp(radius: Float64Array, start: float, stop: float) -> Float64Array:
    """From 0 to 1, half a period of a cosine."""
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * np.clip((radius - start) / (stop - start), 0, 1)))


def _of_blocks(image: Float64Array) -> Float64Array:
    """Sums over blocks, (Y // 8, X // 8); rows and columns that fill none are left out."""
    y, x = (n // _BLOCK for n in image.shape)
    cut = image[: y * _BLOCK, : x * _BLOCK]
    return np.asarray(cut.reshape(y, _BLOCK, x, _BLOCK).sum(axis=(1, 3)))
