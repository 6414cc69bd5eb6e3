"""Keypoint head (section 5): pooled features to one heat map for each keypoint, and those to points."""

import keras
import numpy as np
from keras import ops

from keras_mrcnn.conv_norm import ConvNorm
from keras_mrcnn.geometry import keypoints as keypoint_ops
from keras_mrcnn.roi.pooling import one_at_least, put_valid, take_valid


class KeypointHead(keras.layers.Layer):
    """A fully convolutional network on each region, shared by all classes.

    3x3 convolutions with ReLU, a 4x4 deconvolution of stride 2, bilinear enlargement by 2. A softmax over the
    positions of a map, which the loss takes, makes it the distribution of one keypoint.

    Args:
        num_keypoints: int, K, the most that a class has.
        convs: int, number of 3x3 convolutions.
        channels: int, of each.
        norm: normalisation of the 3x3 convolutions, see `ConvNorm`.

    Input shape: `[N, S, S, channels]`. Output: logits float32 `[N, 4S, 4S, K]`.

    Example:
        >>> KeypointHead(17)(np.zeros([5, 14, 14, 256], "float32")).shape
        TensorShape([5, 56, 56, 17])
    """

    def __init__(self, num_keypoints, convs=8, channels=512, norm="none", **kwargs):
        super().__init__(**kwargs)
        self.num_keypoints = num_keypoints
        self.num_convs = convs
        self.channels = channels
        self.norm = norm
        self.convs = [
            ConvNorm(channels, 3, norm=norm, relu=True, dtype=self.dtype_policy, name=f"conv{index + 1}")
            for index in range(convs)
        ]
        self.upsample = keras.layers.Conv2DTranspose(
            num_keypoints,
            4,
            2,
            padding="same",
            kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
            dtype=self.dtype_policy,
            name="upsample",
        )

    def call(self, pooled, training=None):
        hidden = one_at_least(pooled)
        for conv in self.convs:
            hidden = conv(hidden, training=training)
        logits = ops.cast(self.upsample(hidden), "float32")[: ops.shape(pooled)[0]]
        size = 4 * pooled.shape[1], 4 * pooled.shape[2]
        return ops.image.resize(logits, size, interpolation="bilinear", data_format="channels_last")

    def get_config(self):
        return {
            **super().get_config(),
            "num_keypoints": self.num_keypoints,
            "convs": self.num_convs,
            "channels": self.channels,
            "norm": self.norm,
        }


def with_keypoints(classes, valid, counts):
    """bool `[B, D]`: the detections that the keypoint head shall look at.

    Args:
        classes: int32 `[B, D]`.
        valid: bool `[B, D]`.
        counts: list of C int, keypoints of each class; 0 for a class without.
    """
    # Not a tensor: a functional model would hold on to it, and ONNX has no place for what is no weight.
    return valid & (ops.take(np.array(counts, "int32"), ops.where(valid, classes, 0)) > 0)


class RegionKeypoints(keras.layers.Layer):
    """The points of each detection, back in its place.

    Args:
        counts: list of C int, keypoints of each class.

    Call arguments:
        logits: float32 `[N, S, S, K]`, of the valid detections of all images.
        boxes: float32 `[B, D, 4]`, pixels of the network frame.
        classes: int32 `[B, D]`.
        valid: bool `[B, D]`, see `with_keypoints`.

    Returns:
        float32 `[B, D, K, 3]`: x, y, pixels of the network frame, and score, see `geometry.keypoints.decode`.
        Zeros where not valid, and for the maps that the detection's class has no keypoint for.
    """

    def __init__(self, counts, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.supports_jit = False
        self.counts = list(counts)

    def call(self, logits, boxes, classes, valid):
        found = keypoint_ops.decode(logits, take_valid(boxes, valid))
        points = ops.stack([found[..., 0], found[..., 1], found[..., 3]], axis=-1)
        counts = ops.take(ops.convert_to_tensor(self.counts, "int32"), take_valid(classes, valid))
        named = ops.arange(logits.shape[-1], dtype="int32") < counts[:, None]  # [N, K]
        return put_valid(ops.where(named[..., None], points, 0.0), valid)

    def get_config(self):
        return {**super().get_config(), "counts": list(self.counts)}
