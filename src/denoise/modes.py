"""The two modes: a sampler, the networks that fit, and a window are all that distinguishes 2.5D from 3D.

2.5D reads ``n_slices`` adjacent slices and predicts the centre one. 3D reads and predicts blocks, those of `residual3d`
with a few slices of context above and below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from denoise.networks.catalogue import find_network
from denoise.networks.spec import NetworkSpec
from denoise.patches.sampler import CubeSampler, SliceSampler
from denoise.tiles import Triple, Window


@dataclass(frozen=True)
class Mode:
    """One way of working."""

    name: str
    sampler: type[SliceSampler] | type[CubeSampler]
    network_dimensions: int
    window: Callable[[NetworkSpec, int, float, str], Window]
    """(network, tile edge, overlap as a fraction of it, taper) -> Window."""


#: Flat blocks of small patches are at least so deep: with fewer slices there is little to mix.
_SHALLOWEST_BLOCK = 8


def _slice_window(network: NetworkSpec, edge: int, overlap: float, taper: str) -> Window:
    stride = _stride(edge, overlap)
    return _with_context(network, Window((1, edge, edge), (1, edge, edge), (1, stride, stride), (0, 0, 0), taper))


def _cube_window(network: NetworkSpec, edge: int, overlap: float, taper: str) -> Window:
    depth = max(min(edge, _SHALLOWEST_BLOCK), edge // find_network(network.name).flatness)
    stride = _stride(edge, overlap)
    block = (depth, edge, edge)
    return _with_context(network, Window(block, block, (_stride(depth, overlap), stride, stride), (0, 0, 0), taper))


def _with_context(network: NetworkSpec, window: Window) -> Window:
    """The same, reading the slices that the network sees for each that it predicts."""
    n_slices = find_network(network.name).n_slices(network.options)
    depth, height, width = window.read_zyx
    # An even number of slices has its centre after the middle: n // 2 slices lie before it, n // 2 - 1 after.
    return replace(window, read_zyx=(depth + n_slices - 1, height, width), before_zyx=(n_slices // 2, 0, 0))


def _stride(edge: int, overlap: float) -> int:
    return max(1, round(edge * (1 - overlap)))


#: Of a tile, where the user does not ask for more: a small one cannot spare what the network would need.
_MOST_OVERLAP = 0.5

#: A slab of this depth is held in memory, and deeper tiles fall out of the caches of a CPU. Shallower ones repeat more.
DEEPEST_TILE = 24

#: By the name that users write.
MODES: Mapping[str, Mode] = {
    mode.name: mode
    for mode in (
        Mode("2.5d", SliceSampler, 2, _slice_window),
        Mode("3d", CubeSampler, 3, _cube_window),
    )
}


def mode_of(network: NetworkSpec) -> Mode:
    """The mode that a network works in."""
    dimensions = find_network(network.name).dimensions
    return next(mode for mode in MODES.values() if mode.network_dimensions == dimensions)


def inference_window(
    network: NetworkSpec, edge: int, overlap: float | None, taper: str, shape: Triple | None = None
) -> Window:
    """The tiles that a network denoises a volume of this shape (Z, Y, X) with.

    Tiles of about this edge cover the volume evenly, with the overlap that was measured to be enough for the network
    unless another is given. Networks without norm layers give the same for any tile: they get none that reach far past
    a small volume, nor any deeper than ``DEEPEST_TILE``, as a slab of that depth is held in memory. Those with norm
    layers were trained on patches of one size: they keep about that, and exactly that with an overlap of the user's.
    """
    kind = find_network(network.name)
    mode = mode_of(network)
    fraction = min(kind.overlap / edge, _MOST_OVERLAP) if overlap is None else overlap
    window = mode.window(network, edge, fraction, taper)
    if shape is None or (kind.content_dependent and overlap is not None):
        return window
    edges = dict.fromkeys(range(3 - kind.dimensions, 3), edge)
    if not kind.content_dependent and 0 in edges:
        edges[0] = min(edge, DEEPEST_TILE)
    needed = {0: kind.overlap if kind.overlap_z is None else kind.overlap_z, 1: kind.overlap, 2: kind.overlap}
    return window.spread_over(
        shape,
        edges,
        overlaps={
            axis: min(needed[axis], round(_MOST_OVERLAP * size)) if overlap is None else round(overlap * size)
            for axis, size in edges.items()
        },
        multiples=kind.divisors(network.options),
        shrinks=not kind.content_dependent,
    )


def default_tile(network: NetworkSpec, trained_at: int | None) -> int:
    """Edge of the tiles that a network denoises, where the user gives none.

    Networks with norm layers see a tile's content as a whole: they keep the size of the patches that they were trained
    on. The others give the same answer for any tile and get a large one.
    """
    kind = find_network(network.name)
    if trained_at is None:
        return kind.tile
    return trained_at if kind.content_dependent else max(trained_at, kind.tile)
