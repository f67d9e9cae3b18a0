"""Config files: old ones, hostile ones, and lines in messages."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from denoise.config import RunConfig, load_config, render
from denoise.errors import ConfigError

OLD_FILE = """\
dataset:
  directory_to_reconstructions: /data/tomo   # where it is
  sub_recon_name0: rec_even
  sub_recon_name1: rec_odd
  full_recon_name: rec_full
  mean4norm: 3.1e-5
  std4norm: 1.2e-4
train: {psz: 256, n_slices: 5, mbsz: 32, lr: 1e-3, warmup: 2000, maxep: 2000, patience: 0, mode: '3d', z_stride: 10,
        psz_3d: 96, nb_patches_3d: 17600, n_blocks_3d: 4, start_filts_3d: 56}
infer: {overlap: 0.5, window: "cosine"}
metadata: {instrument: 7-BM, date: 2024-01-31, energy_kev: 25.5, binned: true, 1: one}
"""


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def file_refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_complete_old_file_works_unchanged(tmp_path: Path) -> None:
    path = written(tmp_path, OLD_FILE)
    run = load_config(path)
    assert path.read_text() == OLD_FILE
    assert run.split_paths == ("/data/tomo/rec_even", "/data/tomo/rec_odd")
    assert run.full_path == "/data/tomo/rec_full"
    assert (run.dataset.mean, run.dataset.std) == (3.1e-5, 1.2e-4)
    # Which network is the one thing that an old file never said; today's default is not the published one.
    assert (run.network_name, run.train.n_blocks, run.train.start_filters) == ("residual3d", 4, 56)
    assert (run.patch, run.batch_on("cuda"), run.patches_per_epoch, run.train.z_stride) == (96, 32, 17600, 10)
    assert (run.train.learning_rate, run.train.warmup_steps, run.train.max_epochs) == (0.001, 2000, 2000)
    assert (run.train.patience, run.learning_rate) == (0, 0.001)
    assert run.infer.window == "hann"
    assert run.output_dir == Path("/data/tomo/rec_full_training_3d")
    assert run.metadata == {
        "instrument": "7-BM", "date": "2024-01-31", "energy_kev": 25.5, "binned": True, "1": "one",
    }  # fmt: skip


def test_paths_start_at_the_config_file_and_keep_datasets_inside_files(tmp_path: Path) -> None:
    text = "dataset: {folder: sub, splits: ['a.h5::/x/y', /abs/b.h5::/z], full: f}\ntrain: {output_dir: out}\n"
    run = load_config(written(tmp_path, text))
    assert run.split_paths == (f"{tmp_path}/sub/a.h5::/x/y", "/abs/b.h5::/z")
    assert run.full_path == f"{tmp_path}/sub/f"
    assert run.output_dir == tmp_path / "out"


def test_a_folder_whose_name_is_no_utf_8_is_read_and_recorded(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"M\xfcnchen")
    folder.mkdir()
    config = load_config(written(folder, "dataset: {folder: ., full: f}"))
    assert config.dataset.folder == folder
    assert load_config(written(tmp_path, render(config))) == config


def test_a_relative_config_path_still_gives_absolute_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "dataset: {folder: ., full: f}")
    monkeypatch.chdir(tmp_path)
    assert load_config("run.yaml").full_path == f"{tmp_path}/f"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("just text", "is not made of sections"),
        ("- 1\n- 2", "is not made of sections"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "line 1: byte 0x89 is not UTF-8 text"),
        ("a: \0", "not valid YAML"),
        ("dataset: {folder: [}", "line 1: not valid YAML"),
        ("dataset:\n\tfolder: a", "line 2: not valid YAML"),
        ("dataset:\n  folder: a\n  folder: b\n", "line 3: folder is given twice, first in line 2"),
        ("dataset: {folder: a}\n---\ndataset: {folder: b}\n", "line 2: a second document"),
        ("a: !!python/object/apply:os.system ['touch pwned']", "line 1: tags are not read"),
        ("a: &x [1, 1]\nb: [*x, *x]", "line 1: anchors and aliases"),
        ("%YAML 1.1\n---\na: 1", "expected YAML 1.2"),
        ("a: " + "[" * 5000, "nested more than"),
        ("a: " + "{b: " * 5000, "nested more than"),
        ("? [a]\n: 1", "must be plain text"),
        ("train: {seed: " + "9" * 5000 + "}", "cannot be read as a number"),
        ("a: [" + "1," * 400_000 + "]", "more than 20000 values"),
        ("#" * 1_000_001, "larger than 1 MB"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_config_is_refused_in_a_sentence(tmp_path: Path, content: str | bytes, expected: str) -> None:
    start = time.monotonic()
    assert expected in file_refusal(written(tmp_path, content))
    assert time.monotonic() - start < 30  # a hostile file must not keep the reader busy


def test_missing_and_special_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "does not exist" in file_refusal(tmp_path / "nothing.yaml")
    assert "is a folder" in file_refusal(tmp_path)
    assert "not a regular file" in file_refusal(tmp_path / "pipe")


def test_yaml_is_read_as_version_1_2(tmp_path: Path) -> None:
    text = (
        "\ufeffdataset: {folder: ., full: 010.h5}\ntrain: {lr: 1e-4, strategy: 1:X, n_slices: 0x5}\nmetadata: {a: yes}"
    )
    run = load_config(written(tmp_path, text))
    assert (run.train.learning_rate, run.train.strategy, run.train.n_slices) == (1e-4, "1:X", 5)
    assert run.metadata == {"a": "yes"}


def test_all_mistakes_are_listed_with_their_lines(tmp_path: Path) -> None:
    text = "dataset:\n  splits:\n  - a\n  - 5\ntrain:\n  psz: '256'\n  lr: 0\n  learning_rate: 1\n  typo: 1\ninfer: 3\n"
    message = file_refusal(written(tmp_path, text))
    assert message.splitlines()[0].endswith("run.yaml has 6 mistakes:")
    starts = [
        "  line 1: dataset.folder is missing",
        "  line 4: dataset.splits[1] is 5",
        "  line 6: train.psz (now patch_size)",
        "  line 7: train.lr is the old name",
        "  line 9: train.typo",
        "  line 10: infer is 3",
    ]
    for line, start in zip(message.splitlines()[1:], starts, strict=True):
        assert line.startswith(start)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=6), v, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(alphabet="ab01-:,[]{}&*!|>%@'\"#?. \n\t\\~x", max_size=60) | st.text(max_size=40) | st.binary(max_size=40)
)
def test_any_file_is_a_config_or_a_config_error(tmp_path: Path, content: str | bytes) -> None:
    data = content if isinstance(content, bytes) else content.encode(errors="surrogatepass")
    for text in (data, b"dataset: {folder: ., full: f}\nmetadata:\n  " + data.replace(b"\n", b"\n  ")):
        try:
            load_config(written(tmp_path, text))
        except ConfigError as error:
            str(error).encode()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(metadata=st.dictionaries(st.text(max_size=6), PLAIN, max_size=4), name=st.text(min_size=1, max_size=12))
def test_a_rendered_config_reads_back_equal(tmp_path: Path, metadata: dict[str, Any], name: str) -> None:
    try:
        run = RunConfig.from_mapping(
            {
                "dataset": {"folder": "/d", "full": name, "mean": 1e-30, "std": 1},
                "train": {"lr": 1e-7, "mode": "3d"},
                "metadata": metadata,
            }
        )
    except ConfigError:  # a name that no file can have
        return
    assert load_config(written(tmp_path, render(run))) == run
