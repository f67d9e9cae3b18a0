"""``denoise prepare``: a raw scan becomes a full reconstruction, K splits and a config that is ready to train from."""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from denoise.commands.display import progress_bar, say
from denoise.commands.prepared import (
    Layout,
    begun_counts,
    description,
    made_from,
    of_part,
    require_same_origin,
    stored_center,
)
from denoise.config import RunConfig, load_config
from denoise.config.recipes import RECIPES
from denoise.errors import ConfigError, ScanError
from denoise.files import require_free, write_text
from denoise.memory import available_bytes, give_back_freed, large_arrays_given_back
from denoise.projections.angles import SplitAngles
from denoise.projections.axis import center_doubt, find_center
from denoise.projections.footprint import RowPlan, plan_rows
from denoise.projections.lost import lost_projections
from denoise.projections.photon_transfer import beam_of, photons_of
from denoise.projections.reconstruct import angles_warning, reconstruct_scan
from denoise.projections.scan import Scan
from denoise.readable import counted, gigabytes
from denoise.tiles import Triple
from denoise.volumes import VolumeSink, create_sink, describe_numbers, is_whole
from denoise.volumes.sink import WholeAlready, free_bytes, require_space

_log = logging.getLogger(__name__)


def prepare(
    scan_path: Path,
    *,
    out: Path | None = None,
    splits: int = 2,
    center: float | None = None,
    rows: tuple[int | None, int | None] = (None, None),
    remove_stripes: bool = False,
    counts_per_photon: float | None = None,
    keep_projections: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    max_memory: int | None = None,
    settings: dict[str, Any] | None = None,
    mode: str | None = None,
    dry_run: bool = False,
) -> Path:
    """Reconstruct a scan and write a config; returns the config's path.

    Parameters
    ----------
    out
        Folder for the results; None: ``<scan>_rec`` beside the scan, with the rows in its name where not all are used.
    center
        Rotation centre in detector columns, counted from 0; None: found.
    rows
        First detector row, and the first that is left out; None: from the first, to the last. Slices are
        numbered as rows.
    keep_projections
        Use all, also those that seem to have no light or to be copies.
    counts_per_photon
        Variance of a pixel's counts over their mean, to correct the logarithm of low counts; None: from flats and
        projections; 0: no correction.
    resume
        Go on with what a run that died has left, if it left something.
    max_memory
        Host memory to take at most, in bytes.
    settings
        Sections ``train`` and ``infer`` for the config; None: chosen for the scan and this machine.
    mode
        The mode that the config will name.
    dry_run
        Check all that can be checked, say what it would take, and write nothing.
    """
    scan = Scan.open(scan_path).only_rows(*rows)
    scan = scan if keep_projections else _without_lost(scan)
    layout = Layout(out or _default_folder(scan), scan.sample_name, splits)
    dealt = SplitAngles.of(scan.angles_rad, splits)
    begun = begun_counts(layout) if resume and not overwrite and counts_per_photon is None else None
    counts = _counts_per_photon(scan, counts_per_photon) if begun is None else begun
    asked = made_from(scan, dealt, stripes=remove_stripes, center=center, counts_per_photon=counts)
    whole = [name for name in layout.volumes if resume and not overwrite and is_whole(layout.folder / name)]
    for name in whole:
        require_same_origin(layout.folder / name, scan, asked)
    written = layout.config.exists()
    if written and not overwrite and resume:
        _warn_of_other_splits(layout)
    if whole == layout.volumes and written:
        _warn_of_another_mode(layout.config, mode)
        _log.info("nothing is left to do")
        say(str(layout.config))
        return layout.config
    for path in (layout.config, layout.angles, *(layout.folder / name for name in layout.volumes)):
        require_free(path, overwrite=overwrite or resume, option="--out")
    depth, columns = scan.shape[1:]
    if center is not None and not 0 <= center <= columns - 1:
        raise ConfigError(f"--center {center} lies outside the detector; expected 0 to {columns - 1} (columns)")
    shape = (depth, columns, columns)
    # Built before the reconstruction: settings that cannot work must not cost an hour first.
    settings = settings or default_settings(shape)
    if mode is not None:
        settings = {**settings, "train": {**settings["train"], "mode": mode.lower()}}
    text = _config_text(layout, settings)
    if not dealt.is_in_turn:
        _log.info(
            "projections are divided in the order of their directions: in turn, splits would have wider gaps between "
            "them"
        )
    if warning := angles_warning(scan, splits):
        _log.warning("%s", warning)
    if begun == 0:
        _log.info("low counts are not corrected, as in what is there")
    elif counts and counts_per_photon is None:
        _log.info("a photon gives %g counts in a pixel: low counts are corrected for it", counts)
    plan = plan_rows(scan, splits, stripes=remove_stripes, max_memory=max_memory)
    if dry_run:
        _say_plan(scan, layout, shape, plan, center, counts)
        return layout.config
    if center is None and whole:
        center = stored_center(layout.folder / whole[0], columns)
    center = _center(scan, center)
    facts = made_from(scan, dealt, stripes=remove_stripes, center=center, counts_per_photon=counts)
    with _nothing_left_on_failure(layout.folder), ExitStack() as stack:
        sinks = [
            WholeAlready(str(layout.folder / name))
            if name in whole
            else _sink(layout.folder / name, shape, scan, of_part(facts, name), overwrite, resume)
            for name in layout.volumes
        ]
        entered = [stack.enter_context(sink) for sink in sinks]
        progress = stack.enter_context(progress_bar("reconstructing", depth, columns * columns))
        reconstruct_scan(
            scan,
            center=center,
            n_splits=splits,
            stripes=remove_stripes,
            counts_per_photon=counts,
            full=entered[0],
            splits=entered[1:],
            rows_per_slab=plan.rows,
            progress=lambda done, total: progress(done),
        )
    lines = zip(np.rad2deg(dealt.angles_rad), dealt.split_of, strict=True)
    write_text(layout.angles, "".join(f"{angle:.9g} {number}\n" for angle, number in lines))
    if overwrite or not written:  # otherwise it stays as the user may have changed it
        _keep_changed(layout.config, text)
        write_text(layout.config, text)
    else:
        _warn_of_another_mode(layout.config, mode)
    for run in layout.trainings if overwrite else ():
        _log.warning(
            "%s was trained on the reconstruction that has been replaced; where the grey values are others now, train "
            "anew with another --output-dir",
            run,
        )
    say(str(layout.config))
    return layout.config


def _without_lost(scan: Scan) -> Scan:
    """The scan without projections that say nothing, and a word about them."""
    try:
        lost = lost_projections(scan)
    except ScanError as error:  # in rows that may not be asked for
        _log.warning("projections without light, and copies, are not looked for: %s", error)
        return scan
    for sentence in lost.sentences(scan.path):
        _log.warning("%s", sentence)
    return scan.without(lost.numbers) if lost.numbers else scan


def _counts_per_photon(scan: Scan, given: float | None) -> float:
    """What is given, where it can be; otherwise what flats and projections tell, and a word where they differ."""
    if given == 0:
        return 0.0
    if given is not None and not 0 <= given < math.inf:
        raise ConfigError(f"--counts-per-photon is {given}; expected a number from 0, counts of the detector")
    try:
        if given is None:
            found = photons_of(scan)
            if found.doubt:
                _log.warning("%s", found.doubt)
            return found.counts_each
        beam = beam_of(scan)
    except ScanError as error:  # in rows that may not be asked for
        if given is None:
            _log.warning("low counts are not corrected (give --counts-per-photon to do so): %s", error)
        return given or 0.0
    if given > beam > 0:
        raise ConfigError(
            f"--counts-per-photon is {given:g}, and a pixel has {beam:g} counts in the beam, less than one photon; "
            "expected the variance of a pixel's counts over their mean"
        )
    return given


def _center(scan: Scan, given: float | None) -> float:
    """The one that is given, with a word where the projections have another; otherwise the one that they have."""
    # What the search leaves in this process would come on top of what reconstructing takes.
    with large_arrays_given_back():
        if given is not None:
            if doubt := center_doubt(scan, given):
                _log.warning("%s", doubt)
        else:
            found = find_center(scan)
            columns = scan.shape[2]
            _log.info("rotation centre found at column %.2f (of %d); give another with --center", found, columns)
    give_back_freed()
    return found if given is None else given


def _default_folder(scan: Scan) -> Path:
    """Where only some rows are tried, all of them can be made later without a word about --overwrite."""
    some = "" if scan.is_whole else f"_rows{scan.rows[0]}-{scan.rows[-1]}"
    return scan.path.with_name(f"{scan.path.stem}_rec{some}")


def _say_plan(scan: Scan, layout: Layout, shape: Triple, plan: RowPlan, center: float | None, counts: float) -> None:
    """What ``--dry-run`` prints; refuses a disk that is too small, as the run would."""
    _, rows, columns = scan.detector_shape
    size = "voxel size unknown" if scan.voxel_size_um is None else f"voxels of {scan.voxel_size_um:g} um"
    each = 4 * int(np.prod(shape, dtype=np.int64))
    volumes = layout.splits + 1
    require_space(layout.folder / layout.full, volumes * each)
    room = free_bytes(layout.folder / layout.full)
    lines = [
        ("scan", f"{scan.path}: {scan.shape[0]} angles of {rows} x {columns} pixels, {size}"),
        *([] if scan.is_whole else [("rows", f"{describe_numbers(scan.rows)} ({len(scan.rows)} of {rows})")]),
        ("centre", "searched for" if center is None else f"column {center:g}, as given"),
        ("photons", f"{counts:g} counts each in a pixel" if counts else "low counts are not corrected"),
        (
            "memory",
            f"about {gigabytes(plan.n_bytes)}, {counted(plan.rows, 'row')} at a time "
            f"({gigabytes(available_bytes())} free)",
        ),
        (
            "disk",
            f"{gigabytes(volumes * each)}: {volumes} volumes of {' x '.join(map(str, shape))} float32 "
            f"({gigabytes(room)} free in {layout.folder})",
        ),
        ("config", str(layout.config)),
    ]
    for name, text in lines:
        say(f"{name:<7}  {text}")


def _sink(path: Path, shape: Triple, scan: Scan, facts: dict[str, Any], overwrite: bool, resume: bool) -> VolumeSink:
    """An output that keeps what is done."""
    size = None if scan.voxel_size_um is None else (scan.voxel_size_um,) * 3
    return create_sink(
        path,
        shape=shape,
        voxel_size_um=size,
        slice_numbers=scan.rows,
        overwrite=overwrite,
        description=description(facts),
        resumable=True,
        resume=resume,
        facts=facts,
    )


def _keep_changed(config: Path, text: str) -> None:
    """Move a config that a user may have changed out of the way of a new one."""
    if not config.is_file() or config.read_bytes() == text.encode("utf-8"):
        return
    numbers = (n for n in itertools.count(1) if not os.path.lexists(config.with_name(f"{config.stem}_{n}.yaml")))
    kept = config.with_name(f"{config.stem}_{next(numbers)}.yaml")
    config.rename(kept)
    _log.warning("%s is written anew; the former one, which differs, is kept as %s", config, kept.name)


def _warn_of_other_splits(layout: Layout) -> None:
    """A config that stands is kept as it is, whatever splits are asked for."""
    try:
        named, made = load_config(layout.config).dataset.splits, layout.dataset()["splits"]
    except ConfigError as error:
        _log.warning("%s is kept as it is: %s", layout.config, error)
        return
    if len(named) != len(made):
        _log.warning(
            "%s is kept as it is, and names %s where this run makes %d; change dataset.splits there, or make all anew "
            "with --overwrite",
            layout.config, counted(len(named), "split"), len(made),
        )  # fmt: skip


def _warn_of_another_mode(config: Path, mode: str | None) -> None:
    """A config that stands is kept as it is, whatever mode is asked for."""
    if mode is not None and mode.lower() != (said := load_config(config).mode):
        _log.warning("%s is kept as it is, with mode %s; change train.mode there, or give `train` --mode", config, said)


@contextmanager
def _nothing_left_on_failure(folder: Path) -> Iterator[None]:
    """Remove the folder again, where it was new and nothing came into it."""
    is_new = not folder.exists()
    try:
        yield
    except BaseException:
        if is_new:
            with suppress(OSError):
                folder.rmdir()
        raise


def default_settings(shape: tuple[int, int, int]) -> dict[str, Any]:
    """Sections ``train`` and ``infer`` that fit the reconstruction; what is left out has defaults."""
    train: dict[str, Any] = {"mode": "2.5d", "network": "residual", "n_slices": 5}
    for name, network in (("patch_size", "residual2d"), ("patch_size_3d", "residual3d")):
        train[name] = _fitting(RECIPES[network].patch_size, shape[2])
    return {"train": train, "infer": {"input": "full"}}


def _fitting(wanted: int, available: int) -> int:
    """The largest multiple of 16 that is neither larger than wanted nor (if possible) than the image."""
    return max(16, min(wanted, available // 16 * 16))


def _config_text(layout: Layout, settings: dict[str, Any]) -> str:
    """A short config: what was prepared and what people change; the rest are defaults that the reference explains."""
    from io import StringIO

    from ruamel.yaml import YAML

    mapping = {"dataset": layout.dataset(), **settings}
    RunConfig.from_mapping(mapping, base=layout.folder)
    writer = YAML()
    writer.default_flow_style = False
    stream = StringIO()
    writer.dump(mapping, stream)
    return (
        "# Written by `denoise prepare`. Every field is explained in docs/configuration.md and baseline_config.yaml.\n"
        f"# Next: denoise train --config {layout.config.name}\n" + stream.getvalue()
    )
