"""Which format a path means, and what is loaded for it."""

from __future__ import annotations

import subprocess
import sys

import h5py
import numpy as np
import pytest
import tifffile

from denoise.errors import VolumeError
from denoise.volumes import open_volume


@pytest.mark.parametrize("path", ["nothing", "nothing.h5::/data", "nothing.zarr", "nothing.tif"])
def test_a_path_where_nothing_is_says_what_was_expected(tmp_path, path):
    with pytest.raises(VolumeError, match=r"does not exist; expected a folder of \.tif slices"):
        open_volume(tmp_path / path)


@pytest.mark.parametrize("path", ["v.png", "v.raw", "v", "v.tif::/data"])
def test_a_file_of_another_format_says_what_was_expected(tmp_path, path):
    (tmp_path / path.partition("::")[0]).write_bytes(b"x")
    with pytest.raises(VolumeError, match=r"is of no known format; expected a folder of \.tif slices"):
        open_volume(f"{tmp_path}/{path}")


def test_a_folder_whose_name_has_two_colons_is_a_folder(tmp_path):
    folder = tmp_path / "12::30.h5"
    folder.mkdir()
    tifffile.imwrite(folder / "a_3.tif", np.zeros((2, 3), "f4"))
    assert open_volume(folder).slice_numbers == range(3, 4)


def test_a_symlink_is_known_by_its_own_suffix(tmp_path):
    with h5py.File(tmp_path / "stored", "w") as file:
        file["data"] = np.zeros((2, 3, 4))
    (tmp_path / "v.h5").symlink_to("stored")
    assert open_volume(tmp_path / "v.h5").shape == (2, 3, 4)


def test_importing_volumes_loads_no_file_format():
    code = (
        "import sys, denoise.volumes; "
        "print([m for m in ('h5py', 'zarr', 'tifffile', 'imagecodecs', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
