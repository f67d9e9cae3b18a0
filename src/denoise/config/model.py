"""RunConfig: the three sections together, checked against each other, and the values that follow from them.

Mistakes of any kind come out as one ConfigError. Besides ``denoise.modes`` this is the only place that asks which
mode a run is in.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, JsonValue, ValidationError, model_validator

from denoise.config.aliases import ALIASES, with_long_names
from denoise.config.fields import NAME_RULE, Section, as_file_name, bytes_of
from denoise.config.problems import Place, Problem, RulesBroken, Source, error_listing, plain_name, shown
from denoise.config.recipes import RECIPES, LossName, Recipe, ScheduleName
from denoise.config.rules import broken_rules
from denoise.config.sections import SECTIONS, DatasetSection, InferSection, about
from denoise.config.train_section import ModeName, TrainSection
from denoise.errors import ConfigError

_SUFFIXES = (".ome.zarr", ".zarr", ".h5", ".hdf5", ".hdf", ".nxs", ".nx", ".tiff", ".tif")
_OVERRIDDEN_MODE: Place = ("--mode",)


class RunConfig(Section):
    """All that a run is told. Frozen; made by ``from_mapping`` or ``denoise.config.load_config``."""

    dataset: DatasetSection
    train: TrainSection = TrainSection()
    infer: InferSection = InferSection()
    metadata: dict[str, JsonValue] = Field(default_factory=dict)

    @classmethod
    def from_mapping(
        cls,
        mapping: Mapping[str, Any],
        *,
        mode: str | None = None,
        base: Path | None = None,
        source: Source | None = None,
    ) -> Self:
        """Check a config given as plain values.

        Parameters
        ----------
        mapping
            Sections of fields, under today's names or the old ones.
        mode
            Takes the place of ``train.mode`` before anything is checked.
        base
            Folder at which relative folders start; the current one unless given.
        source
            What to call the config in messages, and its lines.

        Raises
        ------
        ConfigError
            Lists every mistake with field, value and rule.
        """
        source = source or Source()
        if not isinstance(mapping, Mapping):
            raise ConfigError(f"{source.name} is {shown(mapping)}; expected the sections {_listed(SECTIONS)}")
        written: dict[Place, Place] = {}
        sections, problems = _with_long_names(mapping, mode, written)
        try:
            config = cls.model_validate(sections, context={"base": base})
        except ValidationError as error:
            problems += [p for details in error.errors() for p in _problems(details, written)]
        if problems:
            raise error_listing(problems, source)
        return config

    @model_validator(mode="after")
    def _rules_hold(self) -> Self:
        if problems := list(broken_rules(self)):
            raise RulesBroken(problems)
        return self

    @property
    def max_memory(self) -> int | None:
        """Host memory that a command may take, in bytes; None: what is free."""
        return None if self.dataset.max_memory is None else bytes_of(self.dataset.max_memory)

    @property
    def mode(self) -> ModeName:
        """The mode, 2.5d or 3d."""
        return self.train.mode

    @property
    def network_name(self) -> str:
        """The network with its dimension: unet2d, unet3d, residual2d or residual3d."""
        name = self.train.network
        if name in ("unet", "residual"):
            return f"{name}3d" if self.mode == "3d" else f"{name}2d"
        return name

    @property
    def network_options(self) -> dict[str, int]:
        """The whole numbers that the network's constructor takes."""
        names = {
            "unet2d": ("n_slices",),
            "unet3d": ("n_blocks", "start_filters"),
            "residual2d": ("n_slices", "width", "levels"),
            "residual3d": ("n_slices", "width", "levels"),
        }[self.network_name]
        return {name: getattr(self.train, name) for name in names}

    @property
    def recipe(self) -> Recipe:
        """What the network is trained with where the config does not say."""
        return RECIPES[self.network_name]

    def batch_on(self, device_type: str) -> int:
        """Patches per optimiser step, over all processes, on devices of this type ("cpu", "cuda", "mps")."""
        return self.train.batch_size or self.recipe.batch_on(device_type)

    @property
    def learning_rate(self) -> float:
        """Highest learning rate."""
        return self.train.learning_rate or self.recipe.learning_rate

    @property
    def schedule(self) -> ScheduleName:
        """Course of the learning rate."""
        return self.train.schedule or self.recipe.schedule

    @property
    def loss(self) -> LossName:
        """Distance between prediction and target."""
        return self.train.loss or self.recipe.loss

    @property
    def lcl_weight(self) -> float:
        """Weight of the Laplacian contrast loss."""
        return self.recipe.lcl_weight if self.train.lcl_weight is None else self.train.lcl_weight

    @property
    def ema_decay(self) -> float:
        """Decay of the running average of the weights; 0: none."""
        return self.recipe.ema_decay if self.train.ema_decay is None else self.train.ema_decay

    @property
    def patch_field(self) -> str:
        """Name of the field in ``train`` that holds the patch edge of this mode."""
        return "patch_size_3d" if self.mode == "3d" else "patch_size"

    @property
    def patch(self) -> int:
        """Edge of the training patch, voxels."""
        return self.given_patch(self.mode) or self.recipe.patch_size

    def given_patch(self, mode: str) -> int | None:
        """Edge of the training patch that the config gives for a mode, voxels."""
        return self.train.patch_size_3d if mode == "3d" else self.train.patch_size

    @property
    def patch_multiple(self) -> int:
        """What the edge of every patch and tile must be divisible by."""
        match self.network_name:
            case "unet2d":
                return 8
            case "unet3d":
                return 1 << self.train.n_blocks
            case _:
                return 1 << (self.train.levels - 1)

    @property
    def patches_per_epoch(self) -> int | None:
        """Patches drawn per epoch; None: what the mode's sampler takes for one."""
        return self.train.patches_per_epoch_3d if self.mode == "3d" else self.train.patches_per_epoch

    @property
    def given_splits(self) -> tuple[str, ...]:
        """Paths of the splits, as ``split_paths``, but empty when the config names none."""
        return tuple(self._path_of(name) for name in self.dataset.splits)

    @property
    def split_paths(self) -> tuple[str, ...]:
        """Paths of the splits, two or more, with ``::/dataset`` where given.

        Raises
        ------
        ConfigError
            The config names no splits, as one for inference alone may.
        """
        if not self.dataset.splits:
            raise ConfigError(
                "dataset.splits is missing; training needs two or more sub-reconstructions: list their names"
            )
        return self.given_splits

    @property
    def full_path(self) -> str | None:
        """Path of the full reconstruction, with ``::/dataset`` where given; None when the config names none."""
        return None if self.dataset.full is None else self._path_of(self.dataset.full)

    @property
    def sample_name(self) -> str:
        """Name that the outputs carry; it can be part of a file name."""
        dataset = self.dataset
        if dataset.sample is not None:
            return dataset.sample
        named = [dataset.full, *dataset.splits[:1], str(dataset.folder)]
        candidates = (as_file_name(_stem(name)) for name in named if name is not None)
        return next((name for name in candidates if name), "sample")

    @property
    def output_dir(self) -> Path:
        """Folder for the models and the record of the run."""
        return self.train.output_dir or self.dataset.folder / f"{self.sample_name}_training_{self.mode}"

    def _path_of(self, name: str) -> str:
        file, separator, inside = name.partition("::")
        return f"{self.dataset.folder / file}{separator}{inside}"


def _stem(name: str) -> str:
    file = Path(name.partition("::")[0]).name
    suffix = next((s for s in _SUFFIXES if file.lower().endswith(s)), "")
    return file[: len(file) - len(suffix)]


def _with_long_names(
    mapping: Mapping[str, Any], mode: str | None, written: dict[Place, Place]
) -> tuple[dict[str, Any], list[Problem]]:
    sections: dict[str, Any] = {name: {} for name in SECTIONS}
    problems: list[Problem] = []
    for name, given in mapping.items():
        if name in SECTIONS and isinstance(given, Mapping):
            sections[name], found = with_long_names(name, given, written)
            problems += found
        elif given is not None or name not in (*SECTIONS, "metadata"):  # `train:` with nothing below it is empty
            sections[name] = given
    if mode is not None and isinstance(sections["train"], dict):
        sections["train"]["mode"] = mode
        written["train", "mode"] = _OVERRIDDEN_MODE
    return sections, problems


def _problems(details: Any, written: Mapping[Place, Place]) -> Iterator[Problem]:
    """What one of pydantic's errors means in the user's words."""
    place: Place = details["loc"]
    kind, value = details["type"], details["input"]
    raised = details.get("ctx", {}).get("error")
    if isinstance(raised, RulesBroken):
        for problem in raised.problems:
            here = _written(problem.place, written)
            name = _spelled(problem.place)
            yield Problem(here, problem.message.replace(name, _named(problem.place, written), 1))
    elif kind in ("extra_forbidden", "invalid_key"):
        yield _unknown(place)
    elif place[0] == "metadata":
        yield Problem(place, f"{_spelled(place[:2])} must be plain: text, numbers, lists and sections of these")
    elif len(place) == 1:
        yield Problem(place, f"{place[0]} is {shown(value)}; it must be a section: lines of `name: value` below it")
    else:
        yield _wrong_value(place, kind, value, raised, written)


def _wrong_value(place: Place, kind: str, value: Any, raised: object, written: Mapping[Place, Place]) -> Problem:
    rule = NAME_RULE if len(place) > 2 else about(SECTIONS[str(place[0])], str(place[1])).values
    rule = f"must be {rule}" if not isinstance(raised, ValueError) else str(raised)
    found = "missing" if kind == "missing" else shown(value)
    return Problem(_written(place, written), f"{_named(place, written)} is {found}; it {rule}")


def _named(place: Place, written: Mapping[Place, Place]) -> str:
    """The field's name as the user wrote it, and today's where that is another."""
    here = _written(place, written)
    renamed = here not in (place, _OVERRIDDEN_MODE)
    return f"{_spelled(here)} (now {_spelled(place[1:])})" if renamed else _spelled(here)


def _written(place: Place, written: Mapping[Place, Place]) -> Place:
    longest = next((n for n in range(len(place), 0, -1) if place[:n] in written), 0)
    return written[place[:longest]] if longest else place


def _unknown(place: Place) -> Problem:
    name = plain_name(place[-1])
    if len(place) == 1:
        message = f"{name} is not a section"
        known = {section: section for section in (*SECTIONS, "metadata")}
        own = list(known)
    else:
        message = f"{place[0]}.{name} is not a field"
        own = _names_in(str(place[0]))
        known = {}
    # In the order of trust: spelled right but elsewhere, misspelled here, misspelled elsewhere.
    elsewhere = {n: f"{s}.{n}" for s in SECTIONS if s != place[0] for n in _names_in(s)}
    near = difflib.get_close_matches(name, own, n=1) or difflib.get_close_matches(name, elsewhere, n=1, cutoff=0.8)
    if name in elsewhere:
        return Problem(place, f"{message}; did you mean {elsewhere[name]}?")
    if near:
        suggestion = near[0] if near[0] in known else f"{place[0]}.{near[0]}" if near[0] in own else elsewhere[near[0]]
        return Problem(place, f"{message}; did you mean {suggestion}?")
    return Problem(place, f"{message}; known are {_listed(own)}")


def _names_in(section: str) -> list[str]:
    return [*SECTIONS[section].model_fields, *ALIASES[section]]


def _listed(names: Any) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}"


def _spelled(place: Place) -> str:
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f"{'.' if text else ''}{plain_name(part)}"
    return text
