"""How good an image is: sharpness that rewards, and fidelity that can be trusted without a ground truth.

Every function takes tensors (B, Z, Y, X); each (b, z) is one *image* in the plane (Y, X). Sharpness (`laplacian`,
`laplacian_contrast_loss`, `edge_sums`) never looks at the data and is no measure of fidelity. `unbiased_mse` is:
it needs two splits of independent noise, x0 and x1, and a prediction made from x0 alone (so does ``resolution``).
Nothing here decides, prints or keeps state.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LCL_QUANTILE = 0.80
EDGE_QUANTILE = 0.90

_LCL_FLOOR = 1e-6
_SSIM_SIGMA = 1.5
_SSIM_RADIUS = 5  # 3.5 sigma, rounded: the 11 x 11 window of Wang et al. 2004
_SSIM_K1, _SSIM_K2 = 0.01, 0.03


def laplacian(images: Tensor) -> Tensor:
    """The 4-neighbour Laplacian in the plane, where all four neighbours exist: nothing is invented at the border.

    Parameters
    ----------
    images
        (B, Z, Y, X), Y and X at least 3. Half precision is computed in float32.

    Returns
    -------
    (B, Z, Y-2, X-2), float32 or float64, grey values per squared voxel.

    Raises
    ------
    ValueError
        Images smaller than 3 x 3, or not four axes.
    """
    require_images(images, 3)
    v = images if images.dtype == torch.float64 else images.float()
    sides = v[..., :-2, 1:-1] + v[..., 2:, 1:-1] + v[..., 1:-1, :-2] + v[..., 1:-1, 2:]
    return sides - 4 * v[..., 1:-1, 1:-1]


def laplacian_contrast_loss(images: Tensor) -> Tensor:
    """Laplacian contrast loss: weak edges over strong edges, averaged over the images; low for cartoon-like ones.

    With l = |Laplacian| and t its 0.80 quantile within one image: mean(l where l <= t) / (mean(l where l > t) + 1e-6)
    (Yunker et al. 2025, Tomogr. Mater. Struct., 100075). The quantile is the smallest value that at least 80 % of the
    voxels do not exceed; it is a constant for the gradient. Where no voxel exceeds it (all edges alike), the mean
    above is taken as t itself, so that the loss is 1 and not a million; it is 0 for a constant image.

    Parameters
    ----------
    images
        (B, Z, Y, X); in 3D only the centre slice, (B, 1, Y, X). Any float type, also under autocast.

    Returns
    -------
    Scalar, float32 (float64 for float64), differentiable.
    """
    strength = laplacian(images).abs().flatten(2)  # (B, Z, n)
    threshold = _quantile(strength, LCL_QUANTILE)
    above = strength > threshold
    n_above = above.sum(dim=2)
    weak = strength.masked_fill(above, 0).sum(dim=2) / (strength.shape[2] - n_above)
    strong = strength.masked_fill(~above, 0).sum(dim=2) / n_above.clamp(min=1)
    strong = torch.where(n_above > 0, strong, threshold.squeeze(2))
    return (weak / (strong + _LCL_FLOOR)).mean()


def edge_sums(images: Tensor) -> Tensor:
    """The four sums of which `edge_score` is made, to be added up over batches and ranks.

    Parameters
    ----------
    images
        (B, Z, Y, X).

    Returns
    -------
    (4,), float64, on the images' device: sum of |Laplacian| above each image's own 0.90 quantile and how many voxels
    that is; the same for those at or below it.
    """
    with torch.no_grad():
        strength = laplacian(images).abs().flatten(2)
        above = strength > _quantile(strength, EDGE_QUANTILE)
        strength = strength.double()
        n_above = above.sum()
        sum_above = strength[above].sum()
        sums = [sum_above, n_above.double(), strength.sum() - sum_above, (above.numel() - n_above).double()]
        return torch.stack(sums)


def edge_score(sums: Tensor) -> float:
    """Mean edge strength above the 0.90 quantile over the mean below it, pooled over all images.

    Pooled, because one flat patch would dominate an average of ratios. Sharpness, not fidelity.

    Parameters
    ----------
    sums
        (4,), added-up results of `edge_sums`.

    Returns
    -------
    At least 1 for images with edges; 0 where nothing is above, or where nine tenths of the voxels are exactly flat: a
    dead network must not win.
    """
    sum_above, n_above, sum_below, n_below = sums.tolist()
    if n_above == 0 or sum_below <= 0:
        return 0.0
    return float((sum_above / n_above) / (sum_below / n_below))


def noise_variance(one: Tensor, other: Tensor, mask: Tensor | None = None) -> Tensor:
    """Noise variance of one split from two of them, per image: 1/2 E(x0 - x1)^2; of their mean it is half of that.

    Parameters
    ----------
    one, other
        (B, Z, Y, X), two splits with independent noise of equal strength.
    mask
        Voxels that count, bool, (Y, X) or (B, Z, Y, X).

    Returns
    -------
    (B, Z), float64, squared grey values.
    """
    return _mean_square(one, other, mask) / 2


def unbiased_mse(prediction: Tensor, other: Tensor, noisy: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error against the unknown truth, per image: E(f(x0) - x1)^2 - 1/2 E(x0 - x1)^2.

    Unbiased for held-out slices (Marcos-Morales et al. 2023, arXiv 2210.05553); being an estimate, it can come out
    slightly below zero. Average over images first, take logarithms afterwards.

    Parameters
    ----------
    prediction
        (B, Z, Y, X), f(x0).
    other
        x1, the split that the prediction has not seen.
    noisy
        x0, the split that it was made from.
    mask
        Voxels that count, bool, (Y, X) or (B, Z, Y, X).

    Returns
    -------
    (B, Z), float64, squared grey values.
    """
    return _mean_square(prediction, other, mask) - noise_variance(noisy, other, mask)


def psnr(image: Tensor, truth: Tensor, data_range: float, mask: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB over all voxels that count: 10 log10(data_range^2 / MSE); inf if equal.

    Parameters
    ----------
    image, truth
        (B, Z, Y, X).
    data_range
        Largest minus smallest grey value of the truth.
    mask
        Voxels that count, bool, (Y, X) or (B, Z, Y, X).
    """
    error = (image.double() - truth.double()).square()
    mean = float((error if mask is None else error[mask.expand_as(error)]).mean())
    return math.inf if mean == 0 else 10 * math.log10(data_range**2 / mean)


def ssim(image: Tensor, truth: Tensor, data_range: float, mask: Tensor | None = None) -> float:
    """Structural similarity, slice by slice, averaged over all voxels that count and lie 5 or more from the border.

    Gaussian window of sigma 1.5 cut at 11 x 11, population covariance, K1 = 0.01, K2 = 0.03 (Wang et al. 2004, IEEE
    TIP 13:600, doi 10.1109/TIP.2003.819861, eq. 13). Computed in float64.

    Parameters
    ----------
    image, truth
        (B, Z, Y, X), Y and X at least 11.
    data_range
        Largest minus smallest grey value of the truth.
    mask
        Voxels that count, bool, (Y, X) or (B, Z, Y, X).

    Raises
    ------
    ValueError
        Images smaller than 11 x 11, or not four axes.
    """
    r = _SSIM_RADIUS
    require_images(image, 2 * r + 1)
    a, b = image.double(), truth.double()
    mean_a, mean_b = _gaussian(a), _gaussian(b)
    variances = _gaussian(a * a) - mean_a**2 + _gaussian(b * b) - mean_b**2
    covariance = _gaussian(a * b) - mean_a * mean_b
    c1, c2 = (_SSIM_K1 * data_range) ** 2, (_SSIM_K2 * data_range) ** 2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_a**2 + mean_b**2 + c1) * (variances + c2))
    if mask is not None:
        similarity = similarity[mask.expand_as(a)[..., r:-r, r:-r]]
    return float(similarity.mean())


def require_images(images: Tensor, smallest: int) -> None:
    """Refuse what is not (B, Z, Y, X) with images of at least ``smallest`` voxels a side."""
    if images.ndim != 4 or min(images.shape[2:]) < smallest:
        raise ValueError(
            f"expected (B, Z, Y, X) with Y and X at least {smallest}, found a tensor of shape {tuple(images.shape)}"
        )


def _quantile(values: Tensor, q: float) -> Tensor:
    """The smallest value that a share q does not exceed, along the last axis (kept), without gradient.

    By selection: torch.quantile sorts, interpolates, and refuses more than 16 million values.
    """
    n = values.shape[-1]
    rank = min(max(math.ceil(q * n), 1), n)
    return values.detach().kthvalue(rank, dim=-1, keepdim=True).values


def _mean_square(one: Tensor, other: Tensor, mask: Tensor | None) -> Tensor:
    square = (one.double() - other.double()).square()
    if mask is None:
        return square.mean(dim=(2, 3))
    weight = mask.expand_as(square)
    return square.masked_fill(~weight, 0).sum(dim=(2, 3)) / weight.sum(dim=(2, 3))


def _gaussian(images: Tensor) -> Tensor:
    """Separable Gaussian filter in the plane, only where the whole window fits: (B, Z, Y, X) -> (B, Z, Y-10, X-10)."""
    b, z, y, x = images.shape
    r = _SSIM_RADIUS
    offsets = torch.arange(-r, r + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / _SSIM_SIGMA) ** 2)
    kernel = kernel / kernel.sum()
    filtered = F.conv2d(images.reshape(b * z, 1, y, x), kernel.reshape(1, 1, -1, 1))
    filtered = F.conv2d(filtered, kernel.reshape(1, 1, 1, -1))
    return filtered.reshape(b, z, y - 2 * r, x - 2 * r)
