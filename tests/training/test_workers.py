"""Several workers score the images once, as one does, and go on from a checkpoint as if never stopped."""

import collections
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mrcnn import config, replicas
from keras_mrcnn.data.coco import load_coco
from keras_mrcnn.data.shapes import make_shapes
from keras_mrcnn.evaluation import CityscapesEvaluator, CocoEvaluator, VocEvaluator
from keras_mrcnn.training.callbacks import CocoScores, score, share
from keras_mrcnn.training.checkpoints import Progress
from tests.training import replicas as runs
from tests.training import scoring
from tests.training.test_replicas import finish, free_ports
from tests.training.test_restart import rows

IMAGES, BATCH = 7, 2


@pytest.mark.parametrize("images, workers", [(7, 2), (7, 3), (3, 4), (1, 2), (8, 1)])
def test_each_image_is_of_one_worker_in_the_batch_of_before(images, workers):
    whole = [list(range(images))[start : start + BATCH] for start in range(0, images, BATCH)]
    found = []
    for worker in range(workers):
        mine = share(list(range(images)), BATCH, workers, worker)
        found.append([mine[start : start + BATCH] for start in range(0, len(mine), BATCH)])
    assert sorted(sum(found, [])) == whole
    counts = [len(batches) for batches in found]
    assert max(counts) - min(counts) <= 1


def test_what_workers_give_is_told_apart():
    given = [[], None, {"ä\n": [0.1, float("inf")], "x": "\x85\u2028"}, "", [1e-300] * 3]
    words = [replicas.to_words(value) for value in given]
    assert len({len(of_one) for of_one in words}) > 2
    assert replicas.from_words(np.concatenate([words[0][:0], *words, words[0][:0]])) == given
    assert replicas.from_words(words[0][:0]) == []
    assert replicas.gatherer(tf.distribute.get_strategy())(given) == [given]


def test_batches_are_split_without_the_next_one():
    images = tf.data.Dataset.range(7)
    batches = tf.data.Dataset.zip(images, images).batch(4).repeat(2)
    found = [(part.tolist(), same.tolist()) for part, same in replicas.split(batches, 2).as_numpy_iterator()]
    assert found == [(part, part) for part in ([0, 1], [2, 3], [4], [5, 6])] * 2
    assert [len(part) for part, _ in replicas.split(batches, 4)] == [1, 1, 1, 1, 0, 1, 1, 1] * 2
    assert replicas.split(batches, 1) is batches


@pytest.mark.parametrize("kind, index, expected", [("chief", 0, 0), ("worker", 1, 2)])
def test_the_chief_is_the_first_of_the_workers(monkeypatch, kind, index, expected):
    cluster = {"chief": ["a:1"], "worker": ["b:1", "c:1"], "evaluator": ["d:1"]}
    task = {"cluster": cluster, "task": {"type": kind, "index": index}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(task))
    monkeypatch.setattr(replicas, "several_workers", lambda strategy: True)
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    assert replicas.place(types.SimpleNamespace(cluster_resolver=resolver)) == (3, expected)


class Found:
    """In place of a model: of each image of a batch it has found the true objects, moved a bit."""

    categories = []
    config = types.SimpleNamespace(mask_head=types.SimpleNamespace(paste="centres"))
    optimizer = types.SimpleNamespace(use_ema=False)
    stop_training = False

    def predict_on_batch(self, inputs):
        boxes = np.zeros([len(inputs["numbers"]), 9, 4])
        scores, classes, masks = (np.zeros(boxes.shape[:2] + side) for side in ((), (), (28, 28)))
        counts = np.array([len(record.boxes) for record in inputs["records"]])
        counts[inputs["numbers"] == 1] = 0  # an image without detections
        for row, (number, record) in enumerate(zip(inputs["numbers"], inputs["records"], strict=True)):
            random, count = np.random.default_rng(number), len(record.boxes)
            boxes[row, :count] = record.boxes + random.normal(size=[count, 4])
            scores[row, :count] = random.integers(1, 4, count) / 3  # equal ones, in several images
            classes[row, :count], masks[row] = record.classes, random.uniform(0.3, 1, [9, 28, 28])
        found = {"boxes": boxes, "scores": scores, "classes": classes, "masks": masks}
        return found | {"num_detections": counts}


def batches(records, all_records):
    numbers = np.array([all_records.index(record) for record in records], int)
    for start in range(0, len(records), BATCH):
        of_batch = records[start : start + BATCH]
        sizes = [(record.height, record.width) for record in of_batch]
        numbers_of = numbers[start : start + BATCH]
        yield {"image_sizes": sizes, "records": of_batch, "numbers": numbers_of}, None


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    made = make_shapes(folder, images=1, val_images=IMAGES, size=(64, 64))
    return load_coco(made["val_annotations"], made["val_images"])


def in_threads(workers, work):
    """What `work` returns for each worker and its function to gather; all of them at once."""
    barrier, given, found = threading.Barrier(workers, timeout=60), [None] * workers, [None] * workers

    def of_worker(worker):
        def gather(value):
            given[worker] = replicas.to_words(value)
            barrier.wait()
            everything = replicas.from_words(np.concatenate(given))
            barrier.wait()
            return everything

        found[worker] = work(worker, gather)

    threads = [threading.Thread(target=of_worker, args=[worker]) for worker in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize(
    "workers, make", [(2, CocoEvaluator), (5, CocoEvaluator), (3, VocEvaluator), (3, CityscapesEvaluator)]
)
def test_the_scores_of_one(valid, tmp_path, workers, make):
    model = Found()
    model.categories = valid.categories
    expected = score(model, batches(valid.records, valid.records), valid.records, make(valid))
    assert 0.1 < expected["segm"]["AP50"] < 1

    def work(worker, gather):
        mine = share(valid.records, BATCH, workers, worker)
        (tmp_path / str(worker)).mkdir()
        options = {"folder": tmp_path / str(worker), "gather": gather, "chief": worker == 1}
        scores = CocoScores(batches(mine, valid.records), mine, make(valid), **options)
        scores.set_model(model)
        scores.set_params({"epochs": 1})
        logs = {}
        scores.on_epoch_end(0, logs)
        return logs

    logs = in_threads(workers, work)
    for found in logs:
        for name, value in found.items():
            _, kind, of = name.split("_")
            np.testing.assert_array_equal(value, expected[kind].get(of, np.nan), err_msg=name)
    assert [str(path.parent.name) for path in tmp_path.glob("*/scores_epoch_1.json")] == ["1"]


def start(repository, module, *arguments, task=None):
    """A module in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.fspath(repository), "CUDA_VISIBLE_DEVICES": "-1"}
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=repository,
        env=environment | ({"TF_CONFIG": json.dumps(task)} if task else {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def tasks(number):
    """TF_CONFIG of each of so many workers here."""
    workers = [f"127.0.0.1:{port}" for port in free_ports(number)]
    return [
        {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        for index in range(number)
    ]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Of a tiny run: seven images, a batch of four and one of three; five to score."""
    folder = tmp_path_factory.mktemp("runs")
    tiny = config.load("shapes_r18_fpn")
    made = make_shapes(folder / "shapes", images=7, val_images=5, size=(64, 64), max_objects=2)
    for name, path in made.items():
        setattr(tiny.data, name, str(path))
    tiny.model = config.override(
        tiny.model, [*runs.OVERRIDES[:8], *runs.OVERRIDES[-3:], scoring.THRESHOLD + "0"]
    )
    tiny.data.batch_size, tiny.data.short_edges = 4, [64]
    options = {"epochs": 2, "warmup_steps": 0, "learning_rate": 0.01, "ema": 0.5, "evaluate_every": 1}
    tiny.training = config.Training(**options, checkpoint_steps=1, output=str(folder / "whole"))
    config.save(tiny, folder / "config.yaml")
    return tiny


@pytest.mark.proof
def test_two_workers_score_as_one(settings, tmp_path, repository):
    data = dataclasses.replace(settings.data, batch_size=2)
    training = dataclasses.replace(settings.training, output=str(tmp_path))
    settings = dataclasses.replace(settings, data=data, training=training)
    every = scoring.scored(settings, tf.distribute.get_strategy())["rows"]
    best = collections.defaultdict(float)
    for row in every:
        best[row["image_id"]] = max(best[row["image_id"]], row["score"])
    least, next_one, *_ = sorted(best.values())
    limit = [f"{scoring.THRESHOLD}{(least + next_one) / 2}"]
    settings = dataclasses.replace(settings, model=config.override(settings.model, limit))
    config.save(settings, tmp_path / "config.yaml")
    alone = scoring.scored(settings, tf.distribute.get_strategy())
    assert len({row["image_id"] for row in alone["rows"]}) == 4 < len(alone["images"]) == 5
    scores = (tmp_path / "scores_epoch_1.json").read_text()
    (tmp_path / "scores_epoch_1.json").unlink()

    files = [tmp_path / f"{worker}.json" for worker in range(2)]
    arguments = repository, "tests.training.scoring", tmp_path / "config.yaml"
    finish(*(start(*arguments, file, task=task) for file, task in zip(files, tasks(2), strict=True)))
    chief, other = (json.loads(file.read_text()) for file in files)
    assert len(chief["images"]) == 3 and len(other["images"]) == 2 and not other["rows"]
    assert sorted(chief["images"] + other["images"]) == sorted(alone["images"])
    assert sorted(map(json.dumps, chief["rows"])) == sorted(map(json.dumps, alone["rows"]))
    assert chief["logs"] == other["logs"] == alone["logs"]
    assert (tmp_path / "scores_epoch_1.json").read_text() == scores


def trained(repository, settings, name, moments, resume=()):
    """`mrcnn train` of the run `name` until the chief ends: by two workers, or by one process of two devices.

    Args:
        moments: of each process, see `interrupted`; of all but the first "never".

    Returns:
        The outputs of the processes, if none is to be killed.
    """
    folder = os.path.dirname(settings.training.output)
    options = [f"{folder}/config.yaml", f"training.output={folder}/{name}", *resume]
    options += ["--devices", "2"] if len(moments) == 1 else []
    processes = []
    for moment, task in zip(moments, tasks(2) if len(moments) == 2 else [None], strict=True):
        arguments = "tests.training.interrupted", moment, "train", *options
        processes.append(start(repository, *arguments, task=task))
    if moments[0] == "never":
        return finish(*processes)
    try:
        output = processes[0].communicate(timeout=900)[0]
    finally:
        for process in processes:
            process.kill()
    assert processes[0].returncode == -signal.SIGKILL, output


@pytest.mark.proof
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_of_two_goes_on(settings, repository, processes):
    """Stopped after an epoch, and within the next one."""
    folder, never = os.path.dirname(settings.training.output), ["never"] * processes
    whole, cut = f"whole_{processes}", f"cut_{processes}"
    trained(repository, settings, whole, never)
    for moment, done, resume in (("steps:3", (1, 0), ()), ("steps:2", (1, 1), ["--resume"])):
        trained(repository, settings, cut, [f"{moment}:0:KILL", *never[1:]], resume)
        assert Progress.read(f"{folder}/{cut}/last.keras").next_batch() == done
    outputs = trained(repository, settings, cut, never, ["--resume"])
    assert not any("crashed" in output for output in outputs)
    logs = [
        [list(map(float, row.values())) for row in rows(f"{folder}/{run}/log.csv")] for run in (whole, cut)
    ]
    np.testing.assert_allclose(*logs, rtol=1e-6)  # a mean in two parts is rounded otherwise
    assert [row["images"] for row in rows(f"{folder}/{cut}/log.csv")] == ["7.0", "14.0"]
    for name in ("best", "last", "averaged"):
        one, other = (keras.models.load_model(f"{folder}/{run}/{name}.keras") for run in (whole, cut))
        np.testing.assert_array_equal(runs.flat(one), runs.flat(other), err_msg=name)
        if name == "last":
            for mine, theirs in zip(one.optimizer.variables, other.optimizer.variables, strict=True):
                np.testing.assert_array_equal(mine.numpy(), theirs.numpy(), err_msg=mine.path)
    scores = [pathlib.Path(folder, run, "scores_epoch_2.json").read_text() for run in (whole, cut)]
    assert scores[0] == scores[1]
