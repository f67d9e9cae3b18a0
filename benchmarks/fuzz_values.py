"""Values that inputs are put together from: what a file might say, and what it should not."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

WORDS = st.sampled_from(["", ".", "..", "a", "even", "whole", "/etc/passwd", "../x", "~", "a.h5::/b", "é", "\x1b[31m",
    "x" * 300, "2.5d",
                          "3d", "residual", "unet", "l1", "cosine", "auto", "bf16", "null", "yes", "1e-4", "0x10",
                          "1_000", "::"])  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-3, 70),
    st.sampled_from([2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 10**30]),
    st.floats(),
    st.sampled_from([0.5, 1e-4, 1e308, 1e-320]),
)
PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=6,
)
SIZES = st.one_of(st.integers(0, 12), st.sampled_from([100, 2**16, 2**20, 2**31, 2**32, 2**40, 2**62, 2**63 - 1]))
SHAPES = st.one_of(st.just((3, 9, 8)), st.lists(SIZES, max_size=4).map(tuple), st.tuples(SIZES, SIZES, SIZES))


def usually(value: Any, other: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The value, three times out of four."""
    return st.one_of(st.just(value), st.just(value), st.just(value), other)


TYPES = st.sampled_from(["u1", "<u2", ">u2", "i2", "<f4", ">f8", "f2", "i8", "c8", "?", "S3", "V4", "O"])
