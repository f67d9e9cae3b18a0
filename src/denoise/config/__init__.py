"""What a run is told: ``RunConfig``, typed, frozen and validated once, read from a YAML file.

In goes the user's file, which is never changed; out come plain values with every default filled in, or one
ConfigError that lists all mistakes with their lines. The fields themselves are declared in ``sections``; the
documentation and ``baseline_config.yaml`` are generated from them. Nothing here opens data or loads torch.
"""

from __future__ import annotations

from denoise.config.aliases import ALIASES
from denoise.config.model import RunConfig
from denoise.config.reading import load_config, render
from denoise.config.sections import DatasetSection, InferSection
from denoise.config.train_section import TrainSection

__all__ = ["ALIASES", "DatasetSection", "InferSection", "RunConfig", "TrainSection", "load_config", "render"]
