"""Where the work runs: devices, the world of processes, and starting that world.

``launch`` calls a function in one process, or starts one process per device, also on several machines; under torchrun
and Slurm's ``srun`` it joins the processes that are there. A function that is launched takes (World, job) and is
importable by name; a failing process ends the run with its own error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TypeVar

import torch

from denoise.cluster import Spread, place_of, spread_of
from denoise.errors import ClusterError
from denoise.launch.compute import Compute
from denoise.launch.devices import choose_devices, describe_device
from denoise.launch.elastic import launch_here
from denoise.launch.meeting import Guard
from denoise.launch.signals import StopRequest, listening_for_signals
from denoise.launch.worker import Restartable, run_joined
from denoise.launch.world import World

__all__ = [
    "Compute",
    "Restartable",
    "StopRequest",
    "World",
    "choose_devices",
    "describe_device",
    "launch",
    "listening_for_signals",
]

Job = TypeVar("Job")


def launch(
    function: Callable[[World, Job], None],
    job: Job,
    devices: Sequence[torch.device],
    *,
    spread: Spread | None = None,
    guard: Guard = nullcontext,
    name: str = "",
) -> None:
    """Run ``function(world, job)`` on every device and return when all are done.

    Parameters
    ----------
    devices
        Of this machine; where many processes were started by a scheduler, each takes one of them.
    spread
        Over which machines, and how often to start again; None: this one, or as Slurm and torchrun say. After a
        restart, a job that is ``Restartable`` is asked for the one that continues it.
    guard
        Gives a context that is held once for the whole run, on its first machine, before any process begins.
    name
        What the job writes to: those that meet must work for the same.

    Raises
    ------
    ClusterError
        The other machines or processes are not there, or were told something else.
    WorkerError
        A process failed; carries the message of the first that did.
    Interrupted
        SIGINT or SIGTERM ended the run after the processes had saved.
    DenoiseError
        As raised by the function, where there is one process, or by the guard.
    """
    os.environ["PYTHONNOUSERSITE"] = "1"
    wanted = spread_of(spread or Spread(), os.environ)
    place = place_of(os.environ) if wanted.nodes is None else None
    if place is not None:
        if wanted.max_restarts:
            raise ClusterError(
                f"--max-restarts has no effect on processes that {place.started_by} has started; give it to torchrun, "
                "or start one task per node with srun"
            )
        run_joined(place, function, job, list(devices), guard, name)
    elif len(devices) == 1 and (wanted.nodes or 1) == 1 and not wanted.max_restarts:
        with guard():
            function(World(0, 1, devices[0]), job)
    else:
        launch_here(function, job, devices, wanted, guard, name)
