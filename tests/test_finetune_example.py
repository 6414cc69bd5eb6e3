"""`examples/finetune_own_dataset.py` end to end: on shapes, and on photographs where they are there."""

import runpy

import numpy as np
import pytest
from click.testing import CliRunner

from keras_mrcnn import load_model
from keras_mrcnn.data.shapes import make_shapes

SMALL = [
    "model.input.short_edge=64",
    "model.input.long_edge=96",
    "model.fpn.channels=16",
    "model.rpn.channels=16",
    "model.box_head.units=16",
    "model.mask_head.channels=16",
    "model.mask_head.convs=1",
    "data.short_edges=[64]",
    "training.epochs=1",
    "training.warmup_steps=0",
]


@pytest.fixture(scope="module")
def finetune(repository):
    """A function of the example's arguments; gives what it prints."""
    main = runpy.run_path(str(repository / "examples/finetune_own_dataset.py"))["main"]

    def run(*arguments, exit_code=0):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exit_code == exit_code, f"{result.output}\n{result.exception!r}"
        return result.output

    return run


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    made = make_shapes(tmp_path_factory.mktemp("shapes"), images=4, val_images=2, size=(64, 64))
    return made["train_annotations"], made["val_annotations"], made["train_images"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A ResNet-18 as far as its third stage, its normalisation folded in, as an .npz with torch's names."""
    random, arrays = np.random.default_rng(0), {}

    def convolution(name, *shape):
        arrays[name + ".weight"] = random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        arrays[name + ".bias"] = random.normal(0, 0.1, shape[0])

    convolution("conv1", 64, 3, 7, 7)
    for stage, (before, width) in enumerate([(64, 64), (64, 128), (128, 256)], start=1):
        for block, channels in enumerate([before, width]):
            convolution(f"layer{stage}.{block}.conv1", width, channels, 3, 3)
            convolution(f"layer{stage}.{block}.conv2", width, width, 3, 3)
        if stage > 1:
            convolution(f"layer{stage}.0.downsample.0", width, before, 1, 1)
    path = tmp_path_factory.mktemp("weights") / "resnet18.npz"
    np.savez(path, **{name: value.astype(np.float32) for name, value in arrays.items()})
    return path


@pytest.mark.proof
def test_from_weights(finetune, shapes, weights, tmp_path):
    printed = finetune(*shapes, *SMALL, "--weights", weights, "--output", tmp_path / "tuned")
    before, after = printed[printed.index("Before:") :].split("After:")
    assert all("segm" in part and "square" in part for part in (before, after))
    assert (tmp_path / "tuned.png").stat().st_size > 0
    model = load_model(tmp_path / "tuned.keras")
    assert [category.name for category in model.categories] == ["circle", "triangle", "square"]
    kernels = {weight.path: weight.numpy() for weight in model.backbone.weights}
    stored = {name: value.transpose(2, 3, 1, 0) for name, value in np.load(weights).items() if value.ndim > 1}
    # The stem and C2 are frozen; C3 has learnt, from what was loaded.
    np.testing.assert_array_equal(kernels["backbone/stem/kernel"], stored["conv1.weight"])
    np.testing.assert_array_equal(kernels["backbone/c2_block2/conv2/kernel"], stored["layer1.1.conv2.weight"])
    learnt, start = kernels["backbone/c3_block1/conv1/kernel"], stored["layer2.0.conv1.weight"]
    assert (learnt != start).any()
    np.testing.assert_allclose(learnt, start, atol=0.01)


@pytest.mark.parametrize("options", [[], ["--weights", "resnet18.pth", "--from-scratch"]])
def test_weights_or_none(finetune, shapes, options):
    assert "either --weights FILE or --from-scratch" in finetune(*shapes, *options, exit_code=2)


@pytest.mark.proof
def test_from_scratch(finetune, shapes, tmp_path):
    printed = finetune(*shapes, *SMALL, "--from-scratch", "--output", tmp_path / "scratch")
    assert "After:" in printed and "Backbone:" not in printed
    model = load_model(tmp_path / "scratch.keras")
    assert model.config.backbone.norm == "batch" and model.config.backbone.frozen_stages == 0
    assert (tmp_path / "scratch.png").is_file()
