"""Rules that join several fields of a config."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from denoise.config.problems import Problem, shown

if TYPE_CHECKING:
    from denoise.config.model import RunConfig


def broken_rules(config: RunConfig) -> Iterator[Problem]:
    """Every rule that the config breaks, places in today's names."""
    yield from _dataset_rules(config)
    if not config.network_name.endswith("3d" if config.mode == "3d" else "2d"):
        wanted = config.network_name[:-2]
        yield Problem(
            ("train", "network"),
            f"train.network is {shown(config.network_name)}, which does not fit train.mode {shown(config.mode)}; "
            f'write "{wanted}", which follows the mode',
        )
        return
    yield from _patch_rules(config)


def _dataset_rules(config: RunConfig) -> Iterator[Problem]:
    dataset = config.dataset
    if not dataset.splits and dataset.full is None:
        yield Problem(
            ("dataset",),
            "dataset names no reconstruction; give dataset.splits (two or more names, to train) or dataset.full "
            "(to denoise), or both",
        )
    if not dataset.splits and config.infer.input == "splits":
        yield Problem(
            ("infer", "input"), 'infer.input is "splits", but dataset.splits is missing; name them or write "full"'
        )
    first_use: dict[str, int] = {}
    for k, path in enumerate(os.path.normpath(p) for p in config.given_splits):
        if path in first_use:
            yield Problem(
                ("dataset", "splits", k),
                f"dataset.splits[{k}] is {shown(dataset.splits[k])}, the same as dataset.splits[{first_use[path]}]; "
                "noise can only be told from signal between different sub-reconstructions",
            )
        first_use.setdefault(path, k)
    if (dataset.mean is None) != (dataset.std is None):
        given, absent = ("mean", "std") if dataset.std is None else ("std", "mean")
        yield Problem(
            ("dataset", given),
            f"dataset.{given} is {shown(getattr(dataset, given))}, but dataset.{absent} is missing; "
            "give both or neither",
        )
    start, end = dataset.train_start_slice, dataset.train_end_slice
    if start is not None and end is not None and end <= start:
        yield Problem(
            ("dataset", "train_end_slice"),
            f"dataset.train_end_slice is {end}; it must be above dataset.train_start_slice, which is {start}",
        )


def _patch_rules(config: RunConfig) -> Iterator[Problem]:
    patch_field = config.patch_field
    why = {
        "unet2d": "which unet2d halves three times",
        "unet3d": f"2^n_blocks with train.n_blocks {config.train.n_blocks}",
    }.get(config.network_name, f"2^(levels-1) with train.levels {config.train.levels}")
    multiple = config.patch_multiple
    for section, name, edge in (
        ("train", patch_field, config.patch),
        ("infer", "tile_size", config.infer.tile_size),
    ):
        if edge is not None and edge % multiple:
            below, above = edge // multiple * multiple, (edge // multiple + 1) * multiple
            nearest = f"{below} or {above}" if below else f"{above}"
            yield Problem(
                (section, name),
                f"{section}.{name} is {edge}; it must be divisible by {multiple} for {config.network_name} ({why}), "
                f"such as {nearest}",
            )
