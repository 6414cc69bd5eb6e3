"""Networks of `keras.applications`, or any Keras model, as the backbone: normalised images to C2..C5."""

import difflib

import keras

STRIDES = (4, 8, 16, 32)
NETWORKS = sorted(name for name in dir(keras.applications) if name[0].isupper())
MOST_NAMED = 5  # near names in a message


@keras.saving.register_keras_serializable(package="keras_mrcnn")
class Application(keras.layers.Layer):
    """Four maps from inside a network of `keras.applications`, or of your own, for the FPN.

    Layers that give C2..C5 of three of them:

    | network | outputs |
    | --- | --- |
    | ConvNeXtTiny | convnext_tiny_stage_0_block_2_identity, convnext_tiny_stage_1_block_2_identity, |
    | | convnext_tiny_stage_2_block_8_identity, convnext_tiny_stage_3_block_2_identity |
    | EfficientNetV2S | block2d_add, block3d_add, block5i_add, block6o_add |
    | MobileNetV3Large | expanded_conv_2_add, expanded_conv_5_add, expanded_conv_11_add, |
    | | expanded_conv_14_add |

    These three take pixels 0-255 and normalise them inside: `Normalize`, which comes before, has mean 0 and
    std 1 then. So do all of ConvNeXt, EfficientNet, EfficientNetV2 and MobileNetV3. The others want what
    their `preprocess_input` does.

    Variables have Keras's own names, below this layer's: "backbone/block1a_project_conv/kernel". Those of a
    model of your own have the paths that they have.

    Args:
        network: string, the function's name in `keras.applications`; or a functional `keras.Model` with one
            input `[B, None, None, channels]`. Its layers are used, not copied; what lies behind the outputs
            is left out. A string's network is built with random weights, see `load`.
        outputs: four strings, the layers that give C2..C5, at strides 4, 8, 16 and 32.
        frozen_stages: int, 0: all trained, 5: nothing trained. There are no stages between that Keras names.
        channels: int, of the images.

    Input shape: `[B, H, W, channels]`, H and W multiples of 32 (`Normalize` pads to them).
    Output: list of four `[B, H/4, W/4, c2]` ... `[B, H/32, W/32, c5]`.

    Raises:
        ValueError: no such network or layer, the outputs are not at these strides, or another argument is not
            as above.

    Example:
        >>> names = ["block2d_add", "block3d_add", "block5i_add", "block6o_add"]
        >>> backbone = Application("EfficientNetV2S", names)
        >>> [features.shape for features in backbone(np.zeros([1, 64, 96, 3]))]
    """

    def __init__(self, network, outputs, frozen_stages=0, channels=3, **kwargs):
        super().__init__(**kwargs)
        if frozen_stages not in (0, 5):
            raise ValueError(
                "`frozen_stages` of such a network is 0 (all trained) or 5 (nothing trained): Keras does not "
                f"name its stages. Received: frozen_stages={frozen_stages!r}"
            )
        self.outputs = list(outputs)
        self.frozen_stages = frozen_stages
        self.channels = channels
        if isinstance(network, keras.Model):
            network = _between(network, outputs)
        self.network = network
        self.stages = network if isinstance(network, keras.Model) else self._built(None)
        _check_maps(self.stages, channels)
        if frozen_stages == 5 or not self.trainable:
            self.stages.trainable = False

    def _built(self, weights):
        """The named network up to the outputs, in this layer's precision."""
        if self.network not in NETWORKS:
            raise ValueError(
                "`network` is a function of keras.applications or a keras.Model. "
                f"Received: network={self.network!r}{_near(self.network, NETWORKS)}"
            )
        policy = keras.config.dtype_policy()
        keras.config.set_dtype_policy(self.dtype_policy)  # the functions have no argument for it
        try:
            with keras.name_scope(self.name):
                network = getattr(keras.applications, self.network)(
                    include_top=False, weights=weights, input_shape=(None, None, self.channels)
                )
        finally:
            keras.config.set_dtype_policy(policy)
        return _between(network, self.outputs)

    def load(self, weights="imagenet"):
        """Fill a network of `keras.applications` with weights; they are not part of the layer's config.

        Args:
            weights: "imagenet", which Keras downloads, or the path of a `.weights.h5` file of the network
                without its top (`include_top=False`).

        Raises:
            ValueError: the network came as a model, which has weights already.
        """
        if isinstance(self.network, keras.Model):
            raise ValueError("Expected a network named by a string: a model has its own weights")
        self.stages.set_weights(self._built(weights).get_weights())

    def call(self, images, training=None):
        return list(self.stages(images, training=training))

    def get_config(self):
        network = self.network
        if isinstance(network, keras.Model):
            network = keras.saving.serialize_keras_object(network)
        return {
            **super().get_config(),
            "network": network,
            "outputs": self.outputs,
            "frozen_stages": self.frozen_stages,
            "channels": self.channels,
        }

    @classmethod
    def from_config(cls, config):
        if isinstance(config["network"], dict):
            config = {**config, "network": keras.saving.deserialize_keras_object(config["network"])}
        return super().from_config(config)


def _between(network, outputs):
    """The model from the input of `network` to the layers named `outputs`."""
    if not getattr(network, "inputs", None):
        raise ValueError(
            f"`network` is a functional keras.Model, whose layers have outputs. Received: {network!r}"
        )
    if len(outputs) != len(STRIDES):
        raise ValueError(f"`outputs` names four layers, for C2..C5. Received: outputs={list(outputs)!r}")
    layers = {layer.name: layer for layer in network.layers}
    for name in outputs:
        if name not in layers:
            raise ValueError(
                f"`outputs` are names of layers of {network.name}. Received: {name!r}{_near(name, layers)}"
            )
    return keras.Model(network.inputs, [layers[name].output for name in outputs], name=network.name)


def _near(name, names):
    found = difflib.get_close_matches(str(name), names, MOST_NAMED, 0.4)
    return f"; near it: {', '.join(found)}" if found else ""


def _check_maps(stages, channels):
    """Raise a ValueError unless images with `channels` give maps at strides 4, 8, 16, 32."""
    expected = (None, None, None, channels)
    if [tuple(given.shape) for given in stages.inputs] != [expected]:
        raise ValueError(
            f"The network takes images of any size with `channels` channels, {expected}. "
            f"Received: channels={channels}, a network of {[tuple(given.shape) for given in stages.inputs]}"
        )
    height, width = 64, 96
    maps = stages.compute_output_spec(keras.KerasTensor((1, height, width, channels)))
    shapes = [tuple(features.shape) for features in maps]
    if [shape[1:3] for shape in shapes] != [(height // s, width // s) for s in STRIDES]:
        raise ValueError(
            "`outputs` are maps at strides 4, 8, 16 and 32, in this order. Received: an image of "
            f"{height} x {width} gives {', '.join(map(str, shapes))}"
        )
