"""Does the keypoint head learn? Stick figures that hide each other, from files to scores."""

import keras
import pytest

from keras_mrcnn import config
from keras_mrcnn.data.stick_figures import make_stick_figures
from keras_mrcnn.train import run


@pytest.mark.proof
def test_stick_figures_are_learnt(compiled, tmp_path):
    settings = config.load("stick_figures_r18_fpn")
    paths = make_stick_figures(tmp_path / "figures", images=7000, val_images=80, size=(96, 96))
    for name, path in paths.items():
        setattr(settings.data, name, str(path))
    settings.training.output = str(tmp_path / "run")
    found = {}
    run(settings, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=lambda _, logs: found.update(logs))])
    print(f"held-out figures: OKS AP {found['val_keypoints_AP']:.3f}, mask AP50 {found['val_segm_AP50']:.3f}")
    assert found["val_keypoints_AP"] >= 0.80
