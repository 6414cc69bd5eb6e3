"""Batches that are noted on their way are the same batches."""

import numpy as np
import tensorflow as tf

from keras_mrcnn.data.delivery import noting


def test_the_batches_are_as_before_and_noted_in_order():
    values = np.arange(10, dtype=np.int32).reshape(5, 2)
    data = tf.data.Dataset.from_tensor_slices(
        ({"images": values, "image_sizes": values}, {"boxes": values * 2})
    )
    data = data.batch(2)
    noted = []
    watched = noting(data, noted.append)
    assert watched.element_spec == data.element_spec
    for one, other in zip(data, watched, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, one, other)
    assert noted == [2, 2, 1]
    assert watched.cardinality() == 3
