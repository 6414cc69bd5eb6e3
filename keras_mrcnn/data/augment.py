"""What happens to an image in training, as the values of `config.Data` say."""

import tensorflow as tf

from keras_mrcnn.data import transforms
from keras_mrcnn.data.colours import ColourJitter
from keras_mrcnn.data.copy_paste import copy_paste


class Augmentation:
    """Colours, mirrors, a new size, and objects of another image; a function of (seed, epoch, image) alone.

    Args:
        data_config: `config.Data`.
        input_config: `config.Input`; caps the long edge, unless there is jitter of the scale.
        seed: integer, at least 0.
        count: number of images that there are.
    """

    def __init__(self, data_config, input_config, seed, count):
        self.data, self.input = data_config, input_config
        self.seed, self.count = seed, count
        changes = data_config.brightness, data_config.contrast, data_config.saturation, data_config.hue
        self.colours = ColourJitter(*changes) if any(changes) else None

    def __call__(self, read, index, epoch, copy):
        """An augmented example.

        Args:
            read: function of an index that gives the example of an image, see `transforms`.
            index, epoch: int32 scalar tensors.
            copy: int32 scalar tensor, number of this image among those of one index in the epoch.
        """
        run = tf.stack([tf.constant(self.seed, tf.int64), tf.cast(epoch, tf.int64)])
        key = tf.random.fold_in(run, index + self.count * copy)
        example = self._alone(read(index), key)
        if not self.data.copy_paste:
            return example
        draw = tf.random.split(tf.random.fold_in(key, 1), 4)
        other = tf.random.stateless_uniform([], draw[0], maxval=self.count, dtype=tf.int32)
        return tf.cond(
            tf.random.stateless_uniform([], draw[1]) < self.data.copy_paste,
            lambda: copy_paste(example, self._alone(read(other), draw[2]), draw[3]),
            lambda: dict(example),
        )

    def _alone(self, example, key):
        """One image without another."""
        data, draw = self.data, tf.random.split(key, 4)
        if self.colours:
            example = {**example, "image": self.colours(example["image"], tf.random.fold_in(key, 2))}
        mirrors = (
            (transforms.horizontal_flip, data.flip, draw[0]),
            (transforms.vertical_flip, data.vertical_flip, draw[1]),
            (transforms.transpose, data.transpose, draw[3]),
        )
        for mirror, probability, mirror_key in mirrors:
            if probability > 0:
                example = transforms.randomly(mirror, example, probability, mirror_key)
        rule = self.input.resize
        if data.jitter_scales:
            scales = list(data.jitter_scales)
            return transforms.large_scale_jitter(example, scales, data.crop_size, draw[2], rule)
        return transforms.random_resize(example, list(data.short_edges), self.input.long_edge, draw[2], rule)
