"""What a TIFF file says of itself beside its pixels: voxel size, number of images, slice numbers; reading and writing.

Three dialects are understood: ImageJ's key=value description, OME-XML, and the JSON of tifffile. OME-XML is searched
for the few attributes that are needed instead of parsed, so a hostile file has no XML parser to play with.
"""

from __future__ import annotations

import html
import json
import math
import re
from typing import Any

import tifffile

from denoise.tiles import Triple
from denoise.volumes.compression import GZIP_LEVEL
from denoise.volumes.slab_writer import VolumeHeader
from denoise.volumes.units import in_micrometres
from denoise.volumes.volume import VoxelSize, stored_numbers

_PIXELS = re.compile(r"<(?:\w+:)?Pixels\b([^>]*)>")
_ATTRIBUTE = re.compile(r"""(\w+)\s*=\s*["']([^"']*)["']""")
_OUR_NUMBERS = re.compile(r'<M K="first_slice">(\d{1,18})</M><M K="slice_step">(\d{1,18})</M>')
_OME_TYPES = {"uint8": "uint8", "uint16": "uint16", "int16": "int16", "float32": "float", "float64": "double"}

# Resolutions that programs fill in when they know none, in dots per inch; in dots per cm the same, divided by 2.54.
_HABITUAL_DPI = (1, 72, 75, 90, 96, 100, 120, 144, 150, 200, 300, 400, 600, 1200, 2400)


def voxel_size_um(tif: tifffile.TiffFile) -> VoxelSize | None:
    """Voxel size (Z, Y, X) in micrometres, or None where the file does not say; z equals y where only z is missing."""
    page = tif.pages.first
    if pixels := _ome_pixels(page):
        y, x, z = (_ome_length(pixels, axis) for axis in "YXZ")
    elif page.is_imagej:
        meta = tif.imagej_metadata or {}
        unit = str(meta.get("unit", ""))
        y, x = (in_micrometres(length, unit) for length in _pixel_lengths(page))
        spacing = meta.get("spacing")
        z = in_micrometres(float(spacing), unit) if isinstance(spacing, int | float) else None
    else:
        y, x = _plain_pixel_size_um(page)
        z = None
    return None if y is None or x is None else (z or y, y, x)


def stacked_axes(page: tifffile.TiffPage, tif: tifffile.TiffFile) -> tuple[int, ...]:
    """Sizes of the axes along which the file says that images are stacked; an empty tuple where it says nothing."""
    if pixels := _ome_pixels(page):
        return tuple(int(pixels.get(f"Size{axis}", "1")) for axis in "TCZ")
    if page.is_imagej:
        meta = tif.imagej_metadata or {}
        sizes = tuple(int(meta.get(key, 1)) for key in ("frames", "slices", "channels"))
        return sizes if math.prod(sizes) > 1 else (int(meta.get("images", 1)),)
    if page.shaped_description:
        shape = _json_shape(page.shaped_description)
        if shape[-2:] == page.shape:
            return shape[:-2]
        return (max(1, math.prod(shape) // math.prod(page.shape)),)
    return ()


def slice_numbers(page: tifffile.TiffPage, count: int) -> range:
    """The numbers that our own multi-page files carry; 0, 1, 2, ... for others."""
    found = _OUR_NUMBERS.search(page.description)
    return stored_numbers(int(found[1]), int(found[2]), count) if found else range(count)


def slice_tags(header: VolumeHeader) -> dict[str, Any]:
    """Arguments of ``tifffile.imwrite`` for one slice of a folder; ImageJ finds the voxel size, spacing included."""
    tags: dict[str, Any] = {
        "photometric": "minisblack",
        "metadata": None,
        "software": "denoise",
        "description": _ascii_line(header.description),
    }
    if header.voxel_size_um is not None:
        z, y, x = header.voxel_size_um
        lines = ["ImageJ=1.54f", "unit=um", f"spacing={z!r}", f"description={_ascii_line(header.description)}"]
        tags |= {
            "description": "\n".join(lines) + "\n",
            "resolution": (1 / x, 1 / y),
            "resolutionunit": tifffile.RESUNIT.NONE,
        }
    if header.compression == "gzip":
        # No predictor: ImageJ does not know the one for floating point.
        tags |= {"compression": "zlib", "compressionargs": {"level": GZIP_LEVEL}}
    return tags


def stack_tags(header: VolumeHeader, name: str) -> dict[str, Any]:
    """Arguments of ``TiffWriter.write`` for the pages of one multi-page file, OME-XML in the first."""
    tags: dict[str, Any] = {
        "photometric": "minisblack",
        "metadata": None,
        "software": "denoise",
        "description": _ome_xml(header, name).encode("utf-8", "backslashreplace"),
        "contiguous": True,
    }
    if header.voxel_size_um is not None:
        _, y, x = header.voxel_size_um
        tags |= {"resolution": (1e4 / x, 1e4 / y), "resolutionunit": tifffile.RESUNIT.CENTIMETER}
    return tags


def _ome_pixels(page: tifffile.TiffPage) -> dict[str, str]:
    if "<OME" not in page.description and ":OME" not in page.description:
        return {}
    found = _PIXELS.search(page.description)
    return dict(_ATTRIBUTE.findall(found[1])) if found else {}


def _ome_length(pixels: dict[str, str], axis: str) -> float | None:
    try:
        length = float(pixels[f"PhysicalSize{axis}"])
    except (KeyError, ValueError):
        return None
    return in_micrometres(length, html.unescape(pixels.get(f"PhysicalSize{axis}Unit", "µm")))


def _pixel_lengths(page: tifffile.TiffPage) -> tuple[float, float]:
    """Length of a pixel along y and x in units of the resolution tags; NaN where a tag is missing or 0."""
    lengths = []
    for name in ("YResolution", "XResolution"):
        tag = page.tags.get(name)
        pixels, units = tag.value if tag is not None else (0, 1)
        lengths.append(units / pixels if pixels else math.nan)
    return lengths[0], lengths[1]


def _plain_pixel_size_um(page: tifffile.TiffPage) -> tuple[float | None, float | None]:
    tag = page.tags.get("ResolutionUnit")
    unit = {2: "inch", 3: "cm"}.get(int(tag.value) if tag is not None else 1)
    if unit is None:
        return None, None
    y, x = _pixel_lengths(page)
    per_inch = 1.0 if unit == "inch" else 2.54
    dots = [per_inch / length for length in (y, x)]
    if any(math.isclose(d, habit, rel_tol=2e-2) for d in dots for habit in _HABITUAL_DPI) or {y, x} == {1.0}:
        return None, None
    return in_micrometres(y, unit), in_micrometres(x, unit)


def _json_shape(description: str) -> Triple | tuple[int, ...]:
    try:
        shape = json.loads(description)["shape"]
    except (ValueError, KeyError, TypeError):
        return ()
    return tuple(int(n) for n in shape)


def _ascii_line(text: str) -> str:
    """One line of ASCII, the only text that the TIFF standard allows in a description."""
    return " ".join(text.split()).encode("ascii", "replace").decode()


def _ome_xml(header: VolumeHeader, name: str) -> str:
    n_z, n_y, n_x = header.shape
    sizes = ""
    if header.voxel_size_um is not None:
        for axis, size in zip("ZYX", header.voxel_size_um, strict=True):
            sizes += f' PhysicalSize{axis}="{size!r}" PhysicalSize{axis}Unit="µm"'
    numbers = header.slice_numbers
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" Creator="denoise">'
        f'<Image ID="Image:0" Name="{html.escape(name)}">'
        f"<Description>{html.escape(header.description)}</Description>"
        f'<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="{_OME_TYPES[header.dtype.name]}" BigEndian="false" '
        f'SizeX="{n_x}" SizeY="{n_y}" SizeZ="{n_z}" SizeC="1" SizeT="1"{sizes}>'
        '<Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
        f'<TiffData IFD="0" PlaneCount="{n_z}"/>'
        '</Pixels><AnnotationRef ID="Annotation:0"/></Image>'
        '<StructuredAnnotations><MapAnnotation ID="Annotation:0" Namespace="denoise/slice-numbers"><Value>'
        f'<M K="first_slice">{numbers[0]}</M><M K="slice_step">{numbers.step}</M>'
        "</Value></MapAnnotation></StructuredAnnotations></OME>"
    )
