"""A damaged HDF5 file must not take the process that opens it with it; whole ones are opened as before."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from denoise.errors import DenoiseError, ScanError, VolumeError
from denoise.projections.scan import Scan, write_scan
from denoise.volumes import hdf5_trial, open_volume
from denoise.volumes.hdf5_trial import require_harmless


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A scan whose texts lie in a global heap."""
    path = tmp_path / "scan.h5"
    counts = np.ones((6, 2, 5), np.uint16)
    write_scan(path, counts, counts[:2], 0 * counts[:1], np.linspace(0, 180, 6), "foam")
    assert path.read_bytes().count(b"GCOL") == 1
    return path


def _with_zeros_in_the_heap(path: Path) -> None:
    content = bytearray(path.read_bytes())
    first = content.index(b"GCOL") + 16
    content[first : first + 512] = bytes(512)
    path.write_bytes(content)


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []
    run = subprocess.run

    def counting(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        return run(*arguments, **named)

    monkeypatch.setattr(subprocess, "run", counting)
    return calls


def test_a_scan_in_whose_heap_the_library_goes_round_in_circles_is_refused(
    scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hdf5_trial, "SECONDS", 2)
    _with_zeros_in_the_heap(scan)
    with pytest.raises(
        ScanError, match=r"scan\.h5 seems damaged: .* does not come to an end within 2 s .* copy the file"
    ):
        Scan.open(scan)


def test_a_volume_whose_virtual_dataset_is_damaged_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5_trial, "SECONDS", 2)
    path = tmp_path / "v.h5"
    with h5py.File(path, "w") as file:
        file["part"] = np.zeros((3, 9, 8), np.float32)
        layout = h5py.VirtualLayout((3, 9, 8), np.float32)
        layout[:] = h5py.VirtualSource(file["part"])
        file.create_virtual_dataset("whole", layout)
    _with_zeros_in_the_heap(path)
    with pytest.raises(VolumeError, match=r"v\.h5 seems damaged: .* does not come to an end"):
        open_volume(path)


def test_a_text_that_asks_for_gigabytes_is_refused(scan: Path) -> None:
    content = bytearray(scan.read_bytes())
    heap = content.index(b"GCOL")
    # The name of the sample, as it stands in its dataset: length, address of the heap, number in the heap.
    stored = content.rindex(struct.pack("<IQ", 4, heap))
    content[stored : stored + 4] = struct.pack("<I", 0x5FFFFFFF)
    scan.write_bytes(content)
    with pytest.raises(ScanError, match="takes more than 1 GB of memory"):
        Scan.open(scan)


def test_a_crash_of_the_library_is_a_sentence(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "crashing.py").write_text("import os\n\n\ndef at(path: str) -> None:\n    os.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(VolumeError, match=r"scan\.h5 seems damaged: the HDF5 library crashes"):
        require_harmless("crashing:at", scan, error=VolumeError)


def test_whole_files_are_tried_once_and_again_when_they_change(scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = _counted(monkeypatch)
    assert Scan.open(scan).sample_name == "foam"
    assert Scan.open(scan).shape == (6, 2, 5)
    assert len(tried) == 1
    with h5py.File(scan, "r+") as file:
        file["more"] = "text"
    Scan.open(scan)
    assert len(tried) == 2


def test_small_files_without_a_heap_need_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = _counted(monkeypatch)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["d"] = np.zeros((3, 9, 8), np.float32)
    assert open_volume(tmp_path / "v.h5").shape == (3, 9, 8)
    assert not tried
    monkeypatch.setattr(hdf5_trial, "_SEARCHED_BYTES", 100)
    assert open_volume(tmp_path / "v.h5").shape == (3, 9, 8)
    assert len(tried) == 1


def test_within_another_program_nothing_is_started(scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = _counted(monkeypatch)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert Scan.open(scan).sample_name == "foam"
    monkeypatch.setattr(sys, "frozen", False)
    monkeypatch.setattr(sys, "executable", "")
    assert Scan.open(scan).sample_name == "foam"
    assert not tried


def test_where_no_child_can_be_started_files_are_read_all_the_same(scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(scan.with_name("python-that-was-moved")))
    assert Scan.open(scan).sample_name == "foam"


@pytest.mark.parametrize("opening", ["no_such_module:open", "json:no_such_function"])
def test_a_child_that_cannot_be_started_decides_nothing(scan: Path, opening: str) -> None:
    require_harmless(opening, scan, error=VolumeError)


def test_files_that_are_not_there_are_left_to_the_opening(tmp_path: Path) -> None:
    require_harmless("json:loads", tmp_path / "nothing.h5", error=DenoiseError)
    with pytest.raises(ScanError, match="there is no file"):
        Scan.open(tmp_path / "nothing.h5")
