"""Learning rates by group: steps worked by hand, and Keras's own steps at another rate."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mrcnn import config
from keras_mrcnn.training import optimizers, schedule

PATHS = ["backbone/c4/kernel", "backbone/c5/kernel", "backbone/c5/bias", "head/kernel", "head/bias"]
FACTORS = {"backbone": 0.1, "backbone/c5": 0.5}


def variables(paths=PATHS, value=1.0):
    """One Keras variable of two elements for each path."""
    made = []
    for path in paths:
        *scopes, name = path.split("/")
        with contextlib.ExitStack() as stack:
            for scope in scopes:
                stack.enter_context(keras.name_scope(scope))
            made.append(keras.Variable(np.full(2, value, "float32"), name=name))
        assert made[-1].path == path
    return made


def step(optimizer, weights, gradient):
    optimizer.apply([tf.constant(np.broadcast_to(gradient, 2), tf.float32) for _ in weights], weights)


def values(weights):
    return [float(weight.numpy()[0]) for weight in weights]


def test_sgd_with_momentum_by_hand():
    weights = variables()
    sgd = optimizers.SGD(0.5, momentum=0.9, learning_rate_factors=FACTORS)
    step(sgd, weights, 2.0)
    # velocity -0.5 f 2; f is 0.1, 0.5, 0.5, 1, 1
    np.testing.assert_allclose(values(weights), [0.9, 0.5, 0.5, 0.0, 0.0], atol=1e-6)
    step(sgd, weights, 1.0)
    # velocities 0.9 (-0.1) - 0.05 = -0.14; 0.9 (-0.5) - 0.25 = -0.7; 0.9 (-1) - 0.5 = -1.4
    np.testing.assert_allclose(values(weights), [0.76, -0.2, -0.2, -1.4, -1.4], atol=1e-6)


def test_adamw_by_hand():
    weights = variables(value=2.0)
    adamw = optimizers.AdamW(0.1, weight_decay=0.5, learning_rate_factors=FACTORS)
    step(adamw, weights, 3.0)
    # A kernel falls by 0.5 (0.1 f) of itself, then everything by 0.1 f (the gradient over its own size):
    # 2 (1 - 0.005) - 0.01, 2 (1 - 0.025) - 0.05, 2 - 0.05, 2 (1 - 0.05) - 0.1, 2 - 0.1
    np.testing.assert_allclose(values(weights), [1.98, 1.90, 1.95, 1.80, 1.90], atol=1e-5)
    step(adamw, weights, 3.0)
    # 1.98 (0.995) - 0.01, 1.9 (0.975) - 0.05, 1.95 - 0.05, 1.8 (0.95) - 0.1, 1.9 - 0.1
    np.testing.assert_allclose(values(weights), [1.9601, 1.8025, 1.90, 1.61, 1.80], atol=1e-5)


OPTIONS = [
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("SGD", {"weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9, "global_clipnorm": 0.5}),
    ("AdamW", {"weight_decay": 0.2, "global_clipnorm": 0.5}),
    ("AdamW", {"weight_decay": 0.2, "gradient_accumulation_steps": 2}),
]


def run(optimizer, gradients, graph, scaled, value=1.0):
    """The variables after a step for each row of gradients."""
    weights = variables(value=value)
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0)

    def apply(row):
        optimizer.apply([optimizer.scale_loss(part) for part in tf.unstack(row)], weights)

    apply = tf.function(apply) if graph else apply
    for row in gradients:
        apply(tf.constant(row, tf.float32))
    return np.stack([weight.numpy() for weight in weights])


@pytest.mark.parametrize("graph, scaled", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("name, options", OPTIONS, ids=[str(options) for _, options in OPTIONS])
def test_steps_are_those_of_keras_at_the_rate_of_the_group(name, options, graph, scaled):
    gradients = np.random.default_rng(0).normal(size=(4, len(PATHS), 2))
    rates = [0.01, 0.05, 0.05, 0.1, 0.1]
    expected = []
    for index, rate in enumerate(rates):
        optimizer = getattr(keras.optimizers, name)(rate, **options)
        if name == "AdamW":
            optimizer.exclude_from_weight_decay(var_names=["bias"])
        expected.append(run(optimizer, gradients, False, False)[index])
    ours = getattr(optimizers, name)
    found = run(ours(0.1, learning_rate_factors=FACTORS, **options), gradients, graph, scaled)
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    assert len({*found[:, 0]}) == len(PATHS)


@pytest.mark.parametrize("graph, scaled", [(False, False), (True, False), (True, True)])
def test_the_average_that_takes_the_place_of_the_weights_by_hand(graph, scaled):
    options = {"use_ema": True, "ema_momentum": 0.75, "ema_overwrite_frequency": 3}
    # 8, then 7 and 6; 5, whose average is (2 * 6.1 + 9 * 5) / 11 = 5.2; and 1 less. At half the rate: 7.5, 7;
    # 6.5, whose average is (2 * (0.1 * 7.5 + 0.9 * 7) + 9 * 6.5) / 11 = 6.6; and 0.5 less.
    for steps, expected in ((1, [7, 7.5]), (2, [6, 7]), (3, [5.2, 6.6]), (4, [4.2, 6.1])):
        sgd = optimizers.SGD(1.0, learning_rate_factors={"backbone/c5": 0.5}, **options)
        found = run(sgd, np.ones([steps, len(PATHS), 2]), graph, scaled, value=8.0)
        np.testing.assert_allclose(found[[0, 1], 0], expected, rtol=1e-6)


@pytest.mark.parametrize("name, options", OPTIONS, ids=[str(options) for _, options in OPTIONS])
def test_without_factors_every_bit_is_that_of_keras(name, options):
    gradients = np.random.default_rng(1).normal(size=(4, len(PATHS), 2))
    theirs = getattr(keras.optimizers, name)(0.1, **options)
    if name == "AdamW":
        theirs.exclude_from_weight_decay(var_names=["bias"])
    expected = run(theirs, gradients, True, False)
    found = run(getattr(optimizers, name)(0.1, **options), gradients, True, False)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name, options", OPTIONS, ids=[str(options) for _, options in OPTIONS])
def test_a_factor_of_nothing_leaves_every_bit(name, options):
    gradients = np.random.default_rng(2).normal(size=(3, len(PATHS), 2))
    frozen = getattr(optimizers, name)(0.1, learning_rate_factors={"backbone": 0}, **options)
    found = run(frozen, gradients, True, False, value=1 / 3)
    np.testing.assert_array_equal(found[:3], np.full([3, 2], 1 / 3, np.float32))
    assert (found[3:] != np.float32(1 / 3)).all()


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_loaded_model_goes_on_as_the_saved_one(tmp_path, optimizer, precision):
    settings = config.Training(
        optimizer=optimizer,
        learning_rate=0.1,
        learning_rate_factors={"first": 0.25, "first/bias": 0},
        warmup_steps=5,
        clip_norm=1.0,
        ema=0.5,
        precision=precision,
    )
    inputs = keras.Input([2])
    hidden = keras.layers.Dense(3, activation="relu", name="first")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1, name="second")(hidden))
    model.compile(schedule.optimizer(settings, 4), loss="mse")
    features, targets = np.random.default_rng(3).normal(size=(2, 8, 2)).astype(np.float32)
    data = {"x": features, "y": targets[:, :1], "batch_size": 4, "shuffle": False, "verbose": 0}
    model.fit(**data)
    assert not model.get_layer("first").bias.numpy().any()
    assert model.get_layer("second").bias.numpy().any()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for either in (model, loaded):
        either.fit(**data)
    for ours, theirs in zip(
        [*model.variables, *model.optimizer.variables],
        [*loaded.variables, *loaded.optimizer.variables],
        strict=True,
    ):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), err_msg=ours.path)
    inner = getattr(loaded.optimizer, "inner_optimizer", loaded.optimizer)
    assert inner.get_config()["learning_rate_factors"] == settings.learning_rate_factors


def test_the_longest_key_counts():
    by_prefix = {"backbone": 0.1, "backbone/c5": 0.5, "backbone/c5/bias": 2, "head/k": 3}
    assert optimizers.factors(by_prefix, PATHS) == [0.1, 0.5, 2.0, 3.0, 1.0]
    assert optimizers.factors({"": 0.5}, ["a/b"]) == [0.5]
    assert optimizers.factors({}, ["a", "b"]) == [1.0, 1.0]
    assert optimizers.factors({}, []) == []


@pytest.mark.parametrize(
    "key, expected",
    [
        ("bakcbone", "begins with 'bakcbone'. Did you mean `backbone`.*backbone, head"),
        ("backbone/c6", "Did you mean `backbone/c[45]`"),
        ("backbone/c5/kernels", "Did you mean `backbone/c5/kernel`"),
        ("/backbone", "Did you mean `backbone`"),
        ("xyz", "no trained variable's path begins with 'xyz'. They begin with backbone, head;"),
    ],
)
def test_a_key_that_names_nothing_is_told_with_the_nearest_right_one(key, expected):
    optimizer = optimizers.SGD(0.1, learning_rate_factors={"head": 1, key: 0.5})
    with pytest.raises(ValueError, match=expected):
        optimizer.build(variables())


@pytest.mark.parametrize("factor", [-0.1, float("nan"), float("inf")])
def test_a_factor_that_is_none_is_told(factor):
    with pytest.raises(ValueError, match=f"from 0 on.*Received: head: {factor}"):
        optimizers.AdamW(0.1, learning_rate_factors={"head": factor})
