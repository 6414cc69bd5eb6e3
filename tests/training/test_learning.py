"""Does it learn? The whole walk on synthetic shapes, from files to COCO scores on held-out images."""

import keras

from keras_mrcnn import config
from keras_mrcnn.cli import run
from keras_mrcnn.data.shapes import make_shapes


def test_shapes_are_learnt(tmp_path):
    settings = config.load("shapes_r18_fpn")
    for name, path in make_shapes(tmp_path / "shapes", images=800, val_images=40).items():
        setattr(settings.data, name, str(path))
    settings.training.output = str(tmp_path / "run")
    settings.training.evaluate_every = settings.training.epochs
    found = {}

    def keep(epoch, logs):
        found.update(logs)

    run(settings, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=keep)])
    print(f"held-out shapes: segm AP50 {found['val_segm_AP50']:.3f}, AP {found['val_segm_AP']:.3f}")
    # A run of this length reached 0.868 and 0.901: what breaks learning falls far below the limits.
    assert found["val_segm_AP50"] >= 0.80
    assert found["val_bbox_AP50"] >= 0.80
