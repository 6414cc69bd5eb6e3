"""Several devices, several workers and micro-batches take the steps that one device takes."""

import json
import os
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mrcnn import config, replicas
from keras_mrcnn.data.shapes import make_shapes
from keras_mrcnn.training.averages import averaged
from tests.training import replicas as runs

# Clipped: the gradients are about ten times as long.
SETTINGS = {"learning_rate": 0.05, "warmup_steps": 0, "weight_decay": 0.01, "clip_norm": 0.5}
IMAGES = runs.STEPS * runs.BATCH


def start(repository, output, devices=0, images=0, norm="group", tf_config="{}", settings=SETTINGS):
    """`replicas.py` in a process of its own; logical devices must be there before TensorFlow starts."""
    environment = {**os.environ, "PYTHONPATH": os.fspath(repository), "TF_CONFIG": tf_config}
    arguments = [str(devices), str(images), norm, json.dumps(settings), os.fspath(output)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.replicas", *arguments],
        cwd=repository,
        env=environment | {"CUDA_VISIBLE_DEVICES": "-1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes):
    try:
        outputs = [process.communicate(timeout=900)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), outputs
    return outputs


def free_ports(number):
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def alone():
    """Losses and weights of one device; after the five steps there is another with a single image."""
    strategy = tf.distribute.get_strategy()
    return runs.train(strategy, runs.make_model(strategy, config.Training(**SETTINGS)), IMAGES + 1)


def test_a_processor_without_bfloat16_is_known(tmp_path, monkeypatch):
    (tmp_path / "old").write_text("flags : fma avx2\n")
    (tmp_path / "new").write_text("flags : fma avx512_bf16 amx_bf16\n")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    found = [replicas.bfloat16_is_emulated(tmp_path / name) for name in ("old", "new", "missing")]
    assert found == [True, False, True]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"])
    assert not replicas.bfloat16_is_emulated(tmp_path / "old")


# What a process finds in which TensorFlow keeps its memory; the other pool counts nothing.
KEEPING = """
from keras_mrcnn import replicas
replicas.strategy()
import tensorflow as tf
ones = tf.ones([1000, 1000])
assert tf.config.experimental.get_memory_info("CPU:0")["current"] >= 4_000_000
"""


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="of trainings without a GPU")
def test_a_training_keeps_its_memory():
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPU_ALLOCATOR_USE_BFC"}
    subprocess.run([sys.executable, "-c", KEEPING], env=environment, check=True)


def test_gradients_are_summed_before_they_are_clipped_and_found_infinite(tmp_path, repository):
    finish(start(repository, tmp_path / "found.npz", devices=2))
    clipped, skipped, state, after = np.load(tmp_path / "found.npz")["unlike"]
    np.testing.assert_allclose(clipped, [-0.6, -0.8], rtol=1e-6)  # (3, 4) is 5 long
    np.testing.assert_array_equal(skipped, [0, 0])  # by both replicas, though only one overflowed
    np.testing.assert_array_equal(state, [4, 0])  # half the scale, and no step
    np.testing.assert_allclose(after, [-0.6, -0.8], rtol=1e-6)


@pytest.mark.proof
def test_two_devices_are_one(tmp_path, repository, alone):
    finish(start(repository, tmp_path / "found.npz", devices=2, images=IMAGES + 1))
    found = np.load(tmp_path / "found.npz")
    np.testing.assert_allclose(found["losses"], alone[0], atol=1e-5)  # also where one has no image
    np.testing.assert_allclose(found["weights"], alone[1], atol=1e-4)


@pytest.mark.proof
def test_two_devices_have_one_batch_normalisation(tmp_path, repository):
    strategy = tf.distribute.get_strategy()
    settings = {**SETTINGS, "ema": 0.5}
    model = runs.make_model(strategy, config.Training(**settings), "batch")
    losses, weights = runs.train(strategy, model, IMAGES)
    output = tmp_path / "found.npz"
    finish(start(repository, output, devices=2, images=IMAGES, norm="batch", settings=settings))
    found = np.load(output)
    np.testing.assert_allclose(found["losses"], losses, atol=1e-5)
    np.testing.assert_allclose(found["weights"], weights, atol=1e-4)
    averages = runs.flat(model)  # after `fit`
    assert np.abs(averages - weights).max() > 1e-3
    other = keras.models.load_model(output.with_suffix(".keras"))
    np.testing.assert_allclose(runs.flat(other), averages, atol=1e-4)


@pytest.mark.proof
def test_two_workers_are_one(tmp_path, repository, alone):
    workers = [f"127.0.0.1:{port}" for port in free_ports(2)]
    processes = []
    for index in range(2):
        task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        processes.append(start(repository, tmp_path / f"{index}.npz", 0, IMAGES, tf_config=json.dumps(task)))
    assert not any("crashed" in output for output in finish(*processes))
    assert {path.name for path in tmp_path.iterdir()} == {"0.npz", "0.keras"}
    found = np.load(tmp_path / "0.npz")
    saved = keras.models.load_model(tmp_path / "0.keras")
    np.testing.assert_array_equal(runs.flat(saved), found["weights"])
    answers = saved.predict_on_batch(runs.images(2)[0])
    assert all(found[name].shape == answer.shape for name, answer in answers.items())
    np.testing.assert_allclose(found["scores"], answers["scores"], atol=1e-5)
    np.testing.assert_allclose(found["losses"], alone[0][:, : runs.STEPS], atol=1e-5)
    np.testing.assert_allclose(found["weights"], alone[1], atol=1e-4)


def gradients(model, batch):
    with tf.GradientTape() as tape:
        loss = sum(model.compute_losses(*batch).values()) + sum(model.losses)
    return tape.gradient(loss, [variable.value for variable in model.trainable_variables])


def rows(batch, chosen):
    return tf.nest.map_structure(lambda value: value[chosen], batch)


@pytest.fixture(scope="module")
def model():
    return runs.make_model(tf.distribute.get_strategy(), config.Training(**SETTINGS, accumulate=2))


@pytest.mark.parametrize("number, shares", [(3, [1, 2]), (1, [0, 1])])
def test_a_step_in_parts_is_the_mean_of_the_parts_clipped(model, number, shares):
    inputs, targets = runs.images(number)
    targets["valid"][0, 1] = targets["has_mask"][0, 1] = (
        False  # the first part has fewer regions of an object
    )
    batch = (inputs, targets)
    before = [variable.numpy() for variable in model.trainable_variables]
    model.optimizer = keras.optimizers.SGD(0.1, global_clipnorm=0.5)
    expected = [0.0] * len(before)
    for share, chosen in zip(shares, (slice(0, shares[0]), slice(shares[0], number)), strict=True):
        if share:
            part = gradients(model, rows(batch, chosen))
            expected = [total + share / number * new for total, new in zip(expected, part, strict=True)]
    norm = tf.linalg.global_norm(expected)
    assert norm > 1
    model.train_step(batch)
    for variable, value, gradient in zip(model.trainable_variables, before, expected, strict=True):
        np.testing.assert_allclose(
            variable.numpy(), value - 0.1 * 0.5 / norm * gradient, atol=1e-6, err_msg=variable.path
        )
        variable.assign(value)


def test_float16_that_overflows_in_one_part_is_no_step():
    settings = config.Training(**SETTINGS, accumulate=2, precision="mixed_float16")
    model = runs.make_model(tf.distribute.get_strategy(), settings)
    before = runs.flat(model)
    batch = runs.images(2)
    optimizer = model.optimizer
    scale = float(optimizer.dynamic_scale)
    optimizer.dynamic_scale.assign(2.0**60)
    model.train_step(batch)
    assert float(optimizer.dynamic_scale) == 2.0**59 and int(optimizer.iterations) == 0
    optimizer.dynamic_scale.assign(scale)
    model.train_step(batch)
    assert int(optimizer.iterations) == 1 and np.isfinite(runs.flat(model)).all()
    assert (runs.flat(model) != before).mean() > 0.5


def test_parts_of_every_batch_are_not_empty_and_shares_are_of_one():
    for size in range(1, 6):
        found = replicas.parts({"images": tf.range(size)}, 3)
        assert sum(float(share) for _, share in found) == pytest.approx(1)
        assert all(len(part["images"]) == max(1, round(float(share) * size)) for part, share in found)
        seen = [int(image) for part, share in found for image in part["images"] if share > 0]
        assert seen == list(range(size))


@pytest.mark.parametrize(
    "kind, devices, match", [("evaluator", None, "chief or worker"), ("worker", 2, "GPU")]
)
def test_a_task_without_a_part_in_the_training_is_refused(monkeypatch, kind, devices, match):
    cluster = {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": kind, "index": 0}}))
    for name in ("list_physical_devices", "set_visible_devices"):  # a machine without a GPU
        monkeypatch.setattr(tf.config, name, lambda *given: [])
    with pytest.raises(ValueError, match=match):
        replicas.strategy(devices)


def test_one_device_is_tensorflows_default():
    assert replicas.strategy() is tf.distribute.get_strategy()
    assert replicas.is_chief(replicas.strategy())
    with pytest.raises(ValueError, match="--devices"):
        replicas.strategy(0)


def command(repository, config_file, *options, task=None):
    """`mrcnn train` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.fspath(repository), "CUDA_VISIBLE_DEVICES": "-1"}
    return subprocess.Popen(
        [sys.executable, "-m", "keras_mrcnn", "train", os.fspath(config_file), *options],
        env=environment | ({"TF_CONFIG": json.dumps(task)} if task else {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def tiny_run(folder, **training):
    """A config file for six images in batches of four, and three to score."""
    settings = config.load("shapes_r18_fpn")
    for name, path in make_shapes(folder / "shapes", images=6, val_images=3, size=(64, 64)).items():
        setattr(settings.data, name, str(path))
    settings.model = config.override(settings.model, [*runs.OVERRIDES[:2], "detections.score_threshold=0"])
    settings.data.batch_size, settings.data.short_edges = 4, [64]
    settings.training = config.Training(epochs=2, warmup_steps=0, output=str(folder / "run"), **training)
    config.save(settings, folder / "run.yaml")
    return folder / "run.yaml"


@pytest.mark.proof
def test_the_command_trains_on_two_devices(tmp_path, repository):
    path = tiny_run(tmp_path, ema=0.9, accumulate=2, precision="mixed_float16")
    finish(command(repository, path, "--devices", "2"))
    paths = (tmp_path / "run" / f"{name}.keras" for name in ("best", "last", "averaged"))
    best, last, average = (keras.models.load_model(path) for path in paths)
    assert int(last.optimizer.iterations) > 0 and np.isfinite(runs.flat(last)).all()
    assert (runs.flat(last) != runs.flat(average)).any()
    with averaged(last):
        np.testing.assert_array_equal(runs.flat(average), runs.flat(last))
        if json.loads((tmp_path / "run" / "best.json").read_text())["epoch"] == 2:
            np.testing.assert_array_equal(runs.flat(best), runs.flat(last))
    refused = command(repository, path, "--devices", "3", f"training.output={tmp_path / 'other'}")
    assert "multiple of the 3 devices" in refused.communicate()[0]
