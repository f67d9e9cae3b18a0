"""The sections `dataset` and `infer` of the config file, and the table of all sections.

A field is declared once: type, bounds, default, and what the user is told of it. Old names are in ``aliases``; rules
that join several fields are in ``rules``. ``docs/configuration.md`` and ``baseline_config.yaml`` are generated from
here: after a change run ``python docs/generate_configuration.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field

from denoise.config.fields import (
    COUNT_RULE,
    EDGE_RULE,
    MEMORY_RULE,
    NAME_RULE,
    PRECISION_RULE,
    About,
    Count,
    CountOrZero,
    Edge,
    FileName,
    Folder,
    MemorySize,
    Number,
    Positive,
    Precision,
    Reconstruction,
    Section,
    Splits,
)
from denoise.config.train_section import TrainSection


class DatasetSection(Section):
    """Where the reconstructions are."""

    folder: Annotated[
        Folder,
        MemorySize,
        About(
            "Folder that holds the reconstructions",
            "a folder",
            "Relative paths start at the folder of the config file.",
            example=".",
        ),
    ]
    splits: Annotated[
        Splits,
        About(
            "The sub-reconstructions, made from interleaved projection angles of one scan with identical settings",
            f"a list of two or more names, each {NAME_RULE}",
            "Needed for training. Relative to `folder`, or absolute. All must have one shape.",
            example=("recon_0", "recon_1"),
        ),
    ] = ()
    full: Annotated[
        Reconstruction | None,
        About(
            "The reconstruction from all angles, which is the one to be denoised",
            f"null, or {NAME_RULE}",
            'null: only the splits can be denoised (`infer.input: "splits"`).',
            example="recon_full",
        ),
    ] = None
    sample: Annotated[
        FileName | None,
        About(
            "Name that the outputs carry",
            "null, or a file name without / and \\",
            "null: taken from `full`, or else from the first split, without the suffix.",
        ),
    ] = None
    mean: Annotated[
        Number | None,
        About(
            "Mean of the grey values that a stored model was trained with",
            "null, or a number (together with `std`)",
            "Only for models stored by the published tools, which carry no normalisation. null: taken from the model.",
            unit="grey values",
        ),
    ] = None
    std: Annotated[
        Positive | None,
        About(
            "Standard deviation of the grey values that a stored model was trained with",
            "null, or a number above 0 (together with `mean`)",
            "As `mean`.",
            unit="grey values",
        ),
    ] = None
    train_start_slice: Annotated[
        CountOrZero | None,
        About(
            "Number of the first slice to train on",
            "null, or a whole number, 0 or more",
            "null: from the first slice. Nothing but its nearest neighbours is read of what lies outside the range.",
            unit="slice number",
        ),
    ] = None
    train_end_slice: Annotated[
        Count | None,
        About(
            "Number of the slice before which training data ends (it is not itself used)",
            "null, or a whole number above `train_start_slice`",
            "null: to the last slice.",
            unit="slice number",
        ),
    ] = None
    non_finite: Annotated[
        Literal["error", "fill"],
        About(
            "What to do with NaN and infinite voxels",
            '"error" or "fill"',
            "error: stop and name the file and slice. fill: the network sees the mean in their place; they are counted "
            "and reported.",
        ),
    ] = "error"
    max_memory: Annotated[
        MemorySize | None,
        About(
            "Host memory that a command may take, all of its processes on a machine together",
            f"null, or {MEMORY_RULE}",
            "Less: training data is read again and again in parts, slabs of the volume are smaller. null: what is free "
            "on the machine, or what the batch system allows. The memory of GPUs is not meant.",
        ),
    ] = None


class InferSection(Section):
    """How a volume is denoised."""

    input: Annotated[
        Literal["full", "splits"],
        About(
            "What is denoised",
            '"full" or "splits"',
            "full: `dataset.full`, which has the least noise. splits: the sub-reconstructions.",
        ),
    ] = "full"
    overlap: Annotated[
        Annotated[float, Field(strict=True, ge=0, lt=1)] | None,
        About(
            "Overlap of neighbouring tiles",
            "null, or a number, 0 or more and below 1",
            "More: fewer traces of the tiles, more time. null: as much as the network needs (docs/benchmarks.md).",
            unit="fraction of the tile",
        ),
    ] = None
    tta: Annotated[
        Literal[1, 2, 4, 8],
        About(
            "Versions of every tile whose predictions are averaged (test-time augmentation): mirrored and turned; "
            "of models that were trained with `train.symmetric`, to which those are the same, shifted by 1 to 3 voxels",
            "1, 2, 4 or 8",
            "More: better (after a short training 0.3 dB with 2, 0.6 dB with 8; shifted 0.25 dB with 2, 0.37 dB with "
            "4), and as many times slower. No more than 4 shifts are computed.",
            unit="versions",
        ),
    ] = 1
    window: Annotated[
        Literal["hann", "uniform"],
        About(
            "Weight of a tile from its centre to its border",
            '"hann" or "uniform"',
            'hann fades out, uniform does not. The old value "cosine" means hann.',
        ),
    ] = "hann"
    tile_size: Annotated[
        Edge | None,
        About(
            "Edge of the tiles",
            f"null, or {EDGE_RULE}",
            "Divisible as the training patch. null: as large as that for unet; larger for residual, whose result "
            "hardly depends on it (docs/benchmarks.md; its 3D tiles are flatter than wide).",
            unit="voxels",
        ),
    ] = None
    batch_size: Annotated[
        Count | None,
        About("Tiles per pass", f"null, or {COUNT_RULE}", "null: as many as the free memory allows.", unit="tiles"),
    ] = None
    precision: Annotated[
        Precision,
        About("Arithmetic of the network", PRECISION_RULE, "auto: bf16 where the device is fast at it, else float32."),
    ] = "auto"
    checkpoint: Annotated[
        Literal["val", "lcl", "edge"],
        About(
            "Which of the three stored models is used",
            '"val", "lcl" or "edge"',
            "val: lowest held-out error, the only one that measures fidelity. lcl, edge: smoothest, sharpest.",
        ),
    ] = "val"


SECTIONS: Mapping[str, type[Section]] = MappingProxyType(
    {"dataset": DatasetSection, "train": TrainSection, "infer": InferSection}
)


def about(section: type[Section], name: str) -> About:
    """What is documented of a field."""
    return next(note for note in section.model_fields[name].metadata if isinstance(note, About))
