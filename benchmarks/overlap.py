"""How much neighbouring tiles must overlap, and how large they should be: PSNR and redundancy for each choice.

    python benchmarks/overlap.py --folder scratch --case foam_low --model scratch/models/foam_low_2_ours2d_1.5.pth

Tiles cover the slices evenly, as in ``denoise volume``; with ``--exactly`` they have the edge that was asked for and
the last one is pushed back, so that networks with norm layers see as many voxels whatever the overlap. The reference is
an overlap of half a tile. The default of each network (``overlap`` in ``denoise/networks/catalogue.py``) is the
smallest that loses less than 0.02 dB.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cases import open_case
from denoise.api import load_checkpoint
from denoise.config import InferSection
from denoise.inference.engine import denoise_slices
from denoise.inference.models import make_denoiser
from denoise.modes import inference_window
from denoise.networks.catalogue import find_network
from denoise.tiles import TileGrid
from denoise.volumes import ArrayVolume
from quality import score, scored_slices


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--case", default="foam_low")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--edges", default="64,128,256", help="tile edges in y and x")
    parser.add_argument("--depths", default="0", help="tile depths (3D); 0: the default")
    parser.add_argument("--overlaps", default="half,0,8,16,32,64", help="voxels")
    parser.add_argument("--taper", default="hann")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--slices", type=int, default=48)
    parser.add_argument("--exactly", action="store_true", help="tiles of exactly these edges (2.5D)")
    options = parser.parse_args()
    checkpoint = load_checkpoint(options.model)
    data = open_case(options.folder, options.case, size=options.size, slices=options.slices)
    volume = ArrayVolume(np.array(data.full))
    rows = scored_slices(len(data.truth))
    volumetric = find_network(checkpoint.network.name).dimensions == 3
    divisors = find_network(checkpoint.network.name).divisors(checkpoint.network.options)
    base = make_denoiser(checkpoint, InferSection(window=options.taper), torch.device("cpu"), shape=volume.shape)
    print("| tile | overlap, voxels | redundancy | PSNR, dB |\n| --- | --- | --- | --- |")
    for depth in map(int, options.depths.split(",")):
        for edge in map(int, options.edges.split(",")):
            for overlap in options.overlaps.split(","):
                voxels = edge // 2 if overlap == "half" else int(overlap)
                deep = depth or base.window.predict_zyx[0]
                if voxels > edge // 2:
                    continue
                edges = {0: deep, 1: edge, 2: edge} if volumetric else {1: edge, 2: edge}
                overlaps = dict.fromkeys(edges, voxels)
                if options.exactly:
                    window = inference_window(checkpoint.network, edge, voxels / edge, options.taper)
                else:
                    window = base.window.spread_over(
                        volume.shape, edges, overlaps=overlaps, multiples=divisors, shrinks=True
                    )
                result = np.empty((len(rows), *volume.shape[1:]), np.float32)

                def keep(start: int, slab: np.ndarray, result: np.ndarray = result) -> None:
                    result[start : start + len(slab)] = slab

                denoise_slices((volume,), replace(base, window=window), rows, keep)
                tile = " x ".join(map(str, window.predict_zyx))
                redundancy = TileGrid(volume.shape, window).redundancy
                print(f"| {tile} | {voxels} | {redundancy:.2f} | {score(result, data)['psnr']:.3f} |", flush=True)


if __name__ == "__main__":
    main()
