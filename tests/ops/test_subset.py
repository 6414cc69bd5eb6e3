"""Random choice of candidates: distinct, uniform, never more than there are."""

import itertools

import keras
import numpy as np
import tensorflow as tf

from keras_mrcnn.ops import RandomSubset, random_subset


def subset(mask, size, seed=0):
    indices, chosen = random_subset(np.asarray(mask), size, seed)
    return indices.numpy(), chosen.numpy()


def test_as_many_as_there_are_and_only_candidates():
    rng = np.random.default_rng(0)
    mask = rng.random((40, 30)) < rng.random((40, 1))
    mask[0], mask[1] = False, True
    indices, chosen = subset(mask, 12)
    assert indices.shape == chosen.shape == (40, 12) and indices.dtype == np.int32
    for row in range(40):
        assert chosen[row].sum() == min(12, mask[row].sum())
        assert chosen[row].tolist() == sorted(chosen[row], reverse=True)  # the chosen come first
        assert len(set(indices[row])) == 12
        assert mask[row][indices[row][chosen[row]]].all()
        assert not mask[row][indices[row][~chosen[row]]].any()


def test_a_row_shorter_than_the_size():
    indices, chosen = subset([[True, False, True]], 10)
    assert indices.shape == (1, 3)
    assert sorted(indices[0][chosen[0]]) == [0, 2]


def test_nothing_to_choose_from():
    indices, chosen = subset(np.zeros([2, 0], bool), 5)
    assert indices.shape == chosen.shape == (2, 0)
    assert not subset(np.zeros([2, 4], bool), 2)[1].any()
    assert subset(np.ones([2, 4], bool), 0)[0].shape == (2, 0)


def test_every_pair_of_candidates_is_as_likely():
    rows = 12000
    mask = np.tile([True, False, True, True, True, False, True], (rows, 1))
    indices, chosen = subset(mask, 2)
    assert chosen.all()
    pairs = [tuple(sorted(pair)) for pair in indices.tolist()]
    # 5 candidates, 10 pairs, each with probability 1/10: standard deviation sqrt(12000 * .1 * .9) = 33
    for pair in itertools.combinations([0, 2, 3, 4, 6], 2):
        assert abs(pairs.count(pair) - 1200) < 5 * 33
    # the order within the chosen is random too: RPN targets take a front part of them
    assert abs((indices[:, 0] < indices[:, 1]).mean() - 0.5) < 5 * 0.5 / rows**0.5


def test_a_front_part_of_the_chosen_is_uniform():
    indices, _ = subset(np.ones([9000, 6], bool), 5)
    counts = np.bincount(indices[:, 0], minlength=6)
    # each of 6 with probability 1/6: 1500 with a standard deviation of sqrt(9000 * 5 / 36) = 35
    assert np.abs(counts - 1500).max() < 5 * 35


def test_a_seed_repeats_and_a_generator_goes_on():
    mask = np.ones([3, 50], bool)
    np.testing.assert_array_equal(subset(mask, 10, 7)[0], subset(mask, 10, 7)[0])
    assert (subset(mask, 10, 7)[0] != subset(mask, 10, 8)[0]).any()
    generator = keras.random.SeedGenerator(7)
    first, second = subset(mask, 10, generator)[0], subset(mask, 10, generator)[0]
    assert (first != second).any()
    again = keras.random.SeedGenerator(7)
    np.testing.assert_array_equal(first, subset(mask, 10, again)[0])


def test_the_layer_goes_on_after_loading(tmp_path):
    mask = np.ones([2, 50], bool)

    def model():
        inputs = keras.Input((50,), dtype="bool")
        return keras.Model(inputs, RandomSubset(3, name="choose")(inputs, size=10))

    first, second = model(), model()
    before = first(mask)[0]
    np.testing.assert_array_equal(before, random_subset(mask, 10, keras.random.SeedGenerator(3))[0])
    first.save_weights(tmp_path / "state.weights.h5")
    following = first(mask)[0]
    second.load_weights(tmp_path / "state.weights.h5")
    np.testing.assert_array_equal(second(mask)[0], following)
    assert (before != following).numpy().any()


def test_unknown_sizes_in_a_graph():
    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.bool)])
    def traced(mask):
        return random_subset(mask, 4, 0)

    for count in (2, 9):
        indices, chosen = traced(np.ones([3, count], bool))
        assert indices.shape == (3, min(4, count)) and chosen.numpy().all()
