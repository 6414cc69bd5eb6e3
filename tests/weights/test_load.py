"""Strict loading, on a mask head of two layers: all of a file, or a list of what does not fit."""

import keras
import numpy as np
import pytest

from keras_mrcnn.conv_norm import ConvNorm
from keras_mrcnn.roi.mask_head import MaskHead
from keras_mrcnn.weights import tables
from keras_mrcnn.weights.load import MOST_LISTED, load_table
from keras_mrcnn.weights.tables import Row, Table

ROWS = [
    Row("mask_head/conv1/kernel", "head.first.weight", tables.kernel),
    Row("mask_head/conv1/bias", "head.first.bias", tables.same),
    Row("mask_head/upsample/kernel", "head.up.weight", tables.kernel),
    Row("mask_head/upsample/bias", "head.up.bias", tables.same),
    Row("mask_head/logits/kernel", "head.last.weight", tables.kernel),
    Row("mask_head/logits/bias", None, tables.constant(0.5, 2)),
]
SHAPES = {
    "head.first.weight": (4, 6, 3, 3),
    "head.first.bias": (4,),
    "head.up.weight": (4, 4, 2, 2),
    "head.up.bias": (4,),
    "head.last.weight": (2, 4, 1, 1),
}
WHOLE = Table(ROWS, ("*.num_batches_tracked",))


@pytest.fixture
def head():
    """6 channels in, one convolution of 4, 2 classes."""
    layer = MaskHead(2, convs=1, channels=4, name="mask_head")
    layer(np.zeros([1, 14, 14, 6], np.float32))
    return layer


@pytest.fixture
def file():
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def values(model):
    return {variable.path: variable.numpy() for variable in model.variables}


def refusal(model, file, table=WHOLE, anew=()):
    """The lines of the error; the model is bit for bit as it was."""
    before = values(model)
    with pytest.raises(ValueError) as error:
        load_table(model, file, table, "weights.pth", anew)
    for path, value in values(model).items():
        np.testing.assert_array_equal(value, before[path], path)
    return str(error.value).splitlines()


def test_a_part_of_the_model(head, file):
    before = values(head)
    part = Table([row for row in ROWS if "upsample" in row.ours], ("head.first.*", "head.last.*"))
    report = load_table(head, file, part, "weights.pth", within=("mask_head/upsample",))
    assert str(report) == "loaded 2/2"
    for path, value in values(head).items():
        assert np.array_equal(value, before[path]) != ("upsample" in path), path
    missing = load_table(head, file, part, "w", ("mask_head/upsample/bias",), ("mask_head/upsample",))
    assert set(missing.initialised) == {"mask_head/upsample/bias"} and len(missing.loaded) == 1


def test_everything_is_loaded(head, file):
    file["head.norm.num_batches_tracked"] = np.int64(3)
    report = load_table(head, file, WHOLE, "weights.pth")
    assert str(report) == "loaded 6/6"
    assert sorted(report.loaded) == sorted(row.ours for row in ROWS) and report.initialised == {}
    loaded = values(head)
    for row in ROWS[:-1]:
        expected = file[row.theirs]
        if expected.ndim == 4:  # (out, in, rows, columns) to (rows, columns, in, out)
            expected = np.moveaxis(expected, (2, 3, 1, 0), (0, 1, 2, 3))
        np.testing.assert_array_equal(loaded[row.ours], expected)
    np.testing.assert_array_equal(loaded["mask_head/logits/bias"], [0.5, 0.5])


def test_all_that_does_not_fit_is_listed_at_once(head, file):
    file["head.frist.bias"] = file.pop("head.first.bias")  # renamed
    file["head.up.bias"] = np.zeros(5, np.float32)
    file["head.last.weight"] = np.zeros([2, 4], np.float32)  # two axes too few
    file["head.norm.num_batches_tracked.more"] = np.zeros([])
    rows = [row for row in ROWS if row.ours != "mask_head/upsample/kernel"]
    table = Table([*rows, Row("mask_head/conv9/bias", "head.ninth", tables.same)], WHOLE.ignored)
    assert refusal(head, file, table) == [
        "weights.pth does not fit this model, and nothing was loaded: 2 of 6 fit.",
        "missing in the file: 1",
        "  head.first.bias, for mask_head/conv1/bias (the file has head.frist.bias)",
        "unexpected in the file: 3",
        "  head.up.weight (4, 4, 2, 2)",
        "  head.frist.bias (4,)",
        "  head.norm.num_batches_tracked.more ()",
        "of another shape: 2",
        "  head.up.bias (5,), does not make mask_head/upsample/bias (4,)",
        "  head.last.weight (2, 4), does not make mask_head/logits/kernel (1, 1, 4, 2)",
        "not in the model: 1",
        "  mask_head/conv9/bias, of head.ninth",
        "in the model, but not of this kind of file: 1",
        "  mask_head/upsample/kernel",
    ]


@pytest.mark.parametrize("name", SHAPES)
def test_one_name_too_few(head, file, name):
    del file[name]
    ours = next(row.ours for row in ROWS if row.theirs == name)
    assert refusal(head, file)[1:] == ["missing in the file: 1", f"  {name}, for {ours}"]


@pytest.mark.parametrize("name", SHAPES)
def test_one_name_too_many(head, file, name):
    file[f"{name}.copy"] = file[name]
    lines = refusal(head, file)
    assert lines[0].endswith("6 of 6 fit.")
    assert lines[1:] == ["unexpected in the file: 1", f"  {name}.copy {file[name].shape}"]


@pytest.mark.parametrize("name", SHAPES)
def test_one_wrong_shape(head, file, name):
    file[name] = np.concatenate([file[name]] * 2)
    lines = refusal(head, file)
    assert lines[1] == "of another shape: 1" and lines[2].startswith(f"  {name} {file[name].shape}, ")
    assert lines[0].endswith("5 of 6 fit.") and len(lines) == 3


def test_as_many_values_in_another_shape(head, file):
    file["head.first.weight"] = file["head.first.weight"].reshape(6, 4, 3, 3)
    file["head.last.weight"] = file["head.last.weight"].reshape(1, 4, 2, 1)
    assert refusal(head, file)[1] == "of another shape: 2"


def test_the_nearest_is_a_name_that_nothing_else_needs(head, file):
    # `head.up.bias` is nearer, but it is where it belongs
    file["module.head.first.bias"] = file.pop("head.first.bias")
    assert refusal(head, file)[2].endswith("(the file has module.head.first.bias)")
    del file["module.head.first.bias"]
    assert refusal(head, file)[2] == "  head.first.bias, for mask_head/conv1/bias"


def test_ignored_names_are_patterns_in_their_own_case(head, file):
    file["head.first.NUM_BATCHES_TRACKED"] = np.zeros([])
    assert refusal(head, file)[1:] == [
        "unexpected in the file: 1",
        "  head.first.NUM_BATCHES_TRACKED ()",
    ]


def test_an_empty_file(head):
    lines = refusal(head, {})
    assert lines[0].endswith("1 of 6 fit.")  # the constant
    assert lines[1] == "missing in the file: 5" and len(lines) == 7


@pytest.mark.parametrize("count, last", [(MOST_LISTED, "more 19 ()"), (MOST_LISTED + 1, "... and 1 more")])
def test_long_lists_are_cut(head, file, count, last):
    lines = refusal(head, file | {f"more {index}": np.zeros([]) for index in range(count)})
    assert lines[1] == f"unexpected in the file: {count}"
    assert lines[-1] == f"  {last}" and len(lines) == 2 + min(count, MOST_LISTED + 1)


def test_what_is_made_anew_stays_and_is_named(head, file):
    before = values(head)
    file["head.last.weight"] = np.zeros([7, 4, 1, 1], np.float32)  # of other classes
    report = load_table(head, file, WHOLE, "weights.pth", ("mask_head/logits", "mask_head/nothing"))
    after = values(head)
    for path in before:
        assert np.array_equal(before[path], after[path]) == path.startswith("mask_head/logits")
    assert str(report).splitlines() == [
        "loaded 4/6",
        "  initialised anew: mask_head/logits/kernel, RandomNormal(mean=0.0, stddev=0.001)",
        "  initialised anew: mask_head/logits/bias, zeros",
    ]


def test_what_is_made_anew_may_be_absent_and_the_rest_is_strict(head, file):
    del file["head.last.weight"]
    del file["head.up.bias"]
    lines = refusal(head, file, anew=("mask_head/logits",))
    assert lines[0].endswith("3 of 4 fit.")
    assert lines[1:] == ["missing in the file: 1", "  head.up.bias, for mask_head/upsample/bias"]
    assert refusal(head, file)[0].endswith("4 of 6 fit.")


HE = "N(0, 2 / fan_out)"
STATISTICS = {"gamma": "ones", "beta": "zeros", "moving_mean": "zeros", "moving_variance": "ones"}


@pytest.mark.parametrize(
    "norm, initializer, kernel, others",
    [
        ("none", None, HE, {"bias": "zeros"}),
        ("none", "he_uniform", "HeUniform(", {"bias": "zeros"}),
        ("frozen", None, HE, STATISTICS),
        ("batch", None, HE, STATISTICS),
        ("group", None, HE, {"gamma": "ones", "beta": "zeros"}),
    ],
)
def test_how_it_was_initialised_is_what_was_done(norm, initializer, kernel, others):
    layer = ConvNorm(32, 1, norm=norm, kernel_initializer=initializer, name="conv")
    layer(np.zeros([1, 2, 2, 64], np.float32))
    report = load_table(layer, {}, Table([], ()), "nothing", ("conv/",))
    how = {path.split("/")[-1]: text for path, text in report.initialised.items()}
    made = how.pop("kernel")
    assert made == kernel or made.startswith(kernel) and initializer
    assert how == others
    for variable in layer.variables:
        if variable.name in others:
            np.testing.assert_array_equal(variable, float(how[variable.name] == "ones"))
    if initializer is None:
        assert np.std(layer.kernel) == pytest.approx(np.sqrt(2 / 32), rel=0.1)


def test_a_random_generator_is_no_weight():
    layer = keras.layers.Dropout(0.5, seed=1)
    assert len(layer.variables) == 1
    assert str(load_table(layer, {}, Table([], ()), "nothing")) == "loaded 0/0"
    assert "seed" in refusal(layer, {}, Table([Row("seed_generator/seed_generator_state", "s", None)], ()))[2]
