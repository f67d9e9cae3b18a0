"""What do the engine and the loop gain over code as it is usually written? The usual code, kept for comparison.

    python benchmarks/throughput.py --folder scratch

runs it beside ours and prints the ratios; nothing is printed here. Everything is float32 in torch's default layout. A
volume is read whole, slice by slice, denoised patch by patch (overlap half a patch, Hann taper), summed in buffers of
the volume's size and divided by the summed weights; then it is written, slice by slice. One thread does it all (torch's
own threads within a convolution aside). Training takes its patches from a DataLoader without workers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from denoise.normalization import Normalization

OVERLAP = 0.5
_EPSILON = 1e-8
_LEARNING_RATE = 1e-3


def patch_starts(length: int, patch_size: int) -> list[int]:
    """Where the patches along an axis start: every half patch, the last one moved back to end with the axis."""
    last = max(length - patch_size, 0)
    return sorted({*range(0, last, round(patch_size * (1 - OVERLAP))), last})


def denoise_plainly(
    input_folder: Path,
    output_folder: Path,
    network: nn.Module,
    normalization: Normalization,
    patch_size: int,
    n_slices: int,
) -> None:
    """Denoise a folder of TIFF slices into another, in 2.5D, on the device that the network is on."""
    paths = sorted(input_folder.glob("*.tif"))
    volume = np.stack([tifffile.imread(path) for path in paths]).astype(np.float32)
    shape, before = volume.shape, n_slices // 2
    volume = (volume - normalization.mean) / normalization.std
    missing = [max(patch_size - size, 0) for size in shape[1:]]
    padding = [(before, n_slices - 1 - before), *((0, count) for count in missing)]
    padded = np.pad(volume, padding, mode="reflect").astype(np.float32)

    total = np.zeros((shape[0], *padded.shape[1:]), dtype=np.float64)
    weights = np.zeros_like(total)
    profile = np.hanning(patch_size + 2)[1:-1]
    taper = np.outer(profile, profile)
    device = next(network.parameters()).device
    network.eval()
    with torch.no_grad():
        for z in range(shape[0]):
            for y in patch_starts(shape[1], patch_size):
                for x in patch_starts(shape[2], patch_size):
                    patch = padded[z : z + n_slices, y : y + patch_size, x : x + patch_size]
                    prediction = network(torch.from_numpy(patch)[None].to(device))[0, 0].cpu().numpy()
                    total[z, y : y + patch_size, x : x + patch_size] += prediction * taper
                    weights[z, y : y + patch_size, x : x + patch_size] += taper

    result = (total / (weights + _EPSILON))[:, : shape[1], : shape[2]]
    result = result * normalization.std + normalization.mean
    output_folder.mkdir(parents=True, exist_ok=True)
    for path, image in zip(paths, result, strict=True):
        tifffile.imwrite(output_folder / path.name, image.astype(np.float32))


class RandomPatches(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of patches at random places of two splits: neighbouring slices of one, the centre slice of the other."""

    def __init__(
        self, splits: Sequence[NDArray[np.float32]], normalization: Normalization, patch_size: int, n_slices: int
    ) -> None:
        self._splits, self._normalization = splits, normalization
        self._patch_size, self._n_slices = patch_size, n_slices
        self._random = np.random.default_rng(0)

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """A pair (n_slices, P, P), (1, P, P), float32, normalised, turned at random; the index does not matter."""
        size, before = self._patch_size, self._n_slices // 2
        z, y, x = (
            int(self._random.integers(length - extent + 1))
            for length, extent in zip(self._splits[0].shape, (self._n_slices, size, size), strict=True)
        )
        source, target = self._random.permutation(2)
        inputs = self._splits[source][z : z + self._n_slices, y : y + size, x : x + size]
        targets = self._splits[target][z + before : z + before + 1, y : y + size, x : x + size]
        turns = int(self._random.integers(4))
        pair = []
        for patch in (inputs, targets):
            normalised = (patch - self._normalization.mean) / self._normalization.std
            pair.append(torch.from_numpy(np.rot90(normalised, turns, axes=(1, 2)).astype(np.float32)))
        return pair[0], pair[1]


def train_plainly(
    splits: Sequence[NDArray[np.float32]],
    network: nn.Module,
    normalization: Normalization,
    patch_size: int,
    n_slices: int,
    batch_size: int,
    seconds: float,
) -> float:
    """Train on two splits for about so long after a first step, at least two steps; returns pairs of patches a second.

    The network is trained where it is, so give a copy. The splits are at least a patch large.
    """
    device = next(network.parameters()).device
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE)
    patches = RandomPatches(splits, normalization, patch_size, n_slices)
    steps, begun = 0, 0.0
    for inputs, targets in DataLoader(patches, batch_size=batch_size, num_workers=0):
        optimizer.zero_grad()
        loss = nn.functional.l1_loss(network(inputs.to(device)), targets.to(device))
        loss.backward()
        optimizer.step()
        loss.item()  # shown by a progress bar in every such tool; on a GPU this waits for the step
        if not begun:
            begun = time.perf_counter()
            continue
        steps += 1
        if steps >= 2 and time.perf_counter() - begun >= seconds:
            break
    return steps * batch_size / (time.perf_counter() - begun)
