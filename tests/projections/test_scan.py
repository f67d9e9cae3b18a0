"""Scans: what is read, and that every file that cannot be reconstructed is refused with both facts."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from denoise.errors import ScanError
from denoise.projections.scan import Scan, write_scan

ANGLES, ROWS, COLUMNS = 12, 3, 8


@pytest.fixture
def scan_file(tmp_path: Path, rng: np.random.Generator) -> Path:
    path = tmp_path / "bone.h5"
    write_scan(
        path,
        rng.integers(100, 1000, (ANGLES, ROWS, COLUMNS)).astype(np.uint16),
        np.full((4, ROWS, COLUMNS), 1000, np.uint16),
        np.full((2, ROWS, COLUMNS), 10, np.uint16),
        np.arange(ANGLES) * 15.0,
        sample_name="bone 7/left",
    )
    return path


def test_a_written_scan_is_read_back_as_it_was(scan_file: Path) -> None:
    scan = Scan.open(scan_file)
    assert scan.shape == (ANGLES, ROWS, COLUMNS)
    assert scan.angles_rad.dtype == np.float64
    np.testing.assert_allclose(scan.angles_rad, np.deg2rad(np.arange(ANGLES) * 15.0))
    assert scan.sample_name == "bone_7_left"
    assert scan.voxel_size_um is None
    raw = scan.read_rows(1, 3)
    with h5py.File(scan_file) as file:
        np.testing.assert_array_equal(raw.data, file["exchange/data"][:, 1:3])
    assert raw.data.dtype == raw.white.dtype == raw.dark.dtype == np.float32
    assert raw.white.shape == (4, 2, COLUMNS)
    assert raw.dark.shape == (2, 2, COLUMNS)
    assert raw.whole_counts


def test_a_scan_can_be_pickled_and_read_elsewhere(scan_file: Path) -> None:
    copy = pickle.loads(pickle.dumps(Scan.open(scan_file)))
    np.testing.assert_array_equal(copy.read_rows(0, 1).data, Scan.open(scan_file).read_rows(0, 1).data)


def test_a_failed_write_leaves_the_earlier_scan(scan_file: Path) -> None:
    before = scan_file.read_bytes()
    with pytest.raises(ValueError, match="could not convert"):
        write_scan(scan_file, np.zeros((2, 1, 2)), np.ones((1, 1, 2)), np.zeros((1, 1, 2)), ["north"], "x")
    assert scan_file.read_bytes() == before
    assert list(scan_file.parent.iterdir()) == [scan_file]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../../etc/passwd", "etc_passwd"),
        ("..", "bone"),
        ("", "bone"),
        ("  ", "bone"),
        ("Zahn Nr. 3", "Zahn_Nr._3"),
        ("a" * 300, "a" * 100),
    ],
)
def test_a_sample_name_is_always_a_plain_file_name(scan_file: Path, name: str, expected: str) -> None:
    with h5py.File(scan_file, "a") as file:
        file["measurement/sample/name"][()] = name
    assert Scan.open(scan_file).sample_name == expected


@pytest.mark.parametrize(
    ("unit", "factor"), [("degrees", 1), ("deg", 1), ("Radians", np.pi / 180), (b"rad", np.pi / 180)]
)
def test_theta_is_read_in_its_unit(scan_file: Path, unit: str | bytes, factor: float) -> None:
    with h5py.File(scan_file, "a") as file:
        file["exchange/theta"][...] = np.arange(ANGLES) * 15.0 * factor
        file["exchange/theta"].attrs["units"] = unit
    np.testing.assert_allclose(Scan.open(scan_file).angles_rad, np.deg2rad(np.arange(ANGLES) * 15.0))


@pytest.mark.parametrize("shape", [(ANGLES, 1), (1, ANGLES)])
def test_theta_may_be_a_column_or_a_row(scan_file: Path, shape: tuple[int, int]) -> None:
    with h5py.File(scan_file, "a") as file:
        theta = file["exchange/theta"][()]
        del file["exchange/theta"]
        file["exchange/theta"] = theta.reshape(shape)
    np.testing.assert_allclose(Scan.open(scan_file).angles_rad, np.deg2rad(theta))


def test_theta_without_a_unit_is_in_degrees(scan_file: Path) -> None:
    with h5py.File(scan_file, "a") as file:
        del file["exchange/theta"].attrs["units"]
    np.testing.assert_allclose(Scan.open(scan_file).angles_rad[1], np.deg2rad(15))


@pytest.mark.parametrize(
    "degrees",
    [
        pytest.param(np.linspace(0, 180, 1500, endpoint=False), id="half turn"),
        pytest.param(np.linspace(-90, 90, 181), id="half turn with both ends"),
        pytest.param(np.linspace(360, 0, 2000, endpoint=False), id="full turn backwards"),
        pytest.param(np.linspace(0.003, 179.97, 1501) + 0.01 * np.sin(np.arange(1501)), id="read from an encoder"),
    ],
)
def test_degrees_that_are_called_radians_are_refused(scan_file: Path, degrees: np.ndarray) -> None:
    def theta(unit: str, values: np.ndarray) -> None:
        with h5py.File(scan_file, "a") as file:
            for name, content in (("data", np.ones((len(values), ROWS, COLUMNS), np.uint8)), ("theta", values)):
                del file[f"exchange/{name}"]
                file[f"exchange/{name}"] = content
            file["exchange/theta"].attrs["units"] = unit

    theta("radians", degrees)
    with pytest.raises(ScanError, match=r"spans \d+ degrees \(unit radians\), .* turns; .* units to 'degrees'"):
        Scan.open(scan_file)
    theta("degrees", degrees)
    Scan.open(scan_file)
    for turns in (0.5, 1, 20, 40):
        theta("radians", np.linspace(0, 2 * np.pi * turns, len(degrees)))
        assert np.ptp(Scan.open(scan_file).angles_rad) == pytest.approx(2 * np.pi * turns)
    for count in (76, 77, 151):
        theta("radians", np.arange(count) * np.pi * (3 - np.sqrt(5)))
        assert len(Scan.open(scan_file).angles_rad) == count


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"detection_system/objective/resolution": (0.65, "um")}, 0.65),
        ({"detection_system/objective/resolution": (6.5e-7, "m")}, 0.65),
        ({"detector/actual_pixel_size_x": (650.0, "nm")}, 0.65),
        ({"detector/pixel_size_x": (6.5, "µm"), "detection_system/objective/magnification": (10.0, "")}, 0.65),
        (
            {
                "detector/pixel_size_x": (6.5, "µm"),
                "detection_system/objective/magnification": (10.0, ""),
                "detector/binning_x": (1, ""),
            },
            0.65,
        ),
        *(
            (
                {
                    "detector/pixel_size_x": (6.5, "µm"),
                    "detection_system/objective/magnification": (10.0, ""),
                    f"detector/{name}": (value, ""),
                },
                None,
            )
            for name, value in (("binning_y", 2), ("binning", "2x2"), ("binning", [1, 2]), ("binning_x", "two"))
        ),
        *(
            (
                {
                    "detector/pixel_size_x": (6.5, "µm"),
                    "detection_system/objective/magnification": (10.0, ""),
                    "detector/binning": (value, ""),
                },
                0.65,
            )
            for value in ("1x1", b"1X1", [1, 1], "", 0)
        ),
        ({"detector/pixel_size_x": (6.5, "um")}, None),
        ({"detection_system/objective/resolution": (0.65, None)}, None),
        ({"detection_system/objective/resolution": (0.65, "furlong")}, None),
        ({"detection_system/objective/resolution": (-1.0, "um")}, None),
        ({"detection_system/objective/resolution": ("fine", "um")}, None),
    ],
)
def test_the_voxel_size_is_given_only_where_the_file_is_clear(
    scan_file: Path, entries: dict[str, tuple[Any, str | None]], expected: float | None
) -> None:
    with h5py.File(scan_file, "a") as file:
        for name, (value, unit) in entries.items():
            file[f"measurement/instrument/{name}"] = value
            if unit is not None:
                file[f"measurement/instrument/{name}"].attrs["units"] = unit
    found = Scan.open(scan_file).voxel_size_um
    assert found is None if expected is None else found == pytest.approx(expected)


def _replace(name: str, values: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = values

    return change


def _delete(name: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__delitem__(name)


def _link(file: h5py.File) -> None:
    del file["exchange/data_dark"]
    file["exchange/data_dark"] = h5py.ExternalLink("elsewhere.h5", "/dark")


def _link_group(file: h5py.File) -> None:
    del file["exchange"]
    file["exchange"] = h5py.ExternalLink("elsewhere.h5", "/exchange")


def _soft_link_out(file: h5py.File) -> None:
    del file["exchange/data_dark"]
    file["hidden"] = h5py.ExternalLink("elsewhere.h5", "/")
    file["exchange/data_dark"] = h5py.SoftLink("/hidden/dark")


def _virtual(file: h5py.File) -> None:
    del file["exchange/data"]
    layout = h5py.VirtualLayout((ANGLES, ROWS, COLUMNS), "f4")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "data", (ANGLES, ROWS, COLUMNS))
    file.create_virtual_dataset("exchange/data", layout)


def _external_storage(file: h5py.File) -> None:
    del file["exchange/data_white"]
    file.create_dataset("exchange/data_white", (1, ROWS, COLUMNS), "u1", external=[("/etc/hostname", 0, 24)])


def _radians_without_unit(file: h5py.File) -> None:
    file["exchange/theta"][...] = np.linspace(0, 3.14, ANGLES)
    del file["exchange/theta"].attrs["units"]


def _unit(file: h5py.File) -> None:
    file["exchange/theta"].attrs["units"] = "gon"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_delete("exchange/data"), r"exchange/data in .* is not there"),
        (_delete("exchange/data_white"), r"exchange/data_white in .* is not there"),
        (_delete("exchange/data_dark"), r"exchange/data_dark in .* is not there.*copy it from a scan"),
        (
            _delete("exchange/theta"),
            r"exchange/theta in .* is not there.*add .* file\['exchange/theta'\] = numpy.linspace\(0, 180, N, endpoint",
        ),
        (_delete("exchange"), r"exchange/data in .* is not there"),
        (_replace("exchange/data", np.ones((12, 8))), r"shape \(12, 8\); expected \(angles, rows, columns\)"),
        (_replace("exchange/data", np.ones((0, 3, 8))), r"shape \(0, 3, 8\)"),
        (_replace("exchange/data", np.ones((12, 3, 8), complex)), r"type complex128; expected integers"),
        (_replace("exchange/theta", np.arange(13.0)), r"shape \(13,\), but exchange/data has 12"),
        (_replace("exchange/theta", np.arange(11.0)), r"shape \(11,\), but exchange/data has 12"),
        (_replace("exchange/theta", np.arange(12.0).reshape(3, 4)), r"shape \(3, 4\), but exchange/data has 12"),
        (_replace("exchange/theta", 15.0), r"shape \(\), but exchange/data has 12"),
        (_replace("exchange/theta", [np.nan] * 12), r"nan at projection 0 \(12 such of 12\)"),
        (_replace("exchange/theta", np.zeros(12)), r"spans 0 degrees"),
        (_radians_without_unit, r"spans 3.14 degrees \(unit not given, degrees assumed\).*'radians'"),
        (_unit, r"unit 'gon'; expected 'degrees'"),
        (_replace("exchange/data_white", np.ones((4, 3, 9))), r"shape \(4, 3, 9\).*expected \(frames, 3, 8\)"),
        (_replace("exchange/data_dark", "dark"), r"data_dark in .* type object"),
        (_link, r"link into the file elsewhere.h5"),
        (_link_group, r"link into the file elsewhere.h5"),
        (_soft_link_out, r"link into the file elsewhere.h5"),
        (_virtual, r"stored in other files"),
        (_external_storage, r"stored in other files"),
    ],
)
def test_a_scan_that_cannot_be_reconstructed_is_refused(
    scan_file: Path, change: Callable[[h5py.File], None], message: str
) -> None:
    with h5py.File(scan_file, "a") as file:
        change(file)
    with pytest.raises(ScanError, match=message):
        Scan.open(scan_file)


def test_soft_links_within_the_file_are_followed(scan_file: Path) -> None:
    with h5py.File(scan_file, "a") as file:
        file.move("exchange/data_dark", "dark")
        file["exchange/data_dark"] = h5py.SoftLink("/dark")
    assert Scan.open(scan_file).read_rows(0, 1).dark.max() == 10


@pytest.mark.parametrize("target", ["/exchange/data_dark", "data_dark", "/exchange/loop"])
def test_links_in_a_circle_are_refused(scan_file: Path, target: str) -> None:
    with h5py.File(scan_file, "a") as file:
        del file["exchange/data_dark"]
        file["exchange/data_dark"] = h5py.SoftLink(target)
        file["exchange/loop"] = h5py.SoftLink("/exchange/data_dark")
    with pytest.raises(ScanError, match="data_dark"):
        Scan.open(scan_file)


def test_a_single_flat_and_dark_image_will_do(scan_file: Path) -> None:
    with h5py.File(scan_file, "a") as file:
        _replace("exchange/data_white", np.full((ROWS, COLUMNS), 1000.0))(file)
    assert Scan.open(scan_file).read_rows(0, 2).white.shape == (1, 2, COLUMNS)


def test_projections_can_be_left_out_as_if_they_had_not_been_taken(scan_file: Path) -> None:
    whole = Scan.open(scan_file)
    scan = whole.without((0, 5, 6)).without((1,)).only_rows(1, 3)
    used = [1, 3, 4, 7, 8, 9, 10, 11]
    assert (scan.left_out, scan.shape) == ((0, 2, 5, 6), (8, 2, COLUMNS))
    np.testing.assert_array_equal(scan.angles_rad, whole.angles_rad[used])
    np.testing.assert_array_equal(scan.read_rows(0, 2).data, whole.read_rows(1, 3).data[used])
    for numbers in ([[0, 1], [2, 1]], [3, 4, 5]):  # with a gap in the file, and without
        chosen = np.array(numbers)
        expected = whole.read_frames(np.array(used)[chosen], 2)
        np.testing.assert_array_equal(scan.read_frames(chosen, 2), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_pixel_that_is_no_number_is_named(scan_file: Path, value: float) -> None:
    data = np.ones((ANGLES, ROWS, COLUMNS), np.float32)
    data[5, 2, 3] = value
    with h5py.File(scan_file, "a") as file:
        _replace("exchange/data", data)(file)
    scan = Scan.open(scan_file)
    assert not scan.read_rows(0, 2).whole_counts
    with pytest.raises(ScanError, match=rf"is {value} at frame 5, row 2, column 3 \(1 such"):
        scan.read_rows(1, 3)


@pytest.mark.parametrize(("start", "stop"), [(0, 4), (-1, 1), (2, 2), (3, 4)])
def test_rows_that_do_not_exist_are_refused(scan_file: Path, start: int, stop: int) -> None:
    with pytest.raises(ScanError, match=r"it has rows 0\.\.2"):
        Scan.open(scan_file).read_rows(start, stop)


def test_some_rows_are_a_scan_of_their_own(scan_file: Path) -> None:
    whole = Scan.open(scan_file)
    some = whole.only_rows(1, None)
    assert (some.shape, some.rows) == ((ANGLES, ROWS - 1, COLUMNS), range(1, ROWS))
    assert whole.only_rows(None, None) == whole
    np.testing.assert_array_equal(some.read_rows(0, 2).data, whole.read_rows(1, 3).data)
    np.testing.assert_array_equal(some.read_rows(1, 2).white, whole.read_rows(2, 3).white)
    assert some.read_rows(1, 2).first_row == 2
    with pytest.raises(ScanError, match=r"it has rows 0\.\.1"):
        some.read_rows(1, 3)


@pytest.mark.parametrize(("start", "stop"), [(2, 2), (2, 1), (0, ROWS + 1), (ROWS, None), (-1, 2)])
def test_rows_that_the_detector_has_not_are_refused(scan_file: Path, start: int, stop: int | None) -> None:
    with pytest.raises(ScanError, match=rf"no detector rows from {start} .* it has rows 0\.\.2"):
        Scan.open(scan_file).only_rows(start, stop)


def test_a_scan_that_changed_since_it_was_opened_is_refused(scan_file: Path) -> None:
    scan = Scan.open(scan_file)
    with h5py.File(scan_file, "a") as file:
        _replace("exchange/data", np.ones((ANGLES + 1, ROWS, COLUMNS)))(file)
    with pytest.raises(ScanError, match=r"now has shape \(13, 3, 8\), it had \(12, 3, 8\)"):
        scan.read_rows(0, 1)


def test_a_file_that_is_missing_or_not_hdf5_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="there is no file"):
        Scan.open(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(ScanError, match="cannot be opened as HDF5"):
        Scan.open(tmp_path / "text.h5")


@pytest.mark.real_data
def test_the_real_scan_is_read(shared_data: Path) -> None:
    scan = Scan.open(shared_data / "tooth" / "tooth.h5")
    assert scan.shape == (181, 2, 640)
    assert scan.sample_name == "Tooth"
    assert np.rad2deg(scan.angles_rad[-1]) == pytest.approx(179.0055, abs=1e-3)
    assert scan.read_rows(0, 2).white.shape == (10, 2, 640)
