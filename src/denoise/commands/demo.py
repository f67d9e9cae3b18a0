"""``denoise demo``: the whole way on a simulated scan, where the truth is known. Needs no data.

Its files are an ordinary dataset with a config, so that every other command can be tried on them.
"""

from __future__ import annotations

import json
import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from denoise.archive import software_versions
from denoise.commands.display import say
from denoise.commands.infer import Choice, denoise_volume
from denoise.commands.prepare import prepare
from denoise.commands.report import Judgement, Request, write_report
from denoise.commands.train import train
from denoise.config import RunConfig, load_config
from denoise.errors import OutputError
from denoise.files import discard, require_free, whole_file, write_text
from denoise.launch import Compute, describe_device
from denoise.projections.phantom import FoamPhantom, simulate_foam_scan
from denoise.projections.reconstruct import reconstruct_rows
from denoise.projections.scan import Scan
from denoise.quality import psnr, ssim
from denoise.tiles import Region
from denoise.trust.interval import ends_in_words
from denoise.trust.verdict import finite
from denoise.volumes import create_sink, open_volume
from denoise.volumes.volume import Float32Array

_log = logging.getLogger(__name__)

#: Minutes of training: enough to see what it does. Real scans deserve more.
_MINUTES = {"2.5d": 1.0, "3d": 2.5}

#: What a demo, and other commands on its config, write into its folder; hidden ones are of runs that were killed.
_OWN_NAMES = re.compile(
    r"foam_(scan\.h5|truth|full|angles\.txt|split\d+|config\.yaml|training_(2\.5d|3d)|denoised_slices|denoised_volume_.+|report(_.+)?)"
    r"|before_after_truth\.png|summary\.json|\.(foam_\w+|before_after_truth|summary)\.(partial|replaced)-.+"
)
_OWN_SUFFIXES = (".tif", ".pth", ".yaml", ".jsonl", ".png", ".json", ".html")


@dataclass(frozen=True)
class DemoFolder:
    """The names of what the demo writes besides an ordinary dataset."""

    path: Path

    @property
    def scan(self) -> Path:
        """The simulated raw scan."""
        return self.path / "foam_scan.h5"

    @property
    def truth(self) -> Path:
        """Reconstruction of the noise-free projections."""
        return self.path / "foam_truth"

    @property
    def picture(self) -> Path:
        """Before, after, truth."""
        return self.path / "before_after_truth.png"

    @property
    def summary(self) -> Path:
        """The numbers."""
        return self.path / "summary.json"


@dataclass(frozen=True)
class Figures:
    """Quality inside the cylinder against the noise-free reconstruction, whose range is the data range."""

    psnr: float
    ssim: float


def demo(
    out: Path,
    *,
    mode: str = "2.5d",
    compute: Compute | None = None,
    settings: dict[str, Any] | None = None,
    overwrite: bool = False,
    progress: bool = True,
    slices: int = 48,
    size: int = 256,
) -> Path:
    """Simulate, reconstruct, train, denoise, compare and report; returns the path of the summary.

    Parameters
    ----------
    settings
        Sections ``train`` and ``infer`` instead of the demonstration's own.
    slices, size
        Size of the phantom; the projections have twice as many angles as columns.
    """
    begun = time.monotonic()
    folder = DemoFolder(out)
    compute = compute or Compute()
    devices = compute.devices()
    mode = mode.lower()
    if settings is None:
        _log.info("demonstration setting: a brief training; real scans deserve more")
        settings = {"train": {"mode": mode, "max_minutes": _MINUTES.get(mode), "symmetric": True}}
    # Everything that can be refused is refused before an earlier demo makes room.
    RunConfig.from_mapping({"dataset": {"folder": str(out), "full": "foam_full"}, **settings}, mode=mode)
    _make_room(out, overwrite)
    phantom = simulate_foam_scan(folder.scan, size=size, slices=slices, angles=2 * size)
    truth = _write_truth(phantom, folder)
    config_path = prepare(folder.scan, out=out, center=phantom.center, settings=settings)
    config = load_config(config_path, mode=mode)
    train(config, compute, progress=progress)
    noisy = _whole(config.full_path or "")
    output = denoise_volume(config, compute, Choice())
    denoised = _whole(output)
    inside = torch.from_numpy(phantom.inside())
    before, after = _figures(noisy, truth, inside), _figures(denoised, truth, inside)
    draw_comparison({"noisy": noisy, "denoised": denoised, "truth": truth}, (before, after), folder.picture)
    judgement = write_report(config, compute, Request())
    seconds = time.monotonic() - begun
    summary = {
        "psnr_noisy": round(before.psnr, 3),
        "psnr_denoised": round(after.psnr, 3),
        "ssim_noisy": round(before.ssim, 4),
        "ssim_denoised": round(after.ssim, 4),
        **_told_and_true(judgement, truth),
        "seconds": round(seconds, 1),
        "mode": config.mode,
        "network": config.network_name,
        "device": ", ".join(describe_device(device) for device in devices),
        "versions": software_versions(),
        "setting": "demonstration",
    }
    write_text(folder.summary, json.dumps(summary, indent=2) + "\n")
    _say_results(folder, summary)
    say(f"To open in a browser: {judgement.page}")
    return folder.summary


def _make_room(out: Path, overwrite: bool) -> None:
    """Refuse a folder with anything in it; with --overwrite, empty one that holds a demo and nothing else."""
    require_free(out / "summary.json", overwrite=True)
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise OutputError(
            f"{out} exists already and is not empty; choose another --out, or replace it with --overwrite"
        )
    if foreign := _first_foreign_entry(out):
        raise OutputError(f"{out} holds {foreign.relative_to(out)}, which no demo wrote; choose another --out")
    for path in out.iterdir():
        discard(path)


def _first_foreign_entry(out: Path) -> Path | None:
    names = {path.name for path in out.iterdir()}
    # The names of prepared data alone prove nothing: a user's own sample may be called foam.
    is_demo = "foam_truth" in names or all(name == "foam_scan.h5" or name.startswith(".") for name in names)
    for path in sorted(out.rglob("*")):
        known = _OWN_NAMES.fullmatch(path.name) if path.parent == out else path.is_dir() or path.suffix in _OWN_SUFFIXES
        if path.is_symlink() or not (is_demo and known):
            return path
    return None


def _write_truth(phantom: FoamPhantom, folder: DemoFolder) -> Float32Array:
    scan = Scan.open(folder.scan)
    truth = reconstruct_rows(phantom.project(scan.angles_rad), scan.angles_rad, phantom.center)
    with create_sink(folder.truth, shape=truth.shape) as sink:
        sink.write(0, truth)
    return truth


def _whole(path: str) -> Float32Array:
    volume = open_volume(path)
    return volume.read(Region((0, 0, 0), volume.shape))


def _figures(image: Float32Array, truth: Float32Array, inside: torch.Tensor) -> Figures:
    wanted = torch.from_numpy(truth)[None]
    values = wanted[0][:, inside]
    data_range = float(values.max() - values.min())
    found = torch.from_numpy(image)[None]
    return Figures(psnr(found, wanted, data_range, inside), ssim(found, wanted, data_range, inside))


def _told_and_true(judgement: Judgement, truth: Float32Array) -> dict[str, float | list[float | None] | None]:
    """The gain as the report tells it without the truth, and as it is on the same voxels.

    These are the whole field of view of held-out slices, with the air around the object, where noise is easy to remove.
    """
    evidence, gain = judgement.evidence, judgement.report.scores.gain
    before, after = (
        np.square(stack.astype(np.float64) - truth[judgement.region.slices])[:, evidence.mask].mean()
        for stack in (evidence.full, evidence.delivered)
    )
    low, high = (None if (v := finite(end)) is None else round(v, 2) for end in (gain.low, gain.high))
    told = finite(gain.value)
    return {
        "gain_reported": None if told is None else round(told, 2),
        "gain_reported_95": [low, high],
        "gain_true_there": round(float(10 * np.log10(before / after)), 2),
    }


def draw_comparison(volumes: dict[str, Float32Array], figures: tuple[Figures, Figures], path: Path) -> None:
    """The middle slice of each volume at one grey window; below, an enlarged part."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    truth = volumes["truth"]
    z, size = truth.shape[0] // 2, truth.shape[1]
    low, high = np.percentile(truth[z], (0.5, 99.8))
    margin = 0.08 * (high - low)
    corner, edge = int(0.36 * size), int(0.28 * size)
    titles = [f"{name}\n{f.psnr:.1f} dB, SSIM {f.ssim:.2f}" for name, f in zip(volumes, figures, strict=False)]
    figure = Figure(figsize=(12, 8.6), layout="constrained")
    axes = figure.subplots(2, 3)
    for column, (image, title) in enumerate(zip(volumes.values(), [*titles, "truth\n(noise-free scan)"], strict=True)):
        for row, shown in enumerate((image[z], image[z, corner : corner + edge, corner : corner + edge])):
            panel = axes[row, column]
            panel.imshow(shown, cmap="gray", vmin=low - margin, vmax=high + margin, interpolation="nearest")
            panel.set_axis_off()
        axes[0, column].set_title(title)
        axes[0, column].add_patch(Rectangle((corner, corner), edge, edge, fill=False, edgecolor="tab:orange"))
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=110)


def _say_results(folder: DemoFolder, summary: dict[str, Any]) -> None:
    gain = summary["psnr_denoised"] - summary["psnr_noisy"]
    say(
        f"\nPSNR {summary['psnr_noisy']:.1f} -> {summary['psnr_denoised']:.1f} dB ({gain:+.1f} dB), "
        f"SSIM {summary['ssim_noisy']:.2f} -> {summary['ssim_denoised']:.2f}, in {summary['seconds']:.0f} s "
        f"on {summary['device']} (demonstration setting)"
    )
    told, (low, high) = summary["gain_reported"], summary["gain_reported_95"]
    said = "an unknown gain" if told is None else f"a gain of {told:+.1f} dB ({ends_in_words(low, high, ' dB')})"
    say(
        f"Without the truth, `denoise report` tells {said} for the held-out slices, air included; there it is "
        f"{summary['gain_true_there']:+.1f} dB"
    )
    say("Written:")
    for path in sorted(folder.path.iterdir()):
        if not path.name.startswith("."):
            say(f"  {path}{'/' if path.is_dir() else ''}")
