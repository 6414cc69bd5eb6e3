"""Fine-tuning: what is frozen stays in `fit`, statistics included; what is not, learns."""

import pytest

from keras_mrcnn import MaskRCNN, config, load_coco, training_dataset
from keras_mrcnn.data.shapes import make_shapes
from keras_mrcnn.training import schedule

pytestmark = pytest.mark.usefixtures("compiled")
STAGES = ("stem", "c2", "c3", "c4", "c5")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("shapes"), images=4, val_images=0, size=(64, 64))


def moved_by_fit(shapes, **changes):
    """{path: whether it moved} of every weight, after two steps with `training` and `backbone` settings."""
    settings = config.load("shapes_r18_fpn")
    model = settings.model
    model.input.short_edge = model.input.long_edge = 64
    model.backbone.blocks = [1, 1, 1, 1]
    model.fpn.channels = model.rpn.channels = model.mask_head.channels = 16
    model.mask_head.convs, model.box_head.units = 1, 16
    settings.data.batch_size, settings.data.short_edges = 2, [64]
    settings.training.warmup_steps = 0
    for name, value in changes.items():
        setattr(model.backbone if hasattr(model.backbone, name) else settings.training, name, value)
    dataset = load_coco(shapes["train_annotations"], shapes["train_images"])
    network = MaskRCNN(model, dataset.categories, seed=0)
    network.compile(schedule.optimizer(settings.training, 2))
    before = [weight.numpy() for weight in network.weights]
    network.fit(training_dataset(dataset.records, settings.data, model.input), shuffle=False, verbose=0)
    pairs = zip(network.weights, before, strict=True)
    return {weight.path: bool((weight.numpy() != value).any()) for weight, value in pairs}


@pytest.mark.parametrize(
    "norm, frozen_stages, factors",
    [("batch", 3, {}), pytest.param("frozen", 5, {"fpn/lateral": 0}, marks=pytest.mark.proof)],
)
def test_frozen_stages_stay_and_the_rest_learns(shapes, norm, frozen_stages, factors):
    moved = moved_by_fit(shapes, norm=norm, frozen_stages=frozen_stages, learning_rate_factors=factors)
    constants = ("gamma", "beta", "moving_mean", "moving_variance") if norm == "frozen" else ()
    for path, has_moved in moved.items():
        room, stage, *_, name = path.split("/")
        if room == "backbone":
            trained = STAGES.index(stage.split("_")[0]) >= frozen_stages
            assert has_moved == (trained and name not in constants), path
        else:
            assert has_moved == (not path.startswith(tuple(factors))), path
    # A stem, two convolutions in each of four blocks and three shortcuts, each with a normalisation of four.
    assert sum(path.startswith("backbone") for path in moved) == 12 * 5


def test_a_factor_for_what_is_frozen_is_refused(shapes):
    with pytest.raises(ValueError, match="begins with 'backbone/c3'.*frozen stages are not trained"):
        moved_by_fit(shapes, frozen_stages=3, learning_rate_factors={"backbone/c3": 0.1})
