"""Does it learn? The whole walk on synthetic shapes, from files to COCO scores on held-out images."""

import keras
import pytest

from keras_mrcnn import config
from keras_mrcnn.cli import run
from keras_mrcnn.data.shapes import make_shapes


def learn_shapes(folder):
    """The logs of the last epoch of `shapes_r18_fpn`, scores on held-out images among them."""
    settings = config.load("shapes_r18_fpn")
    for name, path in make_shapes(folder / "shapes", images=800, val_images=40).items():
        setattr(settings.data, name, str(path))
    settings.training.output = str(folder / "run")
    settings.training.evaluate_every = settings.training.epochs
    found = {}

    def keep(epoch, logs):
        found.update(logs)

    run(settings, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=keep)])
    print(f"held-out shapes: segm AP50 {found['val_segm_AP50']:.3f}, AP {found['val_segm_AP']:.3f}")
    return found


def test_nothing_that_learning_needs_is_broken(tmp_path):
    found = learn_shapes(tmp_path)
    # A sound run reached 0.868 and 0.901; what breaks learning falls far below the limits.
    assert found["val_segm_AP50"] >= 0.80
    assert found["val_bbox_AP50"] >= 0.80


@pytest.mark.proof
def test_shapes_are_learnt(tmp_path):
    """The aim. Not reached yet: 0.868 for masks."""
    found = learn_shapes(tmp_path)
    assert found["val_segm_AP50"] >= 0.90
    assert found["val_bbox_AP50"] >= 0.90
