"""A picture of what splitting by angle cannot remove: rings common to all angles stay, unless `prepare` removes them.

    python benchmarks/rings.py --folder scratch --model-suffix _2_ours2d_1.5 --out docs/images/rings.png

Needs the models that `quality.py --methods ours2d` leaves in ``scratch/models`` for the cases ``rings_fixed``,
``rings_fixed_removed`` and ``rings_changing``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from cases import CASES, open_case
from denoise.api import denoise_volume, load_checkpoint


def main() -> None:
    """Denoise a slice of each case and draw them."""
    from matplotlib.figure import Figure

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--model-suffix", default="_2_ours2d_1.5")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    cases = ("rings_fixed", "rings_fixed_removed", "rings_changing")
    figure = Figure(figsize=(13, 9.4), layout="constrained")
    axes = figure.subplots(2, 3)
    for column, name in enumerate(cases):
        data = open_case(options.folder, name)
        z, size = len(data.truth) // 2, data.truth.shape[1]
        part = slice(int(0.3 * size), int(0.7 * size))
        low, high = np.percentile(data.truth[z], (2, 99))
        checkpoint = load_checkpoint(options.folder / "models" / f"{name}{options.model_suffix}.pth")
        denoised = denoise_volume(data.full, checkpoint, start_slice=z, end_slice=z + 1)[0]
        for row, (image, title) in enumerate(((data.full[z], CASES[name].what), (denoised, "denoised"))):
            panel = axes[row, column]
            panel.imshow(image[part, part], cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            panel.set_title(title)
            panel.set_axis_off()
    figure.savefig(options.out, dpi=75)


if __name__ == "__main__":
    main()
