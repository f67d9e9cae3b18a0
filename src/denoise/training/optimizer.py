"""The optimisers of a network: Adam, with a rate for each weight tensor where the recipe asks for it; and Muon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from denoise.config.recipes import Adam, Muon
from denoise.training import muon as steps

_SCALE = "scale"
#: In what is stored, besides what Adam stores; runs that were begun before there was a Muon do not have it.
_MUON = "muon"


class Optimizers:
    """What changes the weights: Adam all of them, or Muon those of convolutions and Adam their biases.

    Parameters
    ----------
    network
        On its device; all its weights are trained.
    rate
        The learning rate; weights have their share of it.
    """

    def __init__(self, network: nn.Module, adam: Adam, muon: Muon | None, rate: float, device: torch.device) -> None:
        self._adam = _make_adam([w for w in network.parameters() if muon is None or w.ndim < 2], adam, rate, device)
        self._all: list[torch.optim.Optimizer] = [self._adam]
        self._muon = None
        if muon is not None:
            self._muon = steps.Muon(
                [{"params": [w for w in network.parameters() if w.ndim >= 2], _SCALE: muon.rate}],
                rate=rate, momentum=muon.momentum, decay=muon.decay,
            )  # fmt: skip
            self._all.append(self._muon)
        self.set_rate(rate)

    @staticmethod
    def had_muon(stored: Mapping[str, Any]) -> bool:
        """Whether the optimisers that left this had a Muon."""
        return _MUON in stored

    @property
    def rates(self) -> Mapping[nn.Parameter, float]:
        """What each weight tensor has now."""
        return {w: group["lr"] for one in self._all for group in one.param_groups for w in group["params"]}

    def set_rate(self, rate: float) -> None:
        """The learning rate from now on: of each group its share."""
        for one in self._all:
            for group in one.param_groups:
                group["lr"] = rate * group[_SCALE]

    def step(self) -> None:
        """Change the weights as their gradients say."""
        for one in self._all:
            one.step()

    def forget_gradients(self) -> None:
        """For the next step."""
        for one in self._all:
            one.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """What they know of the weights, to be stored: plain values and tensors."""
        return self._adam.state_dict() | ({} if self._muon is None else {_MUON: self._muon.state_dict()})

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Know again what was stored; settings are the run's own, the same as then.

        Raises
        ------
        ValueError
            Something stored fits no weights.
        """
        _restore(self._adam, stored)
        if self._muon is not None:
            _restore(self._muon, stored[_MUON])


def _make_adam(weights: list[nn.Parameter], adam: Adam, rate: float, device: torch.device) -> torch.optim.Adam:
    groups: dict[float, list[nn.Parameter]] = {}
    for one in weights:
        groups.setdefault(_share_of_rate(one, adam.full_rate_fan_in), []).append(one)
    return torch.optim.Adam(
        [{"params": alike, _SCALE: share} for share, alike in groups.items()],
        lr=rate,
        betas=(0.9, adam.beta2),
        # Fused, a step takes a third of the time; Apple's GPUs are left with the ordinary one.
        fused=device.type != "mps",
    )


def _share_of_rate(weights: nn.Parameter, full_rate_fan_in: int | None) -> float:
    if full_rate_fan_in is None or weights.ndim < 2:
        return 1.0
    return min(1.0, full_rate_fan_in / weights[0].numel())


def _restore(optimizer: torch.optim.Optimizer, stored: Mapping[str, Any]) -> None:
    fresh = optimizer.state_dict()["param_groups"]
    for group, known in zip(fresh, stored["param_groups"], strict=True):
        if type(known["lr"]) is not float:
            raise ValueError("the learning rate is no number")
        group["lr"] = known["lr"]
    optimizer.load_state_dict({"state": stored["state"], "param_groups": fresh})
    for parameter, known in optimizer.state.items():
        for name, value in known.items():
            if not isinstance(value, torch.Tensor) or value.shape not in (parameter.shape, torch.Size([])):
                raise ValueError(f"{name} of the optimiser does not fit its parameter")
