"""The names that older config files use, and how they become today's names.

An old name keeps its old meaning. A file may mix old and new names, but not give both for one field.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

from denoise.config.problems import Place, Problem, shown

Names: TypeAlias = Mapping[str, str]

NUMBERED_SPLIT = "sub_recon_name<k>"

# section -> old name -> name
ALIASES: Mapping[str, Names] = MappingProxyType(
    {
        "dataset": MappingProxyType(
            {
                "directory_to_reconstructions": "folder",
                NUMBERED_SPLIT: "splits",
                "full_recon_name": "full",
                "mean4norm": "mean",
                "std4norm": "std",
                "train_slice_start": "train_start_slice",
                "train_slice_end": "train_end_slice",
            }
        ),
        "train": MappingProxyType(
            {
                "psz": "patch_size",
                "psz_3d": "patch_size_3d",
                "mbsz": "batch_size",
                "lr": "learning_rate",
                "warmup": "warmup_steps",
                "maxep": "max_epochs",
                "nb_patches_3d": "patches_per_epoch_3d",
                "n_blocks_3d": "n_blocks",
                "start_filts_3d": "start_filters",
            }
        ),
        "infer": MappingProxyType({}),
    }
)

# section -> field -> old value -> value
OLD_VALUES: Mapping[str, Mapping[str, Names]] = MappingProxyType(
    {"infer": MappingProxyType({"window": MappingProxyType({"cosine": "hann"})})}
)

_SPLIT_NUMBER = re.compile(r"sub_recon_name(0|[1-9][0-9]{0,5})")


def with_long_names(
    section: str, given: Mapping[Any, Any], written: dict[Place, Place]
) -> tuple[dict[Any, Any], list[Problem]]:
    """Rewrite one section in today's names and values.

    Parameters
    ----------
    section
        "dataset", "train" or "infer".
    given
        The section as the user wrote it.
    written
        Filled in: for each place that was renamed, the place where the user wrote it.

    Returns
    -------
    The section under today's names, and what was given twice or left out.
    """
    aliases = ALIASES[section]
    renamed: dict[Any, Any] = {}
    numbered: dict[int, str] = {}
    problems: list[Problem] = []
    for name, value in given.items():
        match = _SPLIT_NUMBER.fullmatch(name) if isinstance(name, str) and NUMBERED_SPLIT in aliases else None
        if match:
            numbered[int(match[1])] = name
        elif not isinstance(name, str) or name not in aliases or name == NUMBERED_SPLIT:
            renamed[name] = value
    for old, field in aliases.items():
        if old not in given or old == NUMBERED_SPLIT:
            continue
        if field in renamed:
            problems.append(_given_twice(section, old, field))
            continue
        renamed[field] = given[old]
        written[section, field] = (section, old)
    if numbered:
        problems += _gather_splits(section, numbered, given, renamed, written)
    for field, values in OLD_VALUES.get(section, {}).items():
        if isinstance(renamed.get(field), str):
            renamed[field] = values.get(renamed[field], renamed[field])
    return renamed, problems


def _gather_splits(
    section: str,
    numbered: Mapping[int, str],
    given: Mapping[Any, Any],
    renamed: dict[Any, Any],
    written: dict[Place, Place],
) -> list[Problem]:
    if "splits" in renamed:
        return [_given_twice(section, numbered[min(numbered)], "splits")]
    ordered = sorted(numbered)
    renamed["splits"] = [given[numbered[k]] for k in ordered]
    written[section, "splits"] = (section, numbered[ordered[0]])
    for i, k in enumerate(ordered):
        written[section, "splits", i] = (section, numbered[k])
    missing = next((i for i, k in enumerate(ordered) if i != k), None)
    if missing is not None:
        last = numbered[ordered[-1]]
        return [
            Problem(
                (section, last),
                f"{section}.{last} is {shown(given[last])}, but sub_recon_name{missing} is missing; "
                "number the sub-reconstructions 0, 1, 2, ... without a gap",
            )
        ]
    return []


def _given_twice(section: str, old: str, field: str) -> Problem:
    return Problem(
        (section, old), f"{section}.{old} is the old name of {section}.{field}, which is given too; keep one"
    )
