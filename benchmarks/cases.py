"""The simulated scans that everything is measured on: seven of them, with fixed seeds and known truth.

    python benchmarks/cases.py --folder scratch [--size 256 --slices 48] [--cases foam_low,...]

writes each case into ``scratch/cases/<name>_<slices>x<size>/``: ``truth.npy`` (reconstruction of the noise-free
projections), ``full.npy``, and the splits ``k2_0.npy``, ``k2_1.npy``, ``k4_0.npy`` ... ``k4_3.npy``, all float32
(Z, Y, X). Twice as many angles as columns, over 180 degrees. What exists is kept. ``--picture docs/images/cases.png``
draws them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from denoise.projections.angles import SplitAngles
from denoise.projections.phantom import FoamPhantom
from denoise.projections.preprocess import remove_stripes
from denoise.projections.reconstruct import reconstruct_rows
from phantoms import anatomy, fibres, inside

Float32Array = NDArray[np.float32]
SPLITS = (2, 4)


class Phantom(Protocol):
    """What can be scanned."""

    @property
    def center(self) -> float:
        """Detector column of the rotation axis."""
        ...

    def project(self, angles_rad: NDArray[np.float64], rows: slice = slice(None)) -> Float32Array:
        """Line integrals (angles, rows, columns)."""
        ...


@dataclass(frozen=True)
class Case:
    """One simulated scan.

    Attributes
    ----------
    photons
        Mean count of a pixel without the sample.
    fixed_gain
        Standard deviation of the error of the flat field, per detector pixel, the same at all angles: full rings.
    changing_gain
        The same, drawn anew at every angle, common to 8 neighbouring rows: what a flickering beam profile does.
    blur_rows
        Blur of the detector along z after counting, sigma in rows: noise correlated across slices.
    stripes_removed
        Whether stripes are removed from each split before it is reconstructed, as ``prepare --remove-stripes`` does.
    independent
        Whether the noise of the splits is independent, which is what the method asks for.
    """

    what: str
    make: Callable[[int, int, int], Phantom]
    photons: float
    fixed_gain: float = 0.0
    changing_gain: float = 0.0
    blur_rows: float = 0.0
    stripes_removed: bool = False
    independent: bool = True


def foam(size: int, slices: int, seed: int) -> Phantom:
    """Foam, as many pores in as many voxels whatever the size."""
    pores = round(1500 * slices / 48 * (size / 256) ** 2)
    return FoamPhantom.create(size=size, slices=slices, seed=seed, n_pores=pores)


CASES: Mapping[str, Case] = {
    "foam_low": Case("foam, low dose", foam, photons=100),
    "foam_medium": Case("foam, medium dose", foam, photons=800),
    "anatomy": Case("gradients, texture, trabeculae, vessels", anatomy, photons=400),
    "fibres": Case("fibres and cracks, 1 to 2 voxels wide", fibres, photons=400),
    "rings_fixed": Case("foam, rings common to all angles", foam, photons=400, fixed_gain=0.02, independent=False),
    "rings_fixed_removed": Case(
        "the same, stripes removed", foam, photons=400, fixed_gain=0.02, stripes_removed=True, independent=False
    ),
    "rings_changing": Case("foam, rings that change with the angle", foam, photons=400, changing_gain=0.12),
    "correlated_z": Case("foam, noise correlated across slices", foam, photons=50, blur_rows=1.2),
}


@dataclass(frozen=True)
class CaseData:
    """A case on disk, opened as memory maps."""

    name: str
    folder: Path

    @property
    def case(self) -> Case:
        """Its parameters."""
        return CASES[self.name]

    @property
    def truth(self) -> Float32Array:
        """Reconstruction of the noise-free projections, (Z, Y, X)."""
        return self._load("truth")

    @property
    def full(self) -> Float32Array:
        """Reconstruction from all angles."""
        return self._load("full")

    def splits(self, k: int) -> list[Float32Array]:
        """The K sub-reconstructions."""
        return [self._load(f"k{k}_{i}") for i in range(k)]

    @property
    def inside(self) -> NDArray[np.bool_]:
        """Pixels that are scored, (Y, X)."""
        return inside(self.truth.shape[2])

    @property
    def data_range(self) -> float:
        """Of the truth, where it is scored."""
        values = self.truth[:, self.inside]
        return float(values.max() - values.min())

    def _load(self, name: str) -> Float32Array:
        return np.asarray(np.load(self.folder / f"{name}.npy", mmap_mode="r"))


def open_case(root: Path, name: str, *, size: int = 256, slices: int = 48, seed: int = 0) -> CaseData:
    """A case of this size; simulated if it is not there yet."""
    folder = root / "cases" / f"{name}_{slices}x{size}"
    if not (folder / "full.npy").exists():  # written last
        folder.mkdir(parents=True, exist_ok=True)
        simulate(CASES[name], folder, size, slices, seed)
    return CaseData(name, folder)


def simulate(
    case: Case,
    folder: Path,
    size: int,
    slices: int,
    seed: int,
    splits: Sequence[int] = SPLITS,
    angles_per_column: float = 2.0,
    corrected: bool = False,
) -> None:
    """Scan an object and reconstruct it, into this folder.

    Parameters
    ----------
    corrected
        Whether the logarithm of low counts is corrected, as ``prepare`` does. The cases of quality.py are not, as what
        they are compared with was measured without.
    """
    phantom = case.make(size, slices, seed)
    n_angles = round(angles_per_column * size)
    angles = np.arange(n_angles) * (np.pi / n_angles)
    rng = np.random.default_rng((seed, 1))
    fixed = 1 + case.fixed_gain * rng.standard_normal((slices, size))
    clean = np.empty((angles.size, slices, size), np.float32)
    noisy = np.empty_like(clean)
    for start in range(0, angles.size, 64):
        part = slice(start, start + 64)
        transmitted = np.exp(-phantom.project(angles[part]).astype(np.float64))
        bands = rng.standard_normal((len(transmitted), -(-slices // 8), size)).repeat(8, axis=1)[:, :slices]
        gain = fixed * (1 + case.changing_gain * bands)
        counts = rng.poisson(case.photons * np.clip(gain, 0.1, None) * transmitted) / case.photons
        if case.blur_rows:
            counts, transmitted = (gaussian_filter1d(c, case.blur_rows, axis=1) for c in (counts, transmitted))
        clean[part] = -np.log(transmitted)
        half = 0.5 / case.photons
        noisy[part] = -np.log(counts + half if corrected else np.maximum(counts, half))

    def save(name: str, sinograms: Float32Array, chosen: NDArray[np.float64], cleaned: bool) -> None:
        rows = remove_stripes(sinograms) if cleaned else sinograms
        np.save(folder / f"{name}.npy", reconstruct_rows(np.ascontiguousarray(rows), chosen, phantom.center))

    save("truth", clean, angles, False)
    for k in splits:
        for i, chosen in enumerate(SplitAngles.of(angles, k).indices):
            save(f"k{k}_{i}", noisy[chosen], angles[chosen], case.stripes_removed)
    save("full", noisy, angles, case.stripes_removed)


def chosen_cases(names: str) -> Sequence[str]:
    """Names from the command line, "all" among them."""
    return list(CASES) if names == "all" else names.split(",")


def draw(cases: Sequence[CaseData], path: Path) -> None:
    """The middle slice of each case, truth and noisy, and a section along z of the noisy one."""
    from matplotlib.figure import Figure

    depth, size = cases[0].truth.shape[:2]
    figure = Figure(figsize=(3 * len(cases), 6 + 3 * depth / size + 0.4), layout="constrained")
    axes = figure.subplots(3, len(cases), squeeze=False, height_ratios=[size, size, depth])
    for column, data in enumerate(cases):
        low, high = np.percentile(data.truth[depth // 2], (0.5, 99.8))
        for row, image in enumerate((data.truth[depth // 2], data.full[depth // 2], data.full[:, size // 2])):
            axes[row, column].imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            axes[row, column].set_axis_off()
        axes[0, column].set_title(data.name)
    figure.savefig(path, dpi=60)


def main() -> None:
    """Simulate the cases and print how noisy they are."""
    import torch

    from denoise.quality import psnr

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cases", default="all")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--slices", type=int, default=48)
    parser.add_argument("--picture", type=Path, help="draw them into this file")
    options = parser.parse_args()
    if options.picture:
        names = chosen_cases(options.cases)
        draw([open_case(options.folder, n, size=options.size, slices=options.slices) for n in names], options.picture)
    for name in chosen_cases(options.cases):
        data = open_case(options.folder, name, size=options.size, slices=options.slices)
        mask = torch.from_numpy(data.inside)
        truth = torch.tensor(data.truth)[None]
        values = [psnr(torch.tensor(v)[None], truth, data.data_range, mask) for v in (data.full, *data.splits(2)[:1])]
        print(f"{name}: full {values[0]:.2f} dB, split {values[1]:.2f} dB", flush=True)


if __name__ == "__main__":
    main()
