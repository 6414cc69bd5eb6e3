"""Does it learn? The whole walk on synthetic shapes, from files to COCO scores on held-out images."""

import keras
import pytest

from keras_mrcnn import config
from keras_mrcnn.data.shapes import make_shapes
from keras_mrcnn.train import run


@pytest.mark.longest
def test_shapes_are_learnt(compiled, tmp_path, record_property):
    settings = config.load("shapes_r18_fpn")
    for name, path in make_shapes(tmp_path / "shapes", images=1600, val_images=100).items():
        setattr(settings.data, name, str(path))
    settings.training.output = str(tmp_path / "run")
    found = {}

    def keep(epoch, logs):
        found.update(logs)

    run(settings, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=keep)])
    for name in ("segm_AP50", "segm_AP", "bbox_AP50"):
        record_property(name, found[f"val_{name}"])
    assert found["val_segm_AP50"] >= 0.90
    assert found["val_bbox_AP50"] >= 0.90
