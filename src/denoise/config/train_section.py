"""The section `train` of the config file; see ``sections``."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from denoise.config.fields import (
    COUNT_OR_ZERO_RULE,
    COUNT_RULE,
    EDGE_RULE,
    PRECISION_RULE,
    About,
    AnyCase,
    Count,
    CountOrZero,
    Edge,
    Flag,
    Folder,
    Positive,
    Precision,
    Section,
)
from denoise.config.recipes import RECIPES, LossName, ScheduleName

ModeName: TypeAlias = Literal["2.5d", "3d"]
NetworkName: TypeAlias = Literal["unet", "residual", "unet2d", "unet3d", "residual2d", "residual3d"]


class TrainSection(Section):
    """How the network is trained."""

    mode: Annotated[
        Annotated[ModeName, AnyCase],
        About(
            "How the volume is cut up",
            '"2.5d" or "3d"',
            "2.5d: a centre slice is predicted from it and its neighbours; quick. 3d: cubes are predicted from cubes; "
            "slower, best along z.",
        ),
    ] = "2.5d"
    network: Annotated[
        NetworkName,
        About(
            "The network",
            '"residual" or "unet" (the mode picks the dimension), or one of "residual2d", "residual3d", "unet2d", '
            '"unet3d" that fits the mode',
            "residual: a light network with additive skips and no normalisation layers; better sooner, and several "
            "times cheaper per voxel. unet: the published networks.",
        ),
    ] = "residual"
    n_slices: Annotated[
        Annotated[int, Field(strict=True, ge=1, le=99)],
        About(
            "Slices that the network sees at once",
            "a whole number, 1 to 99",
            "More slices use more of the context along z. Of residual3d its first layer sees so many; not for unet3d.",
            unit="slices",
        ),
    ] = 5
    patch_size: Annotated[
        Edge | None,
        About(
            "Edge of the square training patches in 2.5D",
            f"null, or {EDGE_RULE}",
            "Divisible by 8 for unet2d, by 2^(levels-1) for residual2d. Larger: more context and memory, fewer steps. "
            f"null: {RECIPES['residual2d'].patch_size} for residual2d, {RECIPES['unet2d'].patch_size} for unet2d.",
            "voxels",
        ),
    ] = None
    patch_size_3d: Annotated[
        Edge | None,
        About(
            "Edge of the training blocks in 3D",
            f"null, or {EDGE_RULE}",
            "Divisible by 2^n_blocks for unet3d, which has cubes, by 2^(levels-1) for residual3d, whose blocks are as "
            "many times as wide as deep as docs/about.md says. Memory grows with its third power. "
            f"null: {RECIPES['residual3d'].patch_size} for residual3d, {RECIPES['unet3d'].patch_size} for unet3d.",
            "voxels",
        ),
    ] = None
    batch_size: Annotated[
        Count | None,
        About(
            "Patches per optimiser step, all GPUs together",
            f"null, or {COUNT_RULE}",
            "Lower it when the memory of the GPU is too small. null: "
            + ", ".join(f"{recipe.batch_size} for {name}" for name, recipe in RECIPES.items())
            + "; on NVIDIA GPUs "
            + ", ".join(f"{r.gpu_batch_size} for {name}" for name, r in RECIPES.items() if r.gpu_batch_size)
            + ".",
            unit="patches",
        ),
    ] = None
    learning_rate: Annotated[
        Positive | None,
        About(
            "Step size of the optimiser",
            "null, or a number above 0",
            "Too large: the loss jumps. Too small: slow. "
            "null: "
            + ", ".join(f"{recipe.learning_rate:g} for {name}" for name, recipe in RECIPES.items())
            + ". Convolutions of residual networks take steps of "
            + ", ".join(f"{r.muon.rate:g} ({name})" for name, r in RECIPES.items() if r.muon)
            + " times that (docs/about.md, Networks).",
        ),
    ] = None
    schedule: Annotated[
        ScheduleName | None,
        About(
            "Course of the learning rate",
            'null, "hold", "cosine" or "constant"',
            "hold: constant until the held-out score stops improving (or until 60 % of `max_minutes` or `max_epochs`), "
            "then falling to zero. cosine: falls to zero over `max_minutes` or `max_epochs`; set one to what you "
            "will really run. constant: never falls. null: hold for residual, constant for unet.",
        ),
    ] = None
    warmup_steps: Annotated[
        CountOrZero,
        About(
            "Steps before the Laplacian contrast loss is added and the lcl and edge checkpoints count",
            COUNT_OR_ZERO_RULE,
            "Until then only the distance to the other split counts.",
            unit="optimiser steps",
        ),
    ] = 2000
    max_epochs: Annotated[
        Count,
        About("Epochs after which training ends", COUNT_RULE, "The best model so far is kept at any time.", "epochs"),
    ] = 2000
    max_minutes: Annotated[
        Positive | None,
        About(
            "Minutes after which training ends",
            "null, or a number above 0",
            "The learning rate is planned for them: give the time that you have. Reading and scoring count; the parts "
            "of a resumed run are added up. null: no limit.",
            "minutes",
        ),
    ] = None
    patience: Annotated[
        CountOrZero | None,
        About(
            "Epochs, and two scores at least, without improvement after which training comes to its end",
            f"null, or {COUNT_OR_ZERO_RULE}",
            "null: when the last third of the run made the held-out error smaller by less than 0.1 dB (not with "
            "`schedule: cosine`). 0: never stop early. With `schedule: hold` the rate then falls to zero, over two "
            "thirds as many steps as were made.",
            unit="epochs",
        ),
    ] = None
    z_stride: Annotated[
        Count,
        About(
            "Train on every n-th centre slice (3D: on cubes that start at every n-th slice)",
            COUNT_RULE,
            "Above 1: shorter epochs in 2.5D; the neighbours of a slice always stay its true neighbours.",
            unit="slices",
        ),
    ] = 1
    patches_per_epoch: Annotated[
        Count | None,
        About(
            "Patches drawn per epoch in 2.5D",
            f"null, or {COUNT_RULE}",
            "null: one per training slice, at least 256.",
            unit="patches",
        ),
    ] = None
    patches_per_epoch_3d: Annotated[
        Count | None,
        About(
            "Cubes drawn per epoch in 3D",
            f"null, or {COUNT_RULE}",
            "null: as many as fill the training volume once.",
            unit="cubes",
        ),
    ] = None
    n_blocks: Annotated[
        Annotated[int, Field(strict=True, ge=1, le=8)],
        About("Levels of unet3d", "a whole number, 1 to 8", "More: wider view, more memory."),
    ] = 4
    start_filters: Annotated[
        Annotated[int, Field(strict=True, ge=1, le=1024)],
        About("Filters of the first level of unet3d", "a whole number, 1 to 1024", "Doubles from level to level."),
    ] = 56
    width: Annotated[
        Annotated[int, Field(strict=True, ge=1, le=1024)],
        About(
            "Channels of the first level of a residual network", "a whole number, 1 to 1024", "Doubles at each level."
        ),
    ] = 16
    levels: Annotated[
        Annotated[int, Field(strict=True, ge=1, le=8)],
        About(
            "Levels of a residual network",
            "a whole number, 1 to 8",
            "More: wider view.",
        ),
    ] = 3
    loss: Annotated[
        LossName | None,
        About(
            "Distance between the prediction and the other split",
            'null, "l1", "l2" or "huber"',
            "l2 (mean squared error) learns much faster; l1 (mean absolute error) and huber withstand outliers such as "
            "zingers. null: l2 for residual, l1 for unet.",
        ),
    ] = None
    huber_delta: Annotated[
        Positive,
        About(
            "Where the Huber loss turns from squared to absolute",
            "a number above 0",
            'Only for `loss: "huber"`.',
            unit="standard deviations of the data",
        ),
    ] = 1.0
    lcl_weight: Annotated[
        Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0)] | None,
        About(
            "Weight of the Laplacian contrast loss",
            "null, or a number, 0 or more",
            "Larger: smoother areas, sharper edges, less faithful. 0: without it. null: 0 for residual, 0.01 for unet.",
        ),
    ] = None
    strategy: Annotated[
        Literal["X:1", "1:X"],
        About(
            "What is predicted from what with more than two splits",
            '"X:1" or "1:X"',
            "X:1: one split from the mean of the others. 1:X: the reverse. With two splits both are the same.",
        ),
    ] = "X:1"
    gradient_clip: Annotated[
        Positive | None,
        About("Largest norm of the gradient", "null, or a number above 0", "null: gradients are not clipped."),
    ] = 1.0
    ema_decay: Annotated[
        Annotated[float, Field(strict=True, ge=0, lt=1)] | None,
        About(
            "Decay of a running average of the weights, which is then the model that is scored and stored",
            "null, or a number, 0 or more and below 1",
            "Typical: 0.995 to 0.999. 0: the weights themselves. null: 0.995 for residual, 0 for unet.",
        ),
    ] = None
    precision: Annotated[
        Precision,
        About("Arithmetic of the network", PRECISION_RULE, "auto: bf16 where the device is fast at it, else float32."),
    ] = "auto"
    augment: Annotated[
        Flag,
        About("Turn and mirror patches at random", "true or false", "Almost always helps; costs nothing."),
    ] = True
    symmetric: Annotated[
        Flag | None,
        About(
            "Whether a new `residual` network gives for a turned or mirrored slice the turned or mirrored result",
            "null, true or false",
            "true: learns faster (docs/about.md); with few data, long runs end at a little less. null: true where 8 "
            "million voxels or more of each split are trained on and `augment` is true.",
        ),
    ] = None
    validation_fraction: Annotated[
        Annotated[float, Field(strict=True, gt=0, le=0.5)],
        About(
            "Share of the slices held out to choose the best model",
            "a number above 0, at most 0.5",
            "They are one z-band that is never trained on.",
            unit="fraction",
        ),
    ] = 0.1
    validate_every: Annotated[
        Count | None,
        About(
            "Epochs from one held-out score to the next",
            f"null, or {COUNT_RULE}",
            "null: chosen so that scoring takes a small part of the time.",
            unit="epochs",
        ),
    ] = None
    seed: Annotated[
        Annotated[int, Field(strict=True, ge=0, lt=2**63)],
        About(
            "Seed of everything random", COUNT_OR_ZERO_RULE, "The same seed gives the same patches and first weights."
        ),
    ] = 0
    save_every_minutes: Annotated[
        Positive,
        About(
            "Time from one saved state to the next",
            "a number above 0",
            "At most this much work is lost when the machine fails.",
            unit="minutes",
        ),
    ] = 5.0
    tensorboard: Annotated[
        Flag,
        About("Write curves for TensorBoard too", "true or false", "Needs the extra `tensorboard`."),
    ] = False
    output_dir: Annotated[
        Folder | None,
        About(
            "Folder for the models and the record of the run",
            "null, or a folder",
            "Relative paths start at the folder of the config file. null: `<folder>/<sample>_training_<mode>`.",
        ),
    ] = None
