"""The symmetry groups: how many elements, all of them different, closed, and what each does to a block."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from denoise.patches.symmetry import CUBE, IDENTITY, SQUARE

_BLOCK = np.arange(27).reshape(3, 3, 3)


def _results(group) -> set[bytes]:
    return {symmetry.apply(_BLOCK).tobytes() for symmetry in group}


@pytest.mark.parametrize(("group", "size", "rotations"), [(SQUARE, 8, 4), (CUBE, 48, 24)])
def test_a_group_has_all_its_elements_once_and_half_are_rotations(group, size, rotations):
    assert len(group) == len(set(group)) == len(_results(group)) == size
    assert IDENTITY in group
    assert sum(symmetry.determinant == 1 for symmetry in group) == rotations
    assert sum(symmetry.determinant == -1 for symmetry in group) == size - rotations


@pytest.mark.parametrize("group", [SQUARE, CUBE])
def test_one_element_after_another_is_an_element_again(group):
    results = _results(group)
    for first, second in product(group, repeat=2):
        assert second.apply(first.apply(_BLOCK)).tobytes() in results


@pytest.mark.parametrize("group", [SQUARE, CUBE])
def test_the_determinant_of_a_product_is_the_product_of_determinants(group):
    determinants = {symmetry.apply(_BLOCK).tobytes(): symmetry.determinant for symmetry in group}
    for first, second in product(group, repeat=2):
        both = second.apply(first.apply(_BLOCK)).tobytes()
        assert determinants[both] == first.determinant * second.determinant


def test_the_square_turns_within_slices_and_never_reorders_them():
    block = np.arange(5 * 4 * 4).reshape(5, 4, 4)
    expected = {np.rot90(turned, k, (1, 2)).tobytes() for turned in (block, block[:, ::-1]) for k in range(4)}
    assert {symmetry.apply(block).tobytes() for symmetry in SQUARE} == expected


def test_the_rotations_of_the_cube_are_those_that_quarter_turns_generate():
    reached, fresh = {_BLOCK.tobytes()}, [_BLOCK]
    while fresh:
        block = fresh.pop()
        for axes in ((0, 1), (0, 2), (1, 2)):
            turned = np.rot90(block, 1, axes)
            if turned.tobytes() not in reached:
                reached.add(turned.tobytes())
                fresh.append(turned)
    assert _results(symmetry for symmetry in CUBE if symmetry.determinant == 1) == reached


@pytest.mark.parametrize("symmetry", [*SQUARE, *CUBE])
def test_leading_axes_stay_and_every_item_is_turned_alike(symmetry, rng):
    batch = rng.random((2, 3, 4, 4, 4))
    turned = symmetry.apply(batch)
    for i, j in product(range(2), range(3)):
        np.testing.assert_array_equal(turned[i, j], symmetry.apply(batch[i, j]))


def test_a_symmetry_says_along_which_axis_and_which_way_the_result_runs():
    for symmetry in CUBE:
        turned = symmetry.apply(_BLOCK)
        steps = dict(zip(symmetry.source_axis, symmetry.reverse, strict=True))
        # The voxel at the start of the result is at the end of every source axis that is walked backwards.
        corner = tuple(2 if steps[axis] else 0 for axis in range(3))
        assert turned[0, 0, 0] == _BLOCK[corner]


@pytest.mark.parametrize("symmetry", [*SQUARE, *CUBE])
def test_an_inverse_undoes_its_symmetry_whichever_comes_first(symmetry, rng):
    block = rng.random((2, 3, 4, 5))  # no two axes alike: an exchange must be exchanged back
    np.testing.assert_array_equal(symmetry.inverse.apply(symmetry.apply(block)), block)
    np.testing.assert_array_equal(symmetry.apply(symmetry.inverse.apply(block)), block)
    assert symmetry.inverse.inverse == symmetry


@pytest.mark.parametrize("symmetry", [*SQUARE, *CUBE])
def test_a_tensor_is_turned_as_an_array_is(symmetry, rng):
    block = rng.random((2, 3, 4, 5))
    np.testing.assert_array_equal(symmetry.turn(torch.from_numpy(block)).numpy(), symmetry.apply(block))


@pytest.mark.parametrize("group", [SQUARE, CUBE])
def test_every_inverse_belongs_to_the_group(group):
    assert {symmetry.inverse for symmetry in group} == set(group)
    assert IDENTITY.inverse == IDENTITY


def test_the_first_two_and_four_symmetries_of_the_square_are_groups_of_mirrors():
    """Averages are taken over them."""
    for count in (2, 4):
        part = SQUARE[:count]
        assert part[0] == IDENTITY
        assert all(symmetry.source_axis == (0, 1, 2) for symmetry in part)
        results = _results(part)
        assert all(second.apply(first.apply(_BLOCK)).tobytes() in results for first, second in product(part, repeat=2))
