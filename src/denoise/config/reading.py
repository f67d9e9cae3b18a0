"""From a YAML file to a RunConfig, and back to text.

A config file may come from a stranger: it is read with a size limit, and its tags, anchors and deep nesting are
refused before anything is built from them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.nodes import ScalarNode

from denoise.config.model import RunConfig
from denoise.config.problems import Place, Source, plain_name
from denoise.errors import ConfigError

_LARGEST_FILE = 1_000_000
_DEEPEST = 20
_MOST_VALUES = 20_000  # about a second; 1 MB of one-digit numbers takes 20 s
_EXPECTED = "expected a YAML file with a section dataset; see docs/configuration.md"
_SCALARS = {
    "tag:yaml.org,2002:null": "construct_yaml_null",
    "tag:yaml.org,2002:bool": "construct_yaml_bool",
    "tag:yaml.org,2002:int": "construct_yaml_int",
    "tag:yaml.org,2002:float": "construct_yaml_float",
}


def load_config(path: Path | str, *, mode: str | None = None) -> RunConfig:
    """Read and check a config file, which is not changed.

    Parameters
    ----------
    path
        YAML 1.2, UTF-8, at most 1 MB. Relative folders in it start at its own folder.
    mode
        From the command line: takes the place of ``train.mode`` before anything is checked.

    Raises
    ------
    ConfigError
        The file is missing, not text, not YAML, or breaks a rule; lists every broken rule with its line.
    """
    path = Path(path)
    text = _text(path)
    values, lines = _parsed(text, str(path))
    return RunConfig.from_mapping(values, mode=mode, base=path.parent, source=Source(str(path), lines))


def render(config: RunConfig) -> str:
    """The config as YAML with every field under today's name; reading it gives an equal config."""
    values = config.model_dump(mode="json")
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    # The emitter writes U+0085 and its like unescaped inside quotes, where they read back as line breaks.
    yaml.allow_unicode = json.dumps(values, ensure_ascii=False).isprintable()
    yaml.width = 10_000
    # Keeps the order of the documentation. The library's class annotates this switch as None.
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = io.StringIO()
    yaml.dump(values, stream)
    return f"# Resolved by denoise: {config.network_name}, patch {config.patch}.\n{stream.getvalue()}"


def _text(path: Path) -> str:
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; {_EXPECTED}")
    if not path.exists():
        raise ConfigError(f"{path} does not exist; {_EXPECTED}")
    if not path.is_file():
        raise ConfigError(f"{path} is not a regular file; {_EXPECTED}")
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > _LARGEST_FILE:
        raise ConfigError(f"{path} is larger than 1 MB; {_EXPECTED}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8 text; {_EXPECTED}"
        ) from error


def _parsed(text: str, name: str) -> tuple[dict[str, Any], dict[Place, int]]:
    """Plain values, and the line of each."""
    reader = _Reader(name)
    try:
        values = reader.document(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark is not None else ""
        what = " ".join(str(part) for part in (error.context, error.problem) if part)
        raise ConfigError(f"{name}{where}: not valid YAML: {' '.join(what.split())}") from error
    except YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        raise ConfigError(f"{name} is empty; {_EXPECTED}")
    if not isinstance(values, dict):
        raise ConfigError(f"{name} is not made of sections; {_EXPECTED}")
    return values, reader.lines


class _Reader:
    """Builds dicts, lists and scalars from the parser's events; keys are text as written."""

    def __init__(self, name: str) -> None:
        self.lines: dict[Place, int] = {}
        self._name = name
        self._yaml = YAML(typ="safe", pure=True)

    def document(self, text: str) -> Any:
        """The only document in the text, or None."""
        events = self._yaml.parse(text)
        values: Any = None
        documents = 0
        for event in events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._refusal(event, "a second document starts here; keep one, without lines of ---")
                if event.version is not None and tuple(event.version) != (1, 2):
                    raise self._refusal(event, "expected YAML 1.2; remove the line with %YAML")
            elif isinstance(event, ScalarEvent | SequenceStartEvent | MappingStartEvent | AliasEvent):
                values = self._value(event, events, ())
        return values

    def _value(self, event: Any, events: Iterator[Any], place: Place) -> Any:
        self.lines.setdefault(place, event.start_mark.line + 1)
        if isinstance(event, AliasEvent) or event.anchor is not None:
            raise self._refusal(
                event, f"anchors and aliases (&{event.anchor}, *{event.anchor}) are not read; repeat the value"
            )
        if event.tag is not None:
            raise self._refusal(event, f"tags are not read; remove {plain_name(str(event.tag))}")
        if len(self.lines) > _MOST_VALUES:
            raise self._refusal(event, f"more than {_MOST_VALUES} values; {_EXPECTED}")
        if len(place) > _DEEPEST:
            raise self._refusal(event, f"nested more than {_DEEPEST} deep")
        if isinstance(event, MappingStartEvent):
            return self._mapping(events, place)
        if isinstance(event, SequenceStartEvent):
            values: list[Any] = []
            while not isinstance(event := next(events), SequenceEndEvent):
                values.append(self._value(event, events, (*place, len(values))))
            return values
        return self._scalar(event)

    def _mapping(self, events: Iterator[Any], place: Place) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(key := next(events), MappingEndEvent):
            if not isinstance(key, ScalarEvent) or key.anchor is not None or key.tag is not None:
                raise self._refusal(key, "the name of a field must be plain text")
            here = (*place, key.value)
            if key.value in values:
                raise self._refusal(
                    key, f"{plain_name(key.value)} is given twice, first in line {self.lines[here]}; keep one"
                )
            self.lines[here] = key.start_mark.line + 1
            values[key.value] = self._value(next(events), events, here)
        return values

    def _scalar(self, event: Any) -> Any:
        tag = str(self._yaml.resolver.resolve(ScalarNode, event.value, event.implicit))
        construct = _SCALARS.get(tag)
        if construct is None:  # also dates and `<<`, which have no meaning here
            return event.value
        try:
            return getattr(self._yaml.constructor, construct)(ScalarNode(tag, event.value))
        except ValueError as error:
            raise self._refusal(event, f"{plain_name(event.value)} cannot be read as a number: {error}") from error

    def _refusal(self, event: Any, message: str) -> ConfigError:
        return ConfigError(f"{self._name}, line {event.start_mark.line + 1}: {message}")
