"""Colour jitter by Keras's own layers, with numbers drawn from a stateless seed."""

import keras
import tensorflow as tf

# Between 0 and 1, since RandomSaturation clips the saturation to the range of the values.
_RANGE = {"value_range": (0, 1), "dtype": "float32"}


class ColourJitter:
    """Changes the colours of an image: brightness, contrast, saturation, hue, in this order.

    Keras's layers do the arithmetic; what they do is given to them, since their own draws depend on how often
    they were called before. They hold variables, so this is made outside of a graph.

    Args:
        brightness: largest change, as a share of the whole range; 0: none.
        contrast, saturation: largest change of the factor, which is drawn from 1 - x to 1 + x; 0: none.
        hue: largest turn, as a share of half the circle; 0: none.
    """

    def __init__(self, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0):
        layers = keras.layers
        most_and_layer = {
            "brightness": (brightness, layers.RandomBrightness),
            "contrast": (contrast, layers.RandomContrast),
            "saturation": (saturation, layers.RandomSaturation),
            "hue": (hue, layers.RandomHue),
        }
        self.steps = {
            name: (most, layer(most, **_RANGE)) for name, (most, layer) in most_and_layer.items() if most > 0
        }

    def __call__(self, image, seed):
        """The image, uint8 `[H, W, 3]`, RGB, with colours that `seed`, integer tensor `[2]`, decides."""
        draw = tf.unstack(tf.random.stateless_uniform([4], seed, -1.0, 1.0))
        draw = dict(zip(("brightness", "contrast", "saturation", "hue"), draw, strict=True))
        values = tf.cast(image[None], tf.float32) / 255.0  # a batch: RandomSaturation fails without
        for name, (most, layer) in self.steps.items():
            change = most * draw[name]
            transformation = {
                "rgb_delta": tf.reshape(change, [1, 1, 1, 1]),
                "contrast_factor": tf.reshape(1 + change, [1, 1, 1, 1]),
                "factor": tf.reshape(change / 2 if name == "hue" else 1 + change, [1]),
            }
            values = layer.transform_images(values, transformation)
        return tf.ensure_shape(tf.saturate_cast(tf.round(values[0] * 255.0), tf.uint8), [None, None, 3])
