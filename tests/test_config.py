"""Configs: YAML in and out, overrides, errors that help."""

import pytest

from keras_mrcnn import config


def named():
    return sorted(path.stem for path in config.folder("configs").glob("*.yaml"))


@pytest.mark.parametrize("name", named())
def test_every_named_config_loads(name):
    assert isinstance(config.load(name), config.Config)


def test_the_defaults_are_the_papers():
    model = config.Model()
    assert (model.input.short_edge, model.input.long_edge) == (800, 1333)
    assert model.anchors.sizes == [32, 64, 128, 256, 512]
    assert (model.sampling.rois, model.sampling.foreground_fraction) == (512, 0.25)
    assert (model.detections.score_threshold, model.detections.nms_iou) == (0.05, 0.5)
    assert model.roi_align.sampling_ratio == 2


def test_factors_of_the_learning_rate_are_a_dictionary(tmp_path):
    overrides = ["training.learning_rate_factors.backbone=0.1", "training.learning_rate_factors={fpn/l: 2}"]
    given = config.load("nuclei_r18_fpn", overrides)
    assert given.training.learning_rate_factors == {"backbone": 0.1, "fpn/l": 2.0}
    config.save(given, tmp_path / "own.yaml")
    assert config.load(tmp_path / "own.yaml") == given
    with pytest.raises(ValueError, match="Wrong value for `training.learning_rate_factors.fpn`"):
        config.load("nuclei_r18_fpn", ["training.learning_rate_factors.fpn=slow"])


def test_overrides_and_round_trip(tmp_path):
    given = config.load("nuclei_r18_fpn", ["data.batch_size=7", "model.anchors.sizes=[1,2,3,4,5]"])
    assert given.data.batch_size == 7
    assert given.model.anchors.sizes == [1.0, 2.0, 3.0, 4.0, 5.0]
    config.save(given, tmp_path / "own.yaml")
    assert config.load(tmp_path / "own.yaml") == given
    assert config.model_from_dict(config.to_dict(given.model)) == given.model


@pytest.mark.parametrize(
    "override, expected",
    [
        ("data.batchsize=2", "Unknown key `data.batchsize`.*Did you mean `data.batch_size`"),
        ("model.backbone.nrom=batch", "Did you mean `model.backbone.norm`"),
        ("batch_size=2", "Did you mean `data.batch_size`"),
        ("data.batch_size=many", "Wrong value for `data.batch_size`"),
        ("model.backbone.norm=group_norm", "is one of frozen, batch, group.*Did you mean `group`"),
        ("model.anchors.sizes=[8,16]", "five entries"),
        ("model.anchors.aspect_ratios=[0.5,-1]", "all positive"),
        ("data.batch_size", "section.key=value"),
        ("model.backbone.frozen_stages=9", "frozen_stages"),
        ("model.rpn.convs=0", "at least 1"),
        ("data.batch_size=0", "`data.batch_size` is at least 1"),
        ("training.evaluate_every=0", "at least 1"),
        ("training.accumulate=0", "`training.accumulate` is at least 1"),
        ("training.accumulate=3", "`training.accumulate` divides data.batch_size=2"),
        ("training.base_batch=-1", "or 0"),
        ("training.ema=1.0", "`training.ema` is at least 0 and below 1"),
        ("data.short_edges=[]", "short_edges"),
        ("data.jitter_scales=[2.0,0.1]", "`data.jitter_scales` is two shares"),
        ("data.copy_paste=1.5", "`data.copy_paste` is from 0 to 1"),
        ("model.backbone.name=resnet51", "is one of resnet18.*Did you mean `resnet50`"),
        ("model.backbone.dilated=true", "needs model.backbone.features=c5"),
        ("model.roi_align.operation=pool", "`model.roi_align.reduction` is maximum"),
        ("model.input.mean=[1.0]", "an entry for each channel"),
    ],
)
def test_wrong_keys_and_values_name_the_key_and_the_nearest_right_one(override, expected):
    with pytest.raises(ValueError, match=expected):
        config.load("nuclei_r18_fpn", [override])


def test_unknown_config_lists_the_named_ones():
    with pytest.raises(FileNotFoundError, match="nuclei_r18_fpn.*Did you mean"):
        config.load("nuclei_r18_fnp")


def test_wrong_key_in_a_file_names_the_file(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("model:\n  fpn:\n    chanels: 3\n")
    with pytest.raises(
        ValueError, match="Unknown key `model.fpn.chanels` in .*own.yaml.*`model.fpn.channels`"
    ):
        config.load(path)
