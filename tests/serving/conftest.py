"""A tiny model, pictures in every format, and one export, for all tests of this folder."""

import io

import keras
import numpy as np
import pytest

from keras_mrcnn import MaskRCNN, config
from keras_mrcnn.serving.export import export_saved_model


@pytest.fixture(scope="package")
def model():
    keras.utils.set_random_seed(1)
    settings = config.Model()
    settings.backbone = config.Backbone("resnet18", "batch", frozen_stages=0, blocks=[1, 1, 1, 1])
    settings.fpn.channels = settings.rpn.channels = settings.mask_head.channels = 16
    settings.mask_head.convs, settings.box_head.units = 1, 32
    settings.proposals.post_nms_test = 100
    settings.detections = config.Detections(score_threshold=0.0, max_detections=20)
    settings.input.short_edge, settings.input.long_edge = 96, 160
    model = MaskRCNN(settings, [{"id": 5, "name": "a"}, {"id": 9, "name": "b"}])
    # Scores far apart, so that rounding cannot change their order.
    for layer in (model.rpn_head.objectness, model.box_head.classes, model.rpn_head.deltas):
        layer.kernel.assign(50 * layer.kernel)
    return model


@pytest.fixture(scope="package")
def exported(model, tmp_path_factory):
    """Version 7 with run lengths that answers images that cannot be read with an `error`."""
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    return export_saved_model(model, folder, version=7, max_pixels=500_000, on_error="empty")


@pytest.fixture(scope="session")
def files():
    """Eight smooth pictures of eight sizes in all formats, encoded."""
    pillow = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(0)
    kinds = "JPEG PNG GIF BMP WEBP PNG JPEG PNG".split()
    sizes = (100, 80), (80, 100), (333, 200), (50, 50), (64, 200), (120, 121), (97, 33), (640, 480)
    encoded = []
    for kind, size in zip(kinds, sizes, strict=True):
        noise = pillow.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        encoded.append(encode(noise.resize(size, pillow.Resampling.BICUBIC), kind))
    return encoded


def encode(image, kind, mode="RGB", **options):
    """The bytes of a Pillow image or an array as a file."""
    from PIL import Image

    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.convert(mode).save(file, kind, **options)
    return file.getvalue()
