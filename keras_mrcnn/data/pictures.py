"""Pictures of what is true of an image beside what was found in it."""

import dataclasses

import numpy as np
import tensorflow as tf

from keras_mrcnn.data.objects import object_crops


def true_and_predicted(record, predicted):
    """The true objects of an image, and on the right the predicted ones.

    Args:
        record: `Record` of the image.
        predicted: `Results` of the same image, which carry it.

    Returns:
        bytes of a PNG.

    Raises:
        ImportError: OpenCV is not installed.
    """
    chosen = np.flatnonzero(~record.crowd)
    true = dataclasses.replace(
        predicted,
        boxes=record.boxes[chosen],
        scores=np.ones(len(chosen), np.float32),
        classes=record.classes[chosen],
        mask_probabilities=object_crops(record).astype(np.float32),
        paste="centres",
        keypoints=None,
    )
    return tf.io.encode_png(np.concatenate([true.plot(), predicted.plot()], axis=1)).numpy()
