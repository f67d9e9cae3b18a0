"""The config: what it accepts, what follows from it, and how it says no."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoise.config import ALIASES, RunConfig, render
from denoise.config.recipes import RECIPES
from denoise.config.sections import SECTIONS
from denoise.errors import ConfigError


def dataset(**fields: Any) -> dict[str, Any]:
    return {"folder": "/data", "splits": ["a", "b"], "full": "c"} | fields


def config(dataset_fields: dict[str, Any] | None = None, **sections: Any) -> RunConfig:
    return RunConfig.from_mapping({"dataset": dataset(**(dataset_fields or {})), **sections})


def refusal(mapping: Any, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_mapping(mapping, **options)
    return str(caught.value)


def test_an_old_file_needs_only_its_dataset_section() -> None:
    old = {"directory_to_reconstructions": "/d", "sub_recon_name0": "a", "sub_recon_name1": "b", "full_recon_name": "c"}
    run = RunConfig.from_mapping({"dataset": old, "train": None, "infer": None, "metadata": None})
    recipe = RECIPES["residual2d"]
    assert (run.mode, run.network_name, run.recipe) == ("2.5d", "residual2d", recipe)
    assert (run.batch_on("cpu"), run.patch) == (recipe.batch_size, recipe.patch_size)


def test_the_old_number_of_cubes_does_not_change_a_2d_run() -> None:
    run = config(train={"nb_patches_3d": 17600})
    assert run.patches_per_epoch is None
    assert config(train={"nb_patches_3d": 17600, "mode": "3d"}).patches_per_epoch == 17600


def test_any_number_of_old_splits_is_read_in_order_of_their_numbers() -> None:
    names = {f"sub_recon_name{k}": f"part{k}" for k in reversed(range(12))}
    run = RunConfig.from_mapping({"dataset": {"directory_to_reconstructions": "/d", **names}})
    assert run.split_paths == tuple(f"/d/part{k}" for k in range(12))


@pytest.mark.parametrize(("numbers", "missing"), [((0, 2), 1), ((1, 2), 0), ((0, 1, 3, 4), 2)])
def test_a_gap_in_the_old_splits_names_the_missing_one(numbers: tuple[int, ...], missing: int) -> None:
    names = {f"sub_recon_name{k}": f"part{k}" for k in numbers}
    assert f"sub_recon_name{missing} is missing" in refusal({"dataset": {"folder": "/d", **names}})


@pytest.mark.parametrize(
    ("section", "old", "name"), [(s, o, n) for s, names in ALIASES.items() for o, n in names.items()]
)
def test_every_old_name_means_a_field_and_excludes_the_new_one(section: str, old: str, name: str) -> None:
    assert name in SECTIONS[section].model_fields
    assert old not in SECTIONS[section].model_fields
    old = old.replace("<k>", "0")
    message = refusal(
        {"dataset": dataset()} | {section: {**(dataset() if section == "dataset" else {}), old: 1, name: 1}}
    )
    assert f"{section}.{old} is the old name of {section}.{name}, which is given too" in message


@pytest.mark.parametrize(
    ("train", "name", "options", "multiple"),
    [
        ({}, "residual2d", {"n_slices": 5, "width": 16, "levels": 3}, 4),
        ({"mode": "3D"}, "residual3d", {"n_slices": 5, "width": 16, "levels": 3}, 4),
        ({"mode": "2.5D", "network": "unet"}, "unet2d", {"n_slices": 5}, 8),
        ({"mode": "3d", "network": "unet"}, "unet3d", {"n_blocks": 4, "start_filters": 56}, 16),
        (
            {"mode": "3d", "network": "residual3d", "levels": 1},
            "residual3d",
            {"n_slices": 5, "width": 16, "levels": 1},
            1,
        ),
        ({"network": "unet2d", "n_slices": 4}, "unet2d", {"n_slices": 4}, 8),
    ],
)
def test_the_mode_decides_the_network_and_the_network_the_rest(
    train: dict[str, Any], name: str, options: dict[str, int], multiple: int
) -> None:
    run = config(train=train)
    recipe = RECIPES[name]
    assert (run.network_name, run.network_options, run.patch_multiple) == (name, options, multiple)
    assert (run.patch, run.batch_on("cpu")) == (recipe.patch_size, recipe.batch_size)
    assert (run.learning_rate, run.schedule) == (recipe.learning_rate, recipe.schedule)
    assert (run.loss, run.lcl_weight) == (recipe.loss, recipe.lcl_weight)


@pytest.mark.parametrize("mode", ["2.5d", "3d"])
def test_what_the_user_gives_comes_before_the_recipe(mode: str) -> None:
    given = {"psz": 48, "psz_3d": 32, "mbsz": 7, "lr": 0.25, "schedule": "cosine", "loss": "huber", "lcl_weight": 0}
    run = config(train={"network": "unet", "mode": mode, **given})
    assert run.patch == run.given_patch(mode) == {"2.5d": 48, "3d": 32}[mode]
    assert (run.batch_on("cuda"), run.learning_rate, run.schedule) == (7, 0.25, "cosine")
    assert (run.loss, run.lcl_weight) == ("huber", 0), "a weight of nothing is given, too"


def test_a_patch_that_is_not_given_is_known_to_be_not_given() -> None:
    """A model of the published tools brings its own network, whose patch is not that of the config's network."""
    run = config(train={"patch_size": 48})
    assert (run.given_patch("2.5d"), run.given_patch("3d")) == (48, None)


@pytest.mark.parametrize(
    ("fields", "sample"),
    [
        ({"full": "rec_0.5um"}, "rec_0.5um"),
        ({"full": "tooth.ome.zarr"}, "tooth"),
        ({"full": "sub/Scan.H5::/exchange/data"}, "Scan"),
        ({"full": None, "splits": ["x/even/", "odd"]}, "even"),
        ({"full": "..", "splits": [".h5::/a", ".h5::/b"]}, "data"),
        ({"full": "..", "splits": None, "folder": "/"}, "sample"),
        ({"full": ".hidden\\\x07name"}, "hidden__name"),
        ({"full": "n" * 200}, "n" * 100),
        ({"sample": "tooth 7"}, "tooth 7"),
    ],
)
def test_the_sample_name_can_stand_in_a_file_name(fields: dict[str, Any], sample: str) -> None:
    run = config(fields)
    assert run.sample_name == sample
    assert run.output_dir == run.dataset.folder / f"{sample}_training_2.5d"


def test_a_config_for_inference_alone_has_no_splits_and_says_so_when_asked() -> None:
    run = config({"splits": None})
    with pytest.raises(ConfigError, match=r"dataset\.splits is missing; training needs two or more"):
        _ = run.split_paths


def test_the_command_line_mode_comes_before_validation() -> None:
    wrong_in_2d = {"dataset": dataset(), "train": {"mode": "2.5d", "patch_size": 250}}
    assert RunConfig.from_mapping(wrong_in_2d, mode="3D").network_name == "residual3d"
    assert '--mode is "4d"; it must be "2.5d" or "3d"' in refusal({"dataset": dataset()}, mode="4d")
    assert "does not fit" in refusal({"dataset": dataset(), "train": {"network": "unet2d"}}, mode="3d")


def test_a_config_travels_to_other_processes_unchanged() -> None:
    run = config({"mean": 1.0, "std": 2.0}, metadata={"a": [1, {"b": None}]})
    assert pickle.loads(pickle.dumps(run)) == run


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        config().train.patch_size = 8  # type: ignore[misc]


@pytest.mark.parametrize(
    ("section", "field", "value", "found", "rule"),
    [
        ("train", "batch_size", True, "true", "a whole number, at least 1"),
        ("train", "batch_size", "32", '"32"', "a whole number, at least 1"),
        ("train", "batch_size", 0, "0", "a whole number, at least 1"),
        ("train", "batch_size", 2**31, str(2**31), "a whole number"),
        ("train", "lr", "1e-4", '"1e-4"', "a number above 0"),
        ("train", "learning_rate", 0, "0", "a number above 0"),
        ("train", "learning_rate", float("nan"), "nan", "a number above 0"),
        ("train", "learning_rate", False, "false", "a number above 0"),
        ("train", "schedule", "linear", '"linear"', 'null, "hold", "cosine" or "constant"'),
        ("train", "max_minutes", 0, "0", "null, or a number above 0"),
        ("train", "max_minutes", float("inf"), "inf", "null, or a number above 0"),
        ("train", "patience", -1, "-1", "null, or a whole number, 0 or more"),
        ("train", "lcl_weight", -0.1, "-0.1", "0 or more"),
        ("train", "n_slices", 100, "100", "1 to 99"),
        ("train", "patch_size", 8200, "8200", "1 to 8192"),
        ("train", "patch_size", 256.0, "256.0", "a whole number"),
        ("train", "augment", "yes", '"yes"', "true or false"),
        ("train", "augment", 1, "1", "true or false"),
        ("train", "ema_decay", 1.0, "1.0", "below 1"),
        ("train", "validation_fraction", 0.6, "0.6", "at most 0.5"),
        ("train", "mode", 2.5, "2.5", '"2.5d" or "3d"'),
        ("train", "loss", ["l1"], "a list of 1 values", '"l1", "l2" or "huber"'),
        ("train", "max_epochs", None, "null", "a whole number, at least 1"),
        ("train", "seed", -1, "-1", "0 or more"),
        ("train", "output_dir", " ", '" "', "not blank"),
        ("infer", "overlap", 1, "1", "below 1"),
        ("infer", "tta", 3, "3", "1, 2, 4 or 8"),
        ("infer", "window", {"a": 1}, "a section", '"hann" or "uniform"'),
        ("dataset", "folder", 5, "5", "a folder"),
        ("dataset", "folder", "a\0b", r'"a\x00b"', "characters that a file name can have"),
        ("dataset", "folder", "~no-such-user-here/a", '"~no-such', "no home folder is known"),
        ("dataset", "splits", "ab", '"ab"', "a list of two or more"),
        ("dataset", "splits", ["a"], "a list of 1 values", "a list of two or more"),
        ("dataset", "full", "a.h5::", '"a.h5::"', "scan.h5::/exchange/data"),
        ("dataset", "full", "", '""', "not blank"),
        ("dataset", "std", 0, "0", "above 0"),
        ("dataset", "sample", "../x", '"../x"', "without / and"),
        ("dataset", "sample", "n" * 101, '"nnn', "at most 100 characters"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_rule(section: str, field: str, value: Any, found: str, rule: str) -> None:
    mapping: dict[str, Any] = {"dataset": dataset()}
    mapping[section] = {**mapping.get(section, {}), field: value}
    message = refusal(mapping)
    assert f"{section}.{field}" in message
    assert f"is {found}" in message
    assert rule in message
    assert "\n" not in message


def test_every_path_may_begin_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    run = config({"splits": ["~/a", "~/b.h5::/x/~"], "full": "~/c.zarr"}, train={"output_dir": "~/run"})
    assert run.split_paths == ("/home/me/a", "/home/me/b.h5::/x/~")
    assert config({"full": "~x0.h5"}).full_path == config({"full": "x0.h5"}).full_path.replace("x0", "~x0")
    assert (run.full_path, str(run.output_dir)) == ("/home/me/c.zarr", "/home/me/run")
    assert run.sample_name == "c"


def test_what_is_no_mapping_is_refused() -> None:
    assert "expected the sections dataset, train and infer" in refusal(["dataset"])
    assert "dataset.folder is missing" in refusal({})


def test_a_number_too_long_to_print_is_still_refused_with_its_name() -> None:
    # repr() of more than 4300 digits raises ValueError, also in pytest's own table of parameters.
    assert "train.seed is a number of more than 80 digits" in refusal(
        {"dataset": dataset(), "train": {"seed": 10**5000}}
    )


@pytest.mark.parametrize(
    ("fields", "sections", "parts"),
    [
        ({}, {"train": {"network": "unet", "psz": 100}},
         ("train.psz (now patch_size) is 100", "divisible by 8", "96 or 104")),
        ({}, {"train": {"network": "unet", "mode": "3d", "patch_size_3d": 8}},
         ("patch_size_3d is 8", "divisible by 16", "such as 16")),
        ({}, {"train": {"patch_size": 30}}, ("is 30", "divisible by 4", "residual2d")),
        ({}, {"train": {"network": "unet", "mode": "3d"}, "infer": {"tile_size": 40}},
         ("infer.tile_size is 40", "divisible by 16")),
        # A patch that nobody gave is told as well: this network halves what the recipe gives too often.
        ({}, {"train": {"mode": "3d", "levels": 8}}, ("patch_size_3d", "divisible by 128", "such as 128")),
        ({}, {"train": {"network": "residual3d"}}, ('network is "residual3d"', 'mode "2.5d"', '"residual"')),
        ({"mean": 1.0}, {}, ("dataset.mean is 1.0", "dataset.std is missing")),
        ({"std4norm": 1.0}, {}, ("dataset.std4norm (now std) is 1.0", "dataset.mean is missing")),
        ({"train_start_slice": 5, "train_end_slice": 5}, {}, ("train_end_slice is 5", "above", "which is 5")),
        ({"splits": ["a", "b", "./a"]}, {}, ('splits[2] is "./a"', "same as dataset.splits[0]")),
        ({"splits": ["a", "x/../a"]}, {}, ("same as dataset.splits[0]",)),
        ({"splits": None, "full": None}, {}, ("names no reconstruction",)),
        ({"splits": None}, {"infer": {"input": "splits"}}, ("infer.input", "dataset.splits is missing")),
    ],
)  # fmt: skip
def test_fields_that_do_not_go_together_are_refused(
    fields: dict[str, Any], sections: dict[str, Any], parts: tuple[str, ...]
) -> None:
    message = refusal({"dataset": dataset(**fields), **sections})
    for part in parts:
        assert part in message


def test_a_patch_of_the_mode_not_in_use_is_not_checked() -> None:
    assert config(train={"mode": "3d", "patch_size": 250}).patch == RECIPES["residual3d"].patch_size
    assert config(train={"patch_size_3d": 97}).patch == RECIPES["residual2d"].patch_size


@pytest.mark.parametrize(
    ("mapping", "suggestion"),
    [
        ({"train": {"patch_sise": 1}}, "train.patch_sise is not a field; did you mean train.patch_size?"),
        ({"train": {"warmpu": 1}}, "train.warmpu is not a field; did you mean train.warmup?"),
        ({"train": {"overlap": 0.5}}, "did you mean infer.overlap?"),
        ({"psz": 256}, "psz is not a section; did you mean train.psz?"),
        ({"trian": {}}, "trian is not a section; did you mean train?"),
        ({"infer": {"zzz": 1}}, "infer.zzz is not a field; known are input, overlap,"),
        ({"infer": {5: 1}}, "infer.5 is not a field"),
        ({"dataset": dataset(sub_recon_name01=1)}, "did you mean"),
    ],
)
def test_an_unknown_name_gets_the_nearest_known_one(mapping: dict[str, Any], suggestion: str) -> None:
    assert suggestion in refusal({"dataset": dataset()} | mapping)


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates() | st.binary(max_size=4)
)
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(SCALARS, v, max_size=3), max_leaves=6
)
FIELDS = [name for section in SECTIONS.values() for name in section.model_fields]
OLD_NAMES = ["sub_recon_name0", "sub_recon_name1", *(name for names in ALIASES.values() for name in names)]
NAMES = st.sampled_from(FIELDS + OLD_NAMES) | st.text(max_size=6)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*SECTIONS, "metadata"]) | SCALARS, st.dictionaries(NAMES, VALUES) | VALUES, max_size=4
    )
)
def test_any_mapping_is_a_config_or_a_config_error(mapping: Any) -> None:
    try:
        render(RunConfig.from_mapping(mapping))
    except ConfigError as error:
        str(error).encode()  # can be shown on any terminal
