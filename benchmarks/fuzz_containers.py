"""HDF5 files, scans and model archives put together from drawn parts: hypothesis strategies."""

from __future__ import annotations

import functools
import io
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import torch
from hypothesis import strategies as st

from fuzz_mutation import Tree
from fuzz_seeds import model_seeds
from fuzz_values import NUMBERS, PLAIN, SHAPES, TYPES, usually


def _attribute(draw: Callable[..., Any], attributes: Any, name: str) -> None:
    value = draw(st.sampled_from([1, -1, 2.5, np.nan, [1.0, 2.0, 3.0], [0, 0, 0], "um", b"\xff", np.zeros(500), [],
        2**63 - 1, True,
                                  np.void(b"ab"), h5py.Empty("f4")]))  # fmt: skip
    attributes[name] = value


def _dataset(draw: Callable[..., Any], file: Any, place: str, shape: tuple[int, ...] | None = None) -> None:
    shape = draw(usually(shape, SHAPES)) if shape is not None else draw(SHAPES)
    kind = draw(usually("<f4", TYPES))
    how: dict[str, Any] = {}
    if shape and draw(st.booleans()):
        how["chunks"] = draw(
            st.sampled_from(
                [True, tuple(min(max(n, 1), 4) for n in shape), tuple(min(max(n, 1), 2**20) for n in shape)]
            )
        )
        how["compression"] = draw(st.sampled_from([None, "gzip", "lzf", "szip"]))
        how["fletcher32"] = draw(st.booleans())
    if draw(st.integers(0, 9)) == 0:
        how = {"external": [("/etc/passwd", 0, h5py.h5f.UNLIMITED)]}
    type_: Any = h5py.string_dtype() if kind == "O" else kind
    made = file.create_dataset(place, shape, type_, **how)
    if np.prod(shape, dtype=float) < 1000 and not how.get("external") and kind not in ("O", "S3", "V4", "?"):
        made[...] = np.arange(int(np.prod(shape))).reshape(shape) % 100
    for name in ("element_size_um", "first_slice_number", "slice_number_step", "units"):
        if draw(st.integers(0, 3)) == 0:
            _attribute(draw, made.attrs, name)


def _link(draw: Callable[..., Any], file: Any, place: str, targets: list[str]) -> None:
    target = draw(st.sampled_from([*targets, place, "/", "..", "/nowhere", f"{place}/x"]))
    file[place] = draw(
        st.sampled_from(
            [h5py.SoftLink(target), h5py.ExternalLink("/etc/passwd", target), h5py.ExternalLink("v.h5", target)]
        )
    )


def _hdf5(fill: Callable[[Any], None]) -> bytes:
    memory = io.BytesIO()
    try:
        with h5py.File(memory, "w") as file:
            fill(file)
    except (ValueError, OSError, TypeError, RuntimeError, OverflowError, KeyError):
        pass  # h5py refuses to write some of it; what is there by then is an input as well
    return memory.getvalue()


@st.composite
def hdf5s(draw: Callable[..., Any]) -> Tree:
    """Datasets of any shape and type, groups, links inside, outside and in circles."""

    def fill(file: Any) -> None:
        places = ["exchange/data", "entry/data", "d"]
        _dataset(draw, file, draw(st.sampled_from(places)), (3, 9, 8))
        for place in draw(st.lists(st.sampled_from([*places, "x/y/z", "x/l"]), max_size=3, unique=True)):
            if place not in file:
                (_link(draw, file, place, places) if draw(st.booleans()) else _dataset(draw, file, place))

    return {"v.h5": _hdf5(fill)}


@st.composite
def scans(draw: Callable[..., Any]) -> Tree:
    """The four datasets of a scan, some of them odd; and metadata."""

    def fill(file: Any) -> None:
        wanted = {"data": (6, 2, 5), "data_white": (2, 2, 5), "data_dark": (1, 2, 5), "theta": (6,)}
        for name, shape in wanted.items():
            if draw(st.integers(0, 15)) == 0:
                _link(draw, file, f"exchange/{name}", [f"exchange/{n}" for n in wanted])
            elif name == "theta" and draw(st.booleans()):
                file["exchange/theta"] = np.linspace(0, draw(st.sampled_from([180.0, 3.14, 1e308, np.nan])), 6)
            else:
                _dataset(draw, file, f"exchange/{name}", shape)
        for place in draw(st.lists(st.sampled_from(["sample/name", "instrument/detector/pixel_size",
            "instrument/detector",
                                                   "instrument/detection_system/objective/magnification"]), max_size=3,
                                                   unique=True)):  # fmt: skip
            value = draw(
                st.sampled_from(["foam", "../x", b"\xff", 3.45, 0, -1, np.nan, "", np.zeros((2, 2)), h5py.Empty("f8")])
            )
            file[f"measurement/{place}"] = value
            _attribute(draw, file[f"measurement/{place}"].attrs, "units")

    return {"scan.h5": _hdf5(fill)}


_GLOBALS = st.sampled_from(["os system", "builtins eval", "builtins bytearray", "torch.storage UntypedStorage",
    "torch FloatStorage",
                            "torch FloatTensor", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter",
                            "collections OrderedDict",
                            "torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_meta_tensor_no_storage",
                            "torch.serialization _get_layout",
                            "_codecs encode", "torch._utils _rebuild_nested_tensor", "torch Size", "torch device",
                            "collections Counter"])  # fmt: skip


@st.composite
def models(draw: Callable[..., Any], file: str = "model.pth") -> Tree:
    """Archives of odd values; or pickles of drawn opcodes in a valid archive."""
    if draw(st.booleans()):
        content = {
            "format": draw(usually("ct-denoise checkpoint", PLAIN)), "format_version": draw(usually(1, PLAIN)),
            "model_state_dict": draw(usually({"a": torch.zeros(2)}, _tensors())),
            "network": draw(usually({"name": "residual2d", "options": {"width": draw(st.integers(-1, 600)),
            "levels": 1}}, PLAIN)),
            "normalization": draw(usually({"mean": 0.0, "std": draw(NUMBERS)}, PLAIN)), "patch_size": draw(usually(16,
            PLAIN)),
            "criterion": draw(usually("val", PLAIN)), "epoch": draw(usually(1, PLAIN)), "step": draw(usually(1, PLAIN)),
            "scores": draw(usually({"l1": 0.5}, PLAIN)), "versions": draw(usually({}, PLAIN)), "sample": "",
            "created": "",
        }  # fmt: skip
        if file != "model.pth":
            content = {
                name: draw(PLAIN)
                for name in ("fingerprint", "model", "ema", "optimizer", "progress", "normalization", "generator")
            }
        memory = io.BytesIO()
        torch.save(content, memory)
        return {file: memory.getvalue()}
    code = [b"\x80\x02"]
    for _ in range(draw(st.integers(1, 14))):
        size = draw(st.sampled_from([0, 1, 5, 2**20, 2**31 - 1]))
        code.append(draw(st.sampled_from([
            b"}", b"]", b")", b"(", b"t", b"R", b"Q", b"b", b"s", b"u", b"a", b"\x81", b"N", b"\x85", b"\x86", b"\x87",
            b"q\x00", b"h\x00",
            b"X\x03\x00\x00\x00cpu", b"X\x10\x00\x00\x00model_state_dict", b"K\x05", b"J" + struct.pack("<i", size),
            b"\x8a\x06" + bytes(5) + b"\x01",
            b"c" + draw(_GLOBALS).replace(" ", "\n").encode() + b"\n", b"T" + struct.pack("<i", size),
            b"r" + struct.pack("<I", size),
        ])))  # fmt: skip
    packed = io.BytesIO()
    base = _base_model()
    with zipfile.ZipFile(io.BytesIO(base)) as source, zipfile.ZipFile(packed, "w") as archive:
        for info in source.infolist():
            data = b"".join([*code, b"."]) if info.filename.endswith("data.pkl") else source.read(info)
            archive.writestr(zipfile.ZipInfo(info.filename), data)
    return {file: packed.getvalue()}


def _tensors() -> st.SearchStrategy[Any]:
    values = [torch.zeros(2), torch.full((1,), torch.nan), torch.zeros(1).expand(2**40), torch.zeros(2,
        dtype=torch.int64),
              torch.zeros(2, 2).to_sparse(), torch.zeros(0), torch.zeros(2, dtype=torch.complex64), torch.empty(3,
                  device="meta"), "x", 5]  # fmt: skip
    return st.dictionaries(
        st.sampled_from(["a", "in_box.0.weight", "down_convs.0.conv1.weight", ""]), st.sampled_from(values), max_size=3
    )


@functools.cache
def _base_model() -> bytes:
    return model_seeds()[0]["model.pth"]
