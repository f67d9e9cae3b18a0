"""A Zarr array of 20000 x 16384 x 16384 voxels (21 TB, no chunk of it on the disk): opened, checked, slices denoised.

    python benchmarks/huge.py --folder scratch [--max-memory 6G] [--slices 1] [--processes 1]

Prints seconds and peak memory (resident set, the largest process) of every command. The network has random weights.
This process imports no heavy library: what its children are measured at is their own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

SHAPE = (20000, 16384, 16384)
_MODEL = """
import sys
from pathlib import Path
import torch
from denoise.checkpoint import Checkpoint
from denoise.networks.catalogue import NETWORKS, build_network
from denoise.networks.spec import NetworkSpec
from denoise.normalization import Normalization
spec = NetworkSpec("residual2d", NETWORKS["residual2d"].defaults)
torch.manual_seed(0)
Checkpoint(spec, build_network(spec).state_dict(), Normalization(0.0, 1.0), patch_size=64).save(Path(sys.argv[1]))
"""


def empty_store(path: Path) -> None:
    """A Zarr array of which only the metadata exist; every voxel reads as 0."""
    path.mkdir()
    metadata = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(SHAPE),
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 1024, 1024]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0.0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {},
    }
    (path / "zarr.json").write_text(json.dumps(metadata))


def measured(arguments: list[str]) -> None:
    """Run a command and print what it took."""
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "denoise", *arguments], check=True, capture_output=True, text=True)
    seconds = time.monotonic() - begun
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(done.stderr + done.stdout)
    print(f"| {arguments[0]} | {seconds:.1f} | {peak:.0f} |", flush=True)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--max-memory", default="6G")
    parser.add_argument("--slices", type=int, default=1)
    options = parser.parse_args()
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "huge.zarr").exists():
        empty_store(folder / "huge.zarr")
    subprocess.run([sys.executable, "-c", _MODEL, str(folder / "model.pth")], check=True)
    config = folder / "huge.yaml"
    config.write_text("dataset: {folder: ., full: huge.zarr}\n")
    limit = ["--max-memory", options.max_memory]
    first = SHAPE[0] // 2
    print("| command | seconds | peak memory, MB |\n| --- | --- | --- |")
    for extra in ([], ["--start-slice", str(first), "--end-slice", str(first + options.slices)]):
        if extra:
            place = ["--model", str(folder / "model.pth"), "--output", str(folder / "part.zarr"), "--overwrite"]
            measured(["volume", "--config", str(config), *place, *limit, *extra])
        else:
            # Nothing of this size fits on a disk here: check says so, and that is all it says.
            refused = subprocess.run(
                [sys.executable, "-m", "denoise", "check", "--config", str(config), *limit],
                check=False,
                capture_output=True,
                text=True,
            )
            print(f"check: exit code {refused.returncode}: {refused.stderr.strip()}", flush=True)


if __name__ == "__main__":
    main()
