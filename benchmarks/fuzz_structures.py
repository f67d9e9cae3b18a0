"""Inputs built from a description of each format, most of them nearly valid: hypothesis strategies of trees of files.

Where byte changes seldom come: sizes that contradict each other, links, types that no volume has, names from elsewhere.
"""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from denoise.config.sections import SECTIONS
from fuzz_containers import hdf5s, models, scans
from fuzz_mutation import Tree
from fuzz_seeds import command_seeds, folder_seeds
from fuzz_values import NUMBERS, PLAIN, SHAPES, TYPES, WORDS, usually


def _config_text(draw: Callable[..., Any]) -> str:
    sections: dict[str, Any] = {}
    for name, section in SECTIONS.items():
        fields = draw(st.lists(st.sampled_from(sorted(section.model_fields)), max_size=5, unique=True))
        sections[name] = {f: draw(st.one_of(st.just(section.model_fields[f].get_default()), PLAIN)) for f in fields}
    sections["dataset"] |= {"splits": ["a", "b"]} if draw(st.booleans()) else {}
    if draw(st.booleans()):
        sections[draw(WORDS)] = draw(PLAIN)
    # JSON is YAML, but for what it cannot say: NaN, Infinity and values such as a Path are written as words.
    text = json.dumps(sections, default=str)
    return draw(
        st.sampled_from([text, text.replace('"', ""), text.replace("NaN", ".nan"), f"---\n{text}\n", f"&a {text}"])
    )


@st.composite
def configs(draw: Callable[..., Any]) -> Tree:
    """Known fields with wanted and unwanted values; or any text."""
    text = draw(st.one_of(st.just(None), st.just(None), st.just(None), st.text(max_size=200)))
    text = _config_text(draw) if text is None else text
    return {"config.yaml": text.encode("utf-8", "surrogatepass")}


_TAGS = st.sampled_from([254, 255, 256, 257, 258, 259, 262, 266, 270, 273, 277, 278, 279, 282, 283, 284, 296, 297, 305,
    317, 320, 322, 323,
                         324, 325, 330, 338, 339, 347, 530, 700, 32997, 33628, 33629, 34118, 34361, 34412, 34665,
                             37706, 42112, 50838,
                         50839, 51023, 65000, 65420])  # fmt: skip
_CODES = st.sampled_from(
    [1, 2, 3, 4, 5, 7, 8, 32773, 32946, 34712, 34887, 34892, 34925, 34933, 50000, 50001, 50002, 50013, 52546, 65000]
)
_TEXTS = st.sampled_from([
    b"ImageJ=1.54f\nimages=3\nslices=3\nunit=um\nspacing=1.5\n",
    b"ImageJ=1.0\nimages=99999999999999\nframes=-1\nspacing=nan\n",
    b'<OME><Pixels SizeZ="3" SizeC="1" SizeT="1" PhysicalSizeX="1e400"/></OME>',
    b'<OME><Pixels SizeZ="-3" SizeT="x"/></OME>',
    b'{"shape": [3, 9, 8]}', b'{"shape": [1e9, "x"]}', b'{"shape": [0, 9, 8]}', b'{"shape": 5}',
    b'<M K="first_slice">999999999999999999</M><M K="slice_step">0</M>', b"\xff\xfe\x00", b"SCANIMAGE", b"<FEIMETA>",
    b"<MetaData>",
])  # fmt: skip
_TAG_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


@st.composite
def tiffs(draw: Callable[..., Any]) -> Tree:
    """A classic TIFF put together tag by tag: one to three pages of 9 x 8 grey values, and what else is drawn."""
    order = draw(st.sampled_from("<<<>"))
    pixels = bytes(range(144))
    out = bytearray(struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8 + len(pixels)) + pixels)
    for page in range(pages := draw(st.integers(1, 3))):
        tags: dict[int, tuple[int, Any]] = {
            256: (4, 8), 257: (4, 9), 258: (3, 16), 259: (3, 1), 262: (3, 1), 273: (4, 8), 277: (3, 1), 278: (4, 9),
                279: (4, 144),
        }  # fmt: skip
        if page == 0 and draw(st.booleans()):
            tags[270] = (2, draw(_TEXTS))
        if draw(st.booleans()):
            tags[259] = (3, draw(_CODES))
        for tag in draw(st.lists(_TAGS, max_size=4)):
            value = draw(st.one_of(st.integers(0, 33), st.sampled_from([0, 8, 2**16 - 1, 2**31, 2**32 - 1]), _TEXTS))
            tags[tag] = (draw(st.sampled_from(sorted(_TAG_SIZES))), value)
        start = len(out)
        extra = bytearray()
        behind = start + 2 + 12 * len(tags) + 4
        entries = bytearray(struct.pack(f"{order}H", len(tags)))
        for tag, (kind, value) in sorted(tags.items()):
            data = value if isinstance(value, bytes) else value.to_bytes(8, "little" if order == "<" else "big")
            if not isinstance(value, bytes):
                data = data[:4] if order == "<" else (data[6:] + b"\0\0" if kind == 3 else data[4:])
            count = (
                len(data)
                if isinstance(value, bytes)
                else draw(usually(1, st.sampled_from([0, 2, 5, 2**16, 2**31, 2**32 - 1])))
            )
            if len(data) > 4:
                place = struct.pack(f"{order}I", behind + len(extra))
                extra += data
            else:
                place = data.ljust(4, b"\0")
            entries += struct.pack(f"{order}HHI", tag, kind, count) + place
        following = (
            behind + len(extra) if page + 1 < pages else draw(usually(0, st.sampled_from([8, start, 2**32 - 1])))
        )
        out += entries + struct.pack(f"{order}I", following) + extra
    return {"v.tif": bytes(out)}


@st.composite
def folders(draw: Callable[..., Any]) -> Tree:
    """Slices under wanted and unwanted names."""
    contents = [b for tree in folder_seeds_cached() for b in tree.values()] + [b"", b"II*\0", b"no image"]
    names = st.one_of(
        st.integers(0, 12).map(lambda n: f"s_{n:05d}.tif"),
        st.sampled_from(
            [
                "s.tif",
                "s_1.tif",
                "a2b3.TIFF",
                ".hidden.tif",
                "x.txt",
                "9" * 30 + ".tif",
                "s_²3.tif",
                "٣.tif",
                "zarr.json",
            ]
        ),
        st.text("ab01._-", min_size=1, max_size=6).filter(lambda t: t.strip(".")).map(lambda t: f"{t}.tif"),
    )
    return {
        name: draw(st.sampled_from(contents)) for name in draw(st.lists(names, min_size=1, max_size=5, unique=True))
    }


_CACHE: dict[str, list[Tree]] = {}


def folder_seeds_cached() -> list[Tree]:
    """Made once."""
    return _CACHE.setdefault("folder", folder_seeds())


def _codec(draw: Callable[..., Any], old: bool) -> Any:
    name = draw(st.sampled_from(["zlib", "gzip", "blosc", "zstd", "lz4", "bz2", "pickle", "json2", "vlen-utf8",
        "delta", "astype", "bytes",
                                 "transpose", "sharding_indexed", "crc32c", "numcodecs.pickle", "numcodecs.zlib",
                                 "packbits"]))  # fmt: skip
    extra = draw(
        st.sampled_from(
            [{}, {"level": 1}, {"level": -99}, {"dtype": "<f4"}, {"order": [2, 1, 0]}, {"endian": "little"}, {"x": 1}]
        )
    )
    return draw(usually({"id": name} | extra if old else {"name": name, "configuration": extra}, PLAIN))


@st.composite
def zarrs(draw: Callable[..., Any]) -> Tree:
    """Metadata of both formats with fields that contradict each other, and chunks of any bytes."""
    chunk = draw(st.sampled_from([bytes(range(144)) * 3, bytes(432), b"", b"\x1f\x8b", pickle.dumps({}), b"x" * 1000]))
    shape = list(draw(usually((3, 9, 8), SHAPES)))
    chunks = list(draw(usually(shape, SHAPES)))
    place = "v.zarr/" + draw(usually("", st.just("0/")))
    tree: Tree = {}
    if draw(st.booleans()):
        meta: dict[str, Any] = {
            "zarr_format": 2, "shape": shape, "chunks": chunks, "dtype": draw(usually("<u2", TYPES)),
            "compressor": draw(usually(None, st.just(_codec(draw, True)))), "filters": draw(usually(None,
            st.just([_codec(draw, True)]))),
            "fill_value": draw(usually(0, PLAIN)), "order": draw(usually("C", WORDS)),
            "dimension_separator": draw(usually(".", WORDS)),
        }  # fmt: skip
        tree[f"{place}.zarray"] = json.dumps(meta).encode()
        tree[f"{place}0.0.0"] = chunk
    else:
        codecs = [{"name": "bytes", "configuration": {"endian": "little"}}]
        meta = {
            "zarr_format": 3, "node_type": "array", "shape": shape, "data_type": draw(usually("uint16", WORDS)),
            "chunk_grid": draw(usually({"name": "regular", "configuration": {"chunk_shape": chunks}}, PLAIN)),
            "chunk_key_encoding": draw(usually({"name": "default", "configuration": {"separator": "/"}}, PLAIN)),
            "fill_value": draw(usually(0, PLAIN)), "attributes": draw(usually({}, PLAIN)),
            "codecs": draw(usually(codecs, st.just([*codecs, _codec(draw, False)]))),
            "storage_transformers": draw(usually([], PLAIN)),
        }  # fmt: skip
        tree[f"{place}zarr.json"] = json.dumps(meta).encode()
        tree[f"{place}c/0/0/0"] = chunk
    if place != "v.zarr/":
        scale = draw(usually([1.0, 1.0, 1.0], PLAIN))
        level = {
            "path": draw(usually("0", WORDS)),
            "coordinateTransformations": draw(usually([{"type": "scale", "scale": scale}], PLAIN)),
        }
        axes = draw(usually([{"name": a, "unit": "micrometer"} for a in "zyx"], PLAIN))
        image = draw(usually({"axes": axes, "datasets": draw(usually([level], PLAIN))}, PLAIN))
        ome = draw(usually({"multiscales": draw(usually([image], PLAIN))}, PLAIN))
        if draw(st.booleans()):
            tree["v.zarr/.zgroup"], tree["v.zarr/.zattrs"] = b'{"zarr_format": 2}', json.dumps(ome).encode()
        else:
            group = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome, "denoise": draw(PLAIN)}}
            tree["v.zarr/zarr.json"] = json.dumps(group).encode()
    return tree


@st.composite
def commands(draw: Callable[..., Any]) -> Tree:
    """A verb, options with wanted and unwanted values, stray words."""
    options = ["--config", "--out", "--splits", "--center", "--remove-stripes", "--overwrite", "--mode", "--resume",
        "--finetune", "--output-dir",
               "--max-minutes", "--processes", "--gpus", "--device", "--slice-number", "--checkpoint", "--model",
               "--output", "--dtype", "--start-slice",
               "--end-slice", "--help", "-h", "--nonsense", "--"]  # fmt: skip
    values = st.one_of(st.sampled_from(["c.yaml", "old.yaml", "even", "whole", "0", "1", "-1", "2.5d", "3d", "cpu",
        "cuda", "val", "edge", "float32",
                                        "out.h5", "out.zarr::x", "even/..", "/dev/null", "/dev/full", "/proc/self/mem",
                                        "x" * 5000, "nan", "inf", "1e99",
                                        "a::b::c", "even/c.yaml", "c.yaml/x", "²", "\udcff", "\x1b[31mred"]),
                                        st.text(max_size=5), NUMBERS.map(str))  # fmt: skip
    verb = draw(st.sampled_from(["prepare", "train", "slice", "volume", "demo", "check", "help", ""]))
    words = [verb, *draw(usually(["--config", "c.yaml"], st.just([])))] if verb not in ("prepare", "demo") else [verb]
    for option in draw(st.lists(st.sampled_from(options), max_size=4)):
        words += [option, *draw(st.lists(values, max_size=2))]
    words = [w.replace("\0", "") for w in words]
    return _CACHE.setdefault("commands", command_seeds())[0] | {"arguments.json": json.dumps(words).encode()}


@st.composite
def histories(draw: Callable[..., Any]) -> Tree:
    """Lines of JSON, some not."""
    lines = [
        draw(st.one_of(st.just('{"epoch": 1, "step": 3}'), PLAIN.map(json.dumps), st.text(max_size=9)))
        for _ in range(draw(st.integers(0, 4)))
    ]
    return {"history.jsonl": "\n".join(lines).encode("utf-8", "surrogatepass") + draw(st.sampled_from([b"", b"\n"]))}


STRUCTURES: dict[str, st.SearchStrategy[Tree]] = {
    "config": configs(), "tiff": tiffs(), "tiff folder": folders(), "hdf5": hdf5s(), "zarr": zarrs(), "model": models(),
    "state": models("resume_state.pth"), "history": histories(), "scan": scans(), "command line": commands(),
}  # fmt: skip
