"""The objects of records as tensors, so that the input pipeline takes those of an image without Python.

Comes in: records. Goes out: for the index of a record its boxes, classes, mask crops and keypoints. Crowds
are left out.
"""

import numpy as np
import tensorflow as tf

from keras_mrcnn.data import masks
from keras_mrcnn.ops import library


class Objects:
    """The objects of a list of records that are no crowds.

    Polygons become crops in the compiled operation where there is one, which gives the same bits as
    `masks.polygon_crop`; without it, and for the images that have an RLE, Python does it, and other Python
    code waits meanwhile.

    Memory: 20 bytes an object, 8 a point of a polygon (COCO's training set: about 0.2 GB, estimated) and,
    with K keypoints, 16 K an object.

    Args:
        records: list of `Record`.

    Raises:
        ValueError: The records differ in their number of keypoints.
    """

    def __init__(self, records):
        self.records = records
        with tf.device("CPU"):
            self._lay_out(records)

    def _lay_out(self, records):
        self.keypoint_count = _most_keypoints(records)
        chosen = [np.flatnonzero(~record.crowd) for record in records]
        pairs = list(zip(records, chosen, strict=True))
        self.ends = _ends(len(one) for one in chosen)
        self.boxes = tf.constant(np.concatenate([record.boxes[one] for record, one in pairs]))
        self.classes = tf.constant(np.concatenate([record.classes[one] for record, one in pairs]))
        self.sizes = tf.constant([(record.height, record.width) for record in records], tf.int32)
        if self.keypoint_count:
            points = [_keypoints(record, one, self.keypoint_count) for record, one in pairs]
            self.keypoints = tf.constant(np.concatenate([keypoints for keypoints, _ in points]))
            self.mirrored = tf.constant(np.concatenate([mirrored for _, mirrored in points]))
        if library.choice().module:
            self._lay_out_polygons([[record.segmentations[k] for k in one] for record, one in pairs])

    def _lay_out_polygons(self, segmentations):
        """`segmentations`: of each image, of each object."""
        self.only_polygons = tf.constant(
            [not any(isinstance(s, dict) for s in image) for image in segmentations]
        )
        objects = [s if isinstance(s, list) else [] for image in segmentations for s in image]
        polygons = [polygon for polygons in objects for polygon in polygons]
        self.polygon_ends = _ends(len(one) for one in objects)
        self.point_ends = _ends(len(polygon) // 2 for polygon in polygons)
        flat = np.fromiter((value for polygon in polygons for value in polygon), np.float32)
        self.points = tf.constant(flat.reshape(-1, 2))

    def of(self, index):
        """The objects of one record, as entries of an example of `transforms`.

        Args:
            index: int32 scalar tensor.

        Returns:
            dict: boxes float32 `[G, 4]`, classes int32 `[G]`, masks uint8 `[G, M, M]` and, with keypoints,
            keypoints float32 `[G, K, 3]`, mirrored int32 `[G, K]`.
        """
        first, last = self.ends[index], self.ends[index + 1]
        names = ["boxes", "classes"] + ["keypoints", "mirrored"] * bool(self.keypoint_count)
        example = {name: getattr(self, name)[first:last] for name in names}
        module = library.choice().module
        if module:
            crops = tf.cond(
                self.only_polygons[index],
                lambda: self._compiled_crops(module, first, last),
                lambda: self._python_crops(index),
            )
        else:
            crops = self._python_crops(index)
        return example | {"masks": tf.ensure_shape(crops, [None, masks.CROP_SIZE, masks.CROP_SIZE])}

    def _compiled_crops(self, module, first, last):
        polygons = self.polygon_ends[first : last + 1]
        points = self.point_ends[polygons[0] : polygons[-1] + 1]
        return module.keras_mrcnn_polygon_crops(
            points=self.points[points[0] : points[-1]],
            polygon_ends=points[1:] - points[0],
            object_ends=polygons[1:] - polygons[0],
            boxes=self.boxes[first:last],
            size=masks.CROP_SIZE,
        )

    def _python_crops(self, index):
        return tf.numpy_function(lambda i: object_crops(self.records[i]), [index], tf.uint8, stateful=False)


def object_crops(record):
    """uint8 `[G, M, M]`: the mask crops of the objects that are no crowds."""
    chosen = np.flatnonzero(~record.crowd)
    crops = np.zeros((len(chosen), masks.CROP_SIZE, masks.CROP_SIZE), np.uint8)
    for crop, index in zip(crops, chosen, strict=True):
        crop[:] = masks.object_crop(record.segmentations[index], record.boxes[index])
    return crops


def _ends(counts):
    """int64 `[N + 1]`: where each of N runs of these lengths begins, and the last one ends."""
    return tf.constant(np.cumsum([0, *counts], dtype=np.int64))


def _most_keypoints(records):
    """K of records with keypoints, 0 when none has any."""
    numbers = {record.keypoints.shape[1] for record in records if record.keypoints is not None}
    if len(numbers) > 1:
        raise ValueError(
            "`records` must be of one data set, or of data sets that were loaded with the same categories. "
            f"Received: records with {', '.join(map(str, sorted(numbers)))} keypoints"
        )
    return max(numbers, default=0)


def _keypoints(record, chosen, count):
    """Keypoints and partners of the chosen objects; those of a record without are not labelled."""
    if record.keypoints is not None:
        return record.keypoints[chosen], record.mirrored[chosen]
    mirrored = np.tile(np.arange(count, dtype=np.int32), (len(chosen), 1))
    return np.zeros((len(chosen), count, 3), np.float32), mirrored
