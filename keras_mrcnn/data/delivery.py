"""When batches reach the training step: how long did it wait?"""

import tensorflow as tf


def noting(dataset, note):
    """The same batches, each noted on its way out.

    Args:
        dataset: batches `(inputs, targets)`.
        note: function of the number of images; called in order, and, where batches are fetched ahead, ahead.
    """

    def tell(sizes):
        note(len(sizes))
        return sizes

    def noted(inputs, targets):
        sizes = tf.numpy_function(tell, [inputs["image_sizes"]], tf.int32)
        return {**inputs, "image_sizes": tf.ensure_shape(sizes, inputs["image_sizes"].shape)}, targets

    return dataset.map(noted)
