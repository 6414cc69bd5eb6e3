"""Networks of keras.applications and models of one's own as the backbone."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mrcnn.backbones.applications import Application
from keras_mrcnn.backbones.fpn import FPN
from keras_mrcnn.backbones.normalize import Normalize

OUTPUTS = {  # as the docstring names them
    "ConvNeXtTiny": [
        f"convnext_tiny_stage_{stage}_block_{block}_identity" for stage, block in enumerate((2, 2, 8, 2))
    ],
    "EfficientNetV2S": ["block2d_add", "block3d_add", "block5i_add", "block6o_add"],
    "MobileNetV3Large": [f"expanded_conv_{block}_add" for block in (2, 5, 11, 14)],
}
WIDTHS = {  # of the papers' tables of stages
    "ConvNeXtTiny": [96, 192, 384, 768],
    "EfficientNetV2S": [48, 64, 160, 256],
    "MobileNetV3Large": [24, 40, 112, 160],
}
SMALL = "MobileNetV3Small"
SMALL_OUTPUTS = [f"expanded_conv_{layer}" for layer in ("project_bn", "2_add", "7_add", "10_add")]


def own_network(strides=(4, 2, 2, 2), channels=3):
    """Four convolutions and a classifier."""
    images = features = keras.Input((None, None, channels))
    for stage, stride in enumerate(strides, 2):
        features = keras.layers.Conv2D(2 * stage, 3, stride, padding="same", name=f"c{stage}")(features)
    classes = keras.layers.Dense(5, name="top")(keras.layers.GlobalAveragePooling2D()(features))
    return keras.Model(images, classes, name="own")


OWN_OUTPUTS = ["c2", "c3", "c4", "c5"]


@pytest.mark.parametrize(
    "name",
    ["MobileNetV3Large", *(pytest.param(n, marks=pytest.mark.proof) for n in OUTPUTS if n[0] != "M")],
)
def test_network_under_the_fpn(name):
    """Built, called on an odd size, trained, and back from its config: the same variables and numbers."""
    backbone = Application(name, OUTPUTS[name], name="backbone")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 33, 20, 3)).astype(np.uint8)
    images = Normalize([0.0] * 3, [1.0] * 3)(pixels, np.int32([[33, 20]]))
    assert images.shape == (1, 64, 32, 3)
    maps = backbone(images)
    assert [tuple(features.shape) for features in maps] == [
        (1, 64 // stride, 32 // stride, width) for stride, width in zip((4, 8, 16, 32), WIDTHS[name])
    ]
    assert all(path.startswith("backbone/") for path in (weight.path for weight in backbone.weights))

    fpn = FPN(8)
    with tf.GradientTape() as tape:
        value = sum(tf.reduce_sum(tf.square(level)) for level in fpn(backbone(images, training=True)))
    gradients = tape.gradient(value, backbone.trainable_variables)
    reached = [variable for variable, one in zip(backbone.trainable_variables, gradients) if one is not None]
    assert len(reached) == len(backbone.trainable_variables) > 100

    again = Application.from_config(json.loads(json.dumps(backbone.get_config())))
    again(images)
    assert [weight.shape for weight in again.weights] == [weight.shape for weight in backbone.weights]
    again.set_weights(backbone.get_weights())
    for found, expected in zip(again(images), backbone(images)):
        np.testing.assert_array_equal(found, expected)


class TestNamed:
    def test_pixels_are_normalised_inside(self):
        """0 and 255 become -1 and 1 in this family, then comes the first convolution."""
        backbone = Application(SMALL, SMALL_OUTPUTS)
        inside = keras.Model(backbone.stages.inputs[0], backbone.stages.get_layer("conv").input)
        pixels = np.full([1, 32, 32, 3], 255.0, np.float32)
        np.testing.assert_allclose(inside(pixels)[0, 5, 5], [1, 1, 1], atol=1e-6)
        np.testing.assert_allclose(inside(0 * pixels)[0, 5, 5], [-1, -1, -1], atol=1e-6)

    def test_any_number_of_channels(self):
        backbone = Application(SMALL, SMALL_OUTPUTS, channels=5)
        assert backbone(np.zeros([1, 32, 64, 5], np.float32))[3].shape[:3] == (1, 1, 2)

    def test_frozen(self):
        images = np.random.default_rng(0).normal(100, 50, (1, 32, 32, 3)).astype(np.float32)
        for arguments in ({"frozen_stages": 5}, {"trainable": False}):
            backbone = Application(SMALL, SMALL_OUTPUTS, **arguments)
            assert not keras.Sequential([backbone]).trainable_variables
            before = backbone.get_weights()
            backbone(images, training=True)
            for was, now in zip(before, backbone.get_weights()):
                np.testing.assert_array_equal(was, now)

    def test_statistics_move_when_trained(self):
        backbone = Application(SMALL, SMALL_OUTPUTS)
        before = backbone.get_weights()
        backbone(np.random.default_rng(0).normal(100, 50, (1, 32, 32, 3)).astype(np.float32), training=True)
        assert any((was != now).any() for was, now in zip(before, backbone.get_weights()))

    def test_precision_is_that_of_the_layer(self):
        backbone = Application(SMALL, SMALL_OUTPUTS, dtype="mixed_bfloat16")
        assert {layer.compute_dtype for layer in backbone.stages.layers[1:]} == {"bfloat16"}
        assert keras.config.dtype_policy().name == "float32"
        assert backbone(np.zeros([1, 32, 32, 3], np.float32))[0].dtype == "bfloat16"

    @pytest.mark.parametrize("frozen_stages", [0, 5])
    def test_weights_of_a_file(self, tmp_path, frozen_stages):
        source = keras.applications.MobileNetV3Small(
            include_top=False, weights=None, input_shape=(None, None, 3)
        )
        path = str(tmp_path / "small.weights.h5")
        source.save_weights(path)
        backbone = Application(SMALL, SMALL_OUTPUTS, frozen_stages)
        images = np.random.default_rng(0).normal(100, 50, (1, 32, 32, 3)).astype(np.float32)
        outputs = [source.get_layer(name).output for name in SMALL_OUTPUTS]
        expected = keras.Model(source.inputs[0], outputs)(images)
        before = backbone(images)
        backbone.load(path)
        for was, now, wanted in zip(before, backbone(images), expected):
            deviation = np.std(wanted)  # the deeper, the smaller: 1e-10 at C5
            assert np.abs(was - wanted).max() > deviation
            np.testing.assert_allclose(now, wanted, rtol=1e-4, atol=1e-4 * deviation)
        assert path not in json.dumps(backbone.get_config())


class TestOwn:
    def test_what_lies_behind_the_outputs_is_left_out(self):
        network = own_network()
        backbone = Application(network, OWN_OUTPUTS)
        images = np.random.default_rng(0).normal(size=(2, 64, 32, 3)).astype(np.float32)
        c2, *_, c5 = backbone(images)
        np.testing.assert_array_equal(c2, network.get_layer("c2")(images))
        assert [features.shape[1:3] for features in (c2, c5)] == [(16, 8), (2, 1)]
        assert len(backbone.weights) == 2 * 4  # without the classifier's
        assert backbone.weights[0] is network.get_layer("c2").kernel

    def test_it_is_saved_with_its_weights(self, tmp_path):
        images = keras.Input((None, None, 3))
        model = keras.Model(images, Application(own_network(), OWN_OUTPUTS, name="backbone")(images))
        model.save(tmp_path / "model.keras")
        again = keras.models.load_model(
            tmp_path / "model.keras", custom_objects={"Application": Application}, compile=False
        )
        given = np.random.default_rng(0).normal(size=(1, 32, 64, 3)).astype(np.float32)
        for found, expected in zip(again(given), model(given)):
            np.testing.assert_array_equal(found, expected)

    def test_a_layer_that_was_frozen_stays_so(self):
        network = own_network()
        network.get_layer("c2").trainable = False
        backbone = Application(network, OWN_OUTPUTS)
        assert len(backbone.trainable_variables) == 2 * 3
        assert len(Application.from_config(backbone.get_config()).trainable_variables) == 2 * 3

    def test_it_has_its_own_weights(self):
        with pytest.raises(ValueError, match="named by a string"):
            Application(own_network(), OWN_OUTPUTS).load()


class TestRefused:
    def test_names(self):
        with pytest.raises(ValueError, match="Received: network='ConvNextTiny'; near it: ConvNeXtTiny"):
            Application("ConvNextTiny", OUTPUTS["ConvNeXtTiny"])
        with pytest.raises(ValueError, match="layers of own. Received: 'c_2'; near it: c2"):
            Application(own_network(), ["c_2", "c3", "c4", "c5"])
        with pytest.raises(ValueError, match=r"four layers.*\['c2'\]"):
            Application(own_network(), ["c2"])

    @pytest.mark.parametrize("strides", [(2, 2, 2, 2), (4, 2, 2, 1), (4, 4, 2, 2)])
    def test_other_strides_are_shown(self, strides):
        sizes = np.cumprod(strides)
        first, last = (f"\\(1, {-(-64 // size)}, {-(-96 // size)}, " for size in (sizes[0], sizes[3]))
        with pytest.raises(ValueError, match=f"4, 8, 16 and 32.*64 x 96 gives {first}.*{last}"):
            Application(own_network(strides), OWN_OUTPUTS)

    def test_maps_in_another_order(self):
        with pytest.raises(ValueError, match="in this order"):
            Application(own_network(), ["c3", "c2", "c4", "c5"])

    def test_something_that_is_no_map(self):
        with pytest.raises(ValueError, match="4, 8, 16 and 32"):
            Application(own_network(), ["c2", "c3", "c4", "top"])

    def test_other_channels(self):
        with pytest.raises(ValueError, match="channels=3, a network of .*None, None, None, 4"):
            Application(own_network(channels=4), OWN_OUTPUTS)

    def test_models_that_are_not_functional(self):
        class Subclassed(keras.Model):
            pass

        with pytest.raises(ValueError, match="functional keras.Model"):
            Application(Subclassed(), OWN_OUTPUTS)

    @pytest.mark.parametrize("frozen_stages", [2, True, -1])
    def test_stages_between(self, frozen_stages):
        with pytest.raises(ValueError, match="0 .all trained. or 5"):
            Application(own_network(), OWN_OUTPUTS, frozen_stages)
