"""Stage 5 on regions: the same as in a whole backbone, also for no region at all (Figure 4, left)."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mrcnn.backbones.resnet import ResNet
from keras_mrcnn.ops import roi_align
from keras_mrcnn.roi.stage5 import Stage5
from tests.backbones.test_parity import BODIES, loaded, normalized_image, specification

SMALL = {"depth": "resnet18", "blocks": [1, 1, 1, 2]}


@pytest.fixture
def regions():
    return np.random.default_rng(0).normal(size=(3, 7, 7, 256)).astype(np.float32)


class TestShapes:
    @pytest.mark.parametrize("side, strides, found", [(7, 1, 7), (14, 2, 7), (7, 2, 4)])
    def test_of_the_paper_and_of_detectron2(self, side, strides, found):
        layer = Stage5(strides=strides, blocks=[1, 1, 1, 1])
        assert layer(np.zeros([2, side, side, 1024], np.float32)).shape == (2, found, found, 2048)

    def test_unknown_numbers(self):
        assert Stage5(**SMALL)(keras.Input((7, 7, 256))).shape == (None, 7, 7, 512)

    def test_resnext(self):
        layer = Stage5("resnext101_64x4d", blocks=[1, 1, 1, 1])
        assert layer(keras.Input((7, 7, 1024))).shape == (None, 7, 7, 2048)
        assert layer.stage[0].convs[1].kernel.shape == (3, 3, 32, 2048)

    def test_an_unknown_depth_is_named(self):
        with pytest.raises(ValueError, match="resnet50.*'resnet42'"):
            Stage5("resnet42")


class TestNoRegion:
    @pytest.mark.parametrize("depth, channels", [("resnet18", 256), ("resnext101_32x8d", 1024)])
    def test_in_a_graph_with_gradients(self, depth, channels):
        layer = Stage5(depth, blocks=[1, 1, 1, 1], strides=2)

        @tf.function(input_signature=[tf.TensorSpec([None, 14, 14, channels])])
        def step(pooled):
            with tf.GradientTape() as tape:
                tape.watch(pooled)
                outputs = layer(pooled, training=True)
                value = tf.reduce_sum(outputs)
            return outputs, tape.gradient(value, pooled)

        for count in (0, 2):
            outputs, gradient = step(np.ones([count, 14, 14, channels], np.float32))
            assert outputs.shape == (count, 7, 7, 512 if depth == "resnet18" else 2048)
            assert gradient.shape == (count, 14, 14, channels)
        assert np.abs(gradient).max() > 0

    def test_the_last_region_is_as_the_others(self, regions):
        layer = Stage5(**SMALL)
        for region, expected in zip(regions, layer(regions)):
            np.testing.assert_allclose(layer(region[None])[0], expected, atol=1e-4)


class TestStage:
    def test_equals_stage_5_of_a_backbone(self):
        whole = ResNet("resnet50", blocks=[1, 1, 1, 2], stride_in_1x1=True, name="backbone")
        images = np.random.default_rng(0).normal(size=(2, 128, 96, 3)).astype(np.float32)
        _, _, c4, c5 = whole(images)
        layer = Stage5("resnet50", blocks=[1, 1, 1, 2], strides=2, stride_in_1x1=True, name="stage5")
        layer(c4)
        theirs = [weight for block in whole.c5 for weight in block.weights]
        assert [weight.path for weight in layer.weights] == [
            weight.path.replace("backbone", "stage5") for weight in theirs
        ]
        layer.set_weights([weight.numpy() for weight in theirs])
        np.testing.assert_allclose(layer(c4), c5, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("norm, moved", [("frozen", 0), ("batch", 2 * 5)])
    def test_frozen_and_trained(self, regions, norm, moved):
        for trainable in (True, False):
            layer = Stage5(**SMALL, norm=norm, trainable=trainable)
            layer(regions)
            before = layer.get_weights()
            layer(5 * regions, training=True)
            changed = sum((was != now).any() for was, now in zip(before, layer.get_weights()))
            assert changed == moved * trainable
            assert bool(layer.trainable_variables) == trainable
            # seen from a model around it, whose list goes by each variable
            model = keras.Sequential([layer])
            assert bool(model.trainable_variables) == trainable


def test_parity_with_detectron2(shared):
    """Case a of the C4 model from its stored proposals: 14 x 14 bins of C4, stage 5 at stride 2, the mean."""
    spec = specification(shared, "d2_maskrcnn_r50_c4")
    about = spec["config"]
    same = {"stride_in_1x1": about["stride_in_1x1"], "epsilon": about["norm_eps"]}
    backbone = ResNet(**BODIES[spec["name"]][0], **same, name="backbone")
    layer = Stage5("resnet50", strides=2, **same, name="stage5")
    c4 = loaded(backbone, 3, "c4", spec)(normalized_image(spec))[2]
    loaded(layer, 1024, "c4", spec)
    with np.load(shared / f"parity/models/{spec['name']}.npz") as data:
        step = spec["arrays"]["a/box/head"]["step"][0]
        proposals = data["a/rpn/proposals/0"][::step]
        expected = data["a/box/head/sample"]
    image = np.zeros(len(proposals), np.int32)
    pooled = roi_align(c4, proposals, image, about["box_pool"]["output"], 1 / 16, sampling_ratio=0)
    found = layer(pooled).numpy().mean((1, 2))
    assert found.shape == expected.shape == (16, 2048)
    assert np.abs(found - expected).max() / expected.std() < 1e-3
