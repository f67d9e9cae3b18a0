"""The generated documents say what the fields say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from denoise.config import ALIASES, load_config
from denoise.config.aliases import NUMBERED_SPLIT
from denoise.config.sections import SECTIONS, InferSection, about
from denoise.config.train_section import TrainSection

ROOT = Path(__file__).resolve().parents[2]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_configuration", ROOT / "docs/generate_configuration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_documents_match_the_fields() -> None:
    assert generator().main(["--check"]) == 0


def test_a_stale_document_is_noticed_and_rewritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "docs").mkdir()
    main = generator().main
    assert main(["--check"], root=tmp_path) == 1
    assert not (tmp_path / "baseline_config.yaml").exists()
    assert main([], root=tmp_path) == 0
    (tmp_path / "baseline_config.yaml").write_text("train: {}\n")
    capsys.readouterr()
    assert main(["--check"], root=tmp_path) == 1
    assert "baseline_config.yaml is stale" in capsys.readouterr().err


def test_the_baseline_config_loads_and_holds_the_defaults() -> None:
    run = load_config(ROOT / "baseline_config.yaml")
    assert (run.train, run.infer, run.metadata) == (TrainSection(), InferSection(), {})
    assert run.split_paths == (f"{ROOT}/recon_0", f"{ROOT}/recon_1")
    assert all(s.model_fields.keys() == getattr(run, name).model_fields_set for name, s in SECTIONS.items())


def test_every_field_and_old_name_is_documented() -> None:
    reference = (ROOT / "docs/configuration.md").read_text()
    for name, section in SECTIONS.items():
        for field in section.model_fields:
            assert f"| `{field}` |" in reference
            assert all((about(section, field).what, about(section, field).values, about(section, field).effect))
        for old in ALIASES[name]:
            assert f"`{old if old != NUMBERED_SPLIT else 'sub_recon_name0'}`" in reference
