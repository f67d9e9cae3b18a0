"""Variants of network and recipe, each trained for the same CPU seconds on one core, scored against the truth.

    python benchmarks/study.py --folder scratch --cases foam_low,anatomy --variants base,l2 --seconds 120

prints a line per run and appends it to ``scratch/study.jsonl``; ``--table`` prints those as Markdown. The clock is
the CPU time of the process, so that two runs on two cores, or a busy machine, do not distort it; the learning rate
follows that clock to its end. Scored are eight slices in the middle of the full reconstruction, each as one tile.
Variants are in `VARIANTS`; the results, and what followed from them, are in ``docs/network-study.md``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cases import CaseData, chosen_cases, open_case
from denoise.networks.residual import ResidualUNet, mixing_weights
from denoise.patches.symmetry import CUBE, PRISM, SQUARE
from denoise.quality import psnr, ssim
from denoise.tiles import reflect_indices
from study_networks import StudyUNet


@dataclass(frozen=True)
class Variant:
    """A network and a recipe.

    ``network`` holds options of ``StudyUNet``, or ``mixes: True`` for the package's 3D network. In 3D, ``depth`` is
    how many slices of a block are predicted (0: as many as it is wide), and ``slices_first`` the share of the time that
    goes into single slices of it, four of each block.
    """

    network: Mapping[str, Any] = field(default_factory=dict)
    patch: int = 128
    batch: int = 8
    learning_rate: float = 2e-3
    schedule: str = "cosine"
    loss: str = "l1"
    ema: float = 0.0
    splits: int = 2
    strategy: str = "X:1"
    optimizer: str = "adam"
    clip: float = 1.0
    warmup: float = 0.0
    clean: bool = False
    choices: str = "all"
    depth: int = 0
    slices_first: float = 0.0


BASE = Variant(batch=4, patch=64, learning_rate=8e-3, warmup=0.02, loss="l2")
CUBE_BASE = Variant(
    network={"dimensions": 3, "middle_blocks": 1},
    patch=24,
    batch=2,
    learning_rate=4e-3,
    warmup=0.02,
    loss="l2",
    schedule="flat",
    ema=0.995,
)
MIXED = replace(CUBE_BASE, network={"mixes": True}, learning_rate=8e-3, patch=48, depth=8, slices_first=0.5)
_NETWORKS: dict[str, dict[str, Any]] = {
    "out2": {"n_in": 6, "n_out": 2},
    "out4": {"n_in": 8, "n_out": 4},
    "out4w24": {"n_in": 8, "n_out": 4, "widths": (24, 48, 96)},
    "out4w32": {"n_in": 8, "n_out": 4, "widths": (32, 64, 128)},
    "out8w32": {"n_in": 12, "n_out": 8, "widths": (32, 64, 128)},
    "w24": {"widths": (24, 48, 96)},
    "w32": {"widths": (32, 64, 128)},
    "w8": {"widths": (8, 16, 32)},
    "unshuffle": {"unshuffle": 2, "widths": (32, 64, 128)},
    "out4unshuffle": {"n_in": 8, "n_out": 4, "unshuffle": 2, "widths": (64, 96, 128)},
    "levels4": {"widths": (16, 32, 64, 128)},
    "levels2": {"widths": (16, 32)},
    "blocks2": {"blocks": 2},
    "noskips": {"skips": "none"},
    "cat": {"skips": "cat"},
    "channelnorm": {"norm": "channel"},
    "direct": {"residual": False},
    "plainblocks": {"block_residual": False},
    "silu": {"activation": "silu"},
    "leaky": {"activation": "leaky"},
    "n3": {"n_in": 3},
    "n7": {"n_in": 7},
    "n9": {"n_in": 9},
    "n11": {"n_in": 11},
}
VARIANTS: dict[str, Variant] = {
    "base": BASE,
    **{
        f"b{batch}p{patch}": replace(BASE, batch=batch, patch=patch)
        for batch, patch in ((8, 128), (2, 128), (4, 96), (2, 96), (2, 64), (1, 64), (8, 64), (4, 48), (8, 48), (4, 32))
    },
    **{name: replace(BASE, network=network) for name, network in _NETWORKS.items()},
    "lr1": replace(BASE, learning_rate=1e-3),
    "lr2": replace(BASE, learning_rate=2e-3, warmup=0.0),
    "lr4": replace(BASE, learning_rate=4e-3),
    "lr16": replace(BASE, learning_rate=16e-3),
    "l1": replace(BASE, loss="l1"),
    "huber": replace(BASE, loss="huber"),
    "flat": replace(BASE, schedule="flat"),
    "flatema": replace(BASE, schedule="flat", ema=0.995),
    "ema": replace(BASE, ema=0.995),
    "constant": replace(BASE, schedule="constant"),
    "constantema": replace(BASE, schedule="constant", ema=0.999),
    "linear": replace(BASE, schedule="linear"),
    "noclip": replace(BASE, clip=0.0),
    "adam99": replace(BASE, optimizer="adam99"),
    "muon": replace(BASE, optimizer="muon"),
    "k4": replace(BASE, splits=4, batch=1),
    "k4one": replace(BASE, splits=4, batch=4, choices="one"),
    "k4_1X": replace(BASE, splits=4, batch=1, strategy="1:X"),
    "clean": replace(BASE, clean=True),
    "cube32": replace(BASE, network={"dimensions": 3, "middle_blocks": 1}, patch=32, batch=1),
    "cube40": replace(BASE, network={"dimensions": 3, "middle_blocks": 1}, patch=40, batch=1),
    "cube24": replace(BASE, network={"dimensions": 3, "middle_blocks": 1}, patch=24, batch=2),
    "cube": CUBE_BASE,
    "cube_p32": replace(CUBE_BASE, patch=32),
    **{
        f"cube_{name}": replace(CUBE_BASE, network={**CUBE_BASE.network, **network})
        for name, network in {
            "flat1": {"flat": 1},
            "flat2": {"flat": 2},
        }.items()
    },
    "mixed": MIXED,
    "mixed_lr4": replace(MIXED, learning_rate=4e-3),
    "mixed_d12": replace(MIXED, depth=12),
    "mixed_p64": replace(MIXED, patch=64),
    "mixed_b1p64": replace(MIXED, patch=64, batch=1),
    "mixed_at_once": replace(MIXED, slices_first=0.0),
}


def trained(variant: Variant, data: CaseData, seconds: float, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """Train on the noisy splits of all slices, the scored ones too, as the method does; returns network and facts."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    stack = np.stack(data.splits(variant.splits))
    mean, std = float(stack.mean()), float(stack.std())
    splits = torch.from_numpy((stack - mean) / std)
    truth = torch.from_numpy((data.truth - mean) / std) if variant.clean else None
    mixes = variant.network.get("mixes", False)
    network: nn.Module = ResidualUNet(**variant.network) if mixes else StudyUNet(**variant.network)
    volumetric = not mixes and network.dimensions == 3
    network = network.to(memory_format=torch.channels_last_3d if volumetric else torch.channels_last)
    optimizer = _optimizer(variant, network)
    averaged = (
        torch.optim.swa_utils.AveragedModel(
            network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(variant.ema)
        )
        if variant.ema
        else None
    )
    step, begun, done = 0, time.process_time(), 0.0
    while done < 1.0:
        done = min((time.process_time() - begun) / seconds, 1.0)
        rate = variant.learning_rate
        if variant.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * done))
        elif variant.schedule == "linear":
            rate *= 1 - done
        elif variant.schedule == "flat":  # constant, then straight to zero over the last 40 %
            rate *= min(1.0, (1 - done) / 0.4)
        if variant.warmup:
            rate *= min(1.0, max(done, 1e-3) / variant.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        on_slices = done < variant.slices_first
        inputs, targets = (_mixed_batch if mixes else _batch)(variant, network, splits, truth, rng)
        if on_slices:
            inputs, targets = _single_slices(inputs, targets, network.n_slices)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            prediction = network(inputs)
        difference = prediction.float() - targets
        loss = difference.abs().mean() if variant.loss == "l1" else difference.square().mean()
        if variant.loss == "huber":
            loss = nn.functional.huber_loss(prediction.float(), targets, delta=2.0)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if variant.clip:
            nn.utils.clip_grad_norm_(network.parameters(), variant.clip)
        for weights in mixing_weights(network) if on_slices else ():
            weights.grad = None
        optimizer.step()
        if averaged is not None:
            averaged.update_parameters(network)
        step += 1
    return (averaged.module if averaged is not None else network), {
        "steps": step,
        "mean": mean,
        "std": std,
        "parameters": sum(p.numel() for p in network.parameters()),
    }


def _optimizer(variant: Variant, network: nn.Module) -> torch.optim.Optimizer:
    if variant.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), lr=variant.learning_rate)
    if variant.optimizer == "adam99":
        return torch.optim.Adam(network.parameters(), lr=variant.learning_rate, betas=(0.9, 0.99))
    if variant.optimizer == "nadam":
        return torch.optim.NAdam(network.parameters(), lr=variant.learning_rate)
    if variant.optimizer == "muon":
        return ConvMuon(network, variant.learning_rate)
    raise ValueError(variant.optimizer)


class ConvMuon(torch.optim.Optimizer):
    """Muon (Jordan 2024) on convolution weights flattened to (out, rest), Adam on the rest."""

    def __init__(self, network: nn.Module, rate: float) -> None:
        named = list(network.named_parameters())
        inner = [p for n, p in named if p.dim() > 2 and not n.startswith(("enter", "leave"))]
        rest = [p for n, p in named if p.dim() <= 2 or n.startswith(("enter", "leave"))]
        super().__init__(
            [{"params": inner, "muon": True, "scale": 10.0}, {"params": rest, "muon": False}], {"lr": rate}
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Take one step."""
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if group["muon"]:
                    m = state.setdefault("m", torch.zeros_like(p))
                    m.lerp_(p.grad, 0.05)
                    update = p.grad.lerp(m, 0.95).flatten(1)
                    update = _orthogonal(update).reshape(p.shape)
                    p.add_(update, alpha=-group["lr"] * max(1, p.shape[0] / p[0].numel()) ** 0.5)
                else:
                    state.setdefault("t", 0)
                    state["t"] += 1
                    m = state.setdefault("m", torch.zeros_like(p)).lerp_(p.grad, 0.1)
                    v = state.setdefault("v", torch.zeros_like(p)).lerp_(p.grad.square(), 0.001)
                    mh, vh = m / (1 - 0.9 ** state["t"]), v / (1 - 0.999 ** state["t"])
                    p.add_(mh / (vh.sqrt() + 1e-8), alpha=-group["lr"])


def _orthogonal(g: Tensor) -> Tensor:
    x = g / (g.norm() + 1e-7)
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x if wide else x.T


def _mixed_batch(
    variant: Variant, network: ResidualUNet, splits: Tensor, truth: Tensor | None, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Flat blocks, with the neighbours of their slices, and what is predicted of them."""
    _, depth, height, width = splits.shape
    before, edge, predicted = network.n_slices // 2, variant.patch, variant.depth
    inputs, targets = [], []
    for _ in range(variant.batch):
        z = int(rng.integers(depth - predicted + 1))
        rows = reflect_indices(z - before, predicted + network.n_slices - 1, 0, depth)
        y, x = int(rng.integers(height - edge + 1)), int(rng.integers(width - edge + 1))
        block = PRISM[int(rng.integers(16))].turn(splits[:, rows, y : y + edge, x : x + edge])
        inputs.append(block.flip(0))
        targets.append(block[:, before : before + predicted])
    return torch.cat(inputs), torch.cat(targets)


def _single_slices(inputs: Tensor, targets: Tensor, n_slices: int) -> tuple[Tensor, Tensor]:
    """Four slices of each block, evenly spaced."""
    depth = targets.shape[1]
    places = [(2 * i + 1) * depth // 8 for i in range(4)]
    return torch.cat([inputs[:, z : z + n_slices] for z in places]), torch.cat([targets[:, z, None] for z in places])


def _batch(
    variant: Variant, network: StudyUNet, splits: Tensor, truth: Tensor | None, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    k, depth, height, width = splits.shape
    cubes = network.dimensions == 3
    edge = variant.patch
    read = edge if cubes else network.n_in
    predicted = edge if cubes else network.n_out
    first = (read - predicted + 1) // 2
    inputs, targets = [], []
    for _ in range(variant.batch):
        # Reflected in z, as the sampler of the package does; cubes lie inside.
        z = int(rng.integers(depth - read + 1)) if cubes else int(rng.integers(-first, depth - read + first + 1))
        rows = np.abs(np.arange(z, z + read))
        rows = np.where(rows >= depth, 2 * (depth - 1) - rows, rows)
        y, x = int(rng.integers(height - edge + 1)), int(rng.integers(width - edge + 1))
        block = splits[:, rows, y : y + edge, x : x + edge]
        clean = None if truth is None else truth[None, rows, y : y + edge, x : x + edge]
        symmetry = CUBE[int(rng.integers(48))] if cubes else SQUARE[int(rng.integers(8))]
        block = symmetry.turn(block)
        others = (block.sum(0, keepdim=True) - block) / (k - 1)
        if clean is not None:
            clean = symmetry.turn(clean).expand_as(block)
        a, b = (others, block) if variant.strategy == "X:1" else (block, others)
        b = b if clean is None else clean
        if variant.choices == "one":
            i = int(rng.integers(k))
            a, b = a[i : i + 1], b[i : i + 1]
        inputs.append(a)
        targets.append(b[:, first : first + predicted])
    return torch.cat(inputs), torch.cat(targets)


@torch.inference_mode()
def scored(network: nn.Module, facts: dict[str, Any], data: CaseData, turns: int = 1) -> tuple[float, float]:
    """PSNR and SSIM of slices 20..27."""
    full = torch.from_numpy((data.full - facts["mean"]) / facts["std"])
    first, last = 20, 28
    network.eval()
    result = torch.zeros((last - first, *full.shape[1:]))
    for symmetry in SQUARE[:turns]:
        stack = symmetry.turn(full)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if isinstance(network, ResidualUNet):
                around = (network.n_slices - 1) // 2 + 6  # all that it sees up and down
                out = network(stack[None, first - around : last + around])[0, 6 : 6 + last - first]
            elif network.dimensions == 3:
                halves = [network(stack[None, ..., i : i + 128, :])[0, first:last] for i in (0, 128)]
                out = torch.cat(halves, dim=-2)
            else:
                low = first - (network.n_in - network.n_out + 1) // 2
                starts = range(low, low + last - first, network.n_out)
                out = torch.cat([network(stack[None, z : z + network.n_in])[0] for z in starts])
        result += symmetry.inverse.turn(out.float()) / turns
    denoised = result[None] * facts["std"] + facts["mean"]
    truth = torch.tensor(data.truth[first:last])[None]
    mask = torch.from_numpy(data.inside)
    return psnr(denoised, truth, data.data_range, mask), ssim(denoised, truth, data.data_range, mask)


def table(path: Path) -> str:
    """All rows as Markdown: CPU seconds, what was trained, PSNR on each case, grouped by recipe."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    plain = asdict(Variant())
    found: dict[tuple[float, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        what = {name: value for name, value in row["what"].items() if value != plain[name]}
        what |= what.pop("network", {})
        text = ", ".join(f"{name} {value}" for name, value in {**_always_shown(row["what"]), **what}.items())
        found.setdefault((row["seconds"], text), {})[row["case"]] = row
    lines = [
        "| CPU s | network and recipe | parameters | steps | "
        + " | ".join(f"{case}, dB | with tta 8" for case in cases)
        + " |",
        "| --- " * (4 + 2 * len(cases)) + "|",
    ]
    for (seconds, text), by_case in sorted(found.items(), key=lambda item: (item[0][0], item[0][1])):
        first = next(iter(by_case.values()))
        cells = [f"{by_case[c]['psnr']:.2f} | {by_case[c]['psnr_tta']:.2f}" if c in by_case else " | " for c in cases]
        lines.append(
            f"| {seconds:g} | {text} | {first['parameters']:,} | {first['steps']} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def _always_shown(what: Mapping[str, Any]) -> dict[str, Any]:
    """What every row says, default or not."""
    return {name: what[name] for name in ("patch", "batch", "learning_rate", "loss")}


def main() -> None:
    """Train and score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cases", default="foam_low,anatomy")
    parser.add_argument("--variants", default="base")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="print what is in study.jsonl; trains nothing")
    options = parser.parse_args()
    if options.table:
        print(table(options.folder / "study.jsonl"))
        return
    torch.set_num_threads(1)
    names = list(VARIANTS) if options.variants == "all" else options.variants.split(",")
    for name in names:
        for case in chosen_cases(options.cases):
            data = open_case(options.folder, case)
            network, facts = trained(VARIANTS[name], data, options.seconds, options.seed)
            values, turned = scored(network, facts, data), scored(network, facts, data, 8)
            row = {
                "variant": name,
                "case": case,
                "seconds": options.seconds,
                "seed": options.seed,
                "psnr": round(values[0], 3),
                "ssim": round(values[1], 4),
                "psnr_tta": round(turned[0], 3),
                "steps": facts["steps"],
                "parameters": facts["parameters"],
                "what": asdict(VARIANTS[name]),
            }
            with (options.folder / "study.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(
                f"{name:12} {case:10} {values[0]:.2f} dB, SSIM {values[1]:.3f}; 8 turns {turned[0]:.2f} dB; "
                f"{facts['steps']} steps, {facts['parameters']} parameters",
                flush=True,
            )


if __name__ == "__main__":
    main()
