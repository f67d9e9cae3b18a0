"""How outputs are compressed, always without loss: the names, the levels, and how much may be gained.

Measured on float32 values of a simulated foam, noisy / smoothed, on one core, chunks of 0.5 MiB with shuffled bytes:
Blosc with zstd 1 leaves 0.83 / 0.79 of the size at 250 to 300 MB/s, with zstd 3 0.84 / 0.78 at 75 to 120 MB/s; gzip 1
by libdeflate (HDF5, TIFF) leaves 0.84 / 0.78 at 180 MB/s, gzip 6 0.83 / 0.78 at 90 MB/s. The lower bits of float32
values are noise, which nothing compresses: higher levels cost more than they gain. gzip without shuffling, as TIFF and
Zarr have it, leaves 0.92 / 0.93; Zarr's is that of zlib, at 30 MB/s. Blosc's own choice of blocks, smaller than a
chunk, leaves 0.90 / 0.83 and is slower: a chunk is one block.
"""

from __future__ import annotations

from typing import Final

NONE: Final = "none"
GZIP: Final = "gzip"
BLOSC: Final = "blosc"
COMPRESSIONS: Final = (NONE, GZIP, BLOSC)

GZIP_LEVEL: Final = 1
ZSTD_LEVEL: Final = 1
# Reconstructions whose corners are masked shrink to about two thirds; few shrink to less than this.
_LEAST_SHARE = 0.5


def least_bytes(n_bytes: int, compression: str) -> int:
    """Room that voxels of ``n_bytes`` will take at least."""
    return n_bytes if compression == NONE else int(n_bytes * _LEAST_SHARE)
