"""A whole training run: what `mrcnn train` does."""

import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import pathlib
import sys

import keras

from keras_mrcnn import config as configs
from keras_mrcnn import replicas
from keras_mrcnn.data.cityscapes import load_cityscapes
from keras_mrcnn.data.coco import load_coco
from keras_mrcnn.data.delivery import noting
from keras_mrcnn.data.pictures import true_and_predicted
from keras_mrcnn.data.pipeline import (
    epoch_images,
    evaluation_dataset,
    images_per_epoch,
    steps_per_epoch,
    trainable,
    training_dataset,
)
from keras_mrcnn.data.shards import is_shards
from keras_mrcnn.evaluation import CityscapesEvaluator, CocoEvaluator, LvisEvaluator, VocEvaluator
from keras_mrcnn.model import MaskRCNN
from keras_mrcnn.training import schedule
from keras_mrcnn.training.averages import ValidateAverage
from keras_mrcnn.training.board import Board
from keras_mrcnn.training.callbacks import CocoScores, share
from keras_mrcnn.training.checkpoints import Checkpoints, Progress, replace
from keras_mrcnn.training.nonfinite import StopAtNonFinite
from keras_mrcnn.training.pace import Pace
from keras_mrcnn.weights.class_mapping import map_classes

_PICTURES = 4  # validation images that TensorBoard shows


def run(config, resume=False, callbacks=(), devices=None):
    """Train as a `config.Config` says; checkpoints, logs and scores go to `config.training.output`.

    Args:
        config: `config.Config`; without validation annotations nothing is scored.
        resume: bool, go on from the last checkpoint.
        callbacks: more Keras callbacks.
        devices: int, GPUs that train, see `replicas.strategy`. Of several workers only the chief writes; the
            others need the folder only to resume.

    Returns:
        The trained `MaskRCNN`; with `training.ema` it has the averaged weights, as averaged.keras does, and
        best.keras. last.keras has those that learn.
    """
    data, training = config.data, config.training
    strategy = replicas.strategy(devices)
    is_chief = replicas.is_chief(strategy)
    _check_divisible(config, strategy.num_replicas_in_sync)
    output = _output_folder(config, resume)
    if is_chief:
        replace(output / "config.yaml", lambda path: configs.save(config, path))
    keras.utils.set_random_seed(training.seed)
    if training.precision == "mixed_bfloat16" and replicas.bfloat16_is_emulated():
        print("This processor has no bfloat16: training.precision=float32 is several times faster on it.")

    learn = load_data(data, "train")
    print(f"Training: {learn.summary()}")
    steps = steps_per_epoch(learn.records, data)
    last = output / "last.keras" if resume else None
    with strategy.scope():
        model = _compiled_model(config, learn.categories, steps, last)
    progress = _progress(last, steps)

    watchers, validation, shown = [ValidateAverage()], None, ()
    if data.val_annotations:
        valid = load_data(data, "val", learn.categories)
        print(f"Validation: {valid.summary()}")
        validation = evaluation_dataset(valid.records, data, config.model.input)
        watchers.append(_scores(config, model, strategy, valid, validation))
        shown = valid.records[:_PICTURES]
    if is_chief:
        watchers.append(StopAtNonFinite(config, functools.partial(_batch_at, learn.records, config)))
    pace = Pace(progress)
    watchers.append(pace)
    if is_chief and training.tensorboard:
        watchers.append(Board(output / "tensorboard", _pictures(shown)))
    checkpoints = _checkpoints(config, model, progress, is_chief)

    sizes = _sizes(images_per_epoch(learn.records, data), data.batch_size, progress.batches)

    def make_dataset(**worker):
        batches = _endless(learn.records, config, *progress.next_batch(), **worker)
        return noting(batches, lambda _: pace.delivered(next(sizes)))

    # A save that one worker is asked for would wait for the others.
    several = replicas.several_workers(strategy)
    with contextlib.nullcontext() if several else checkpoints.stopping_on_sigterm():
        model.fit(
            replicas.distribute(strategy, make_dataset),
            steps_per_epoch=steps,
            validation_data=validation,
            validation_freq=training.evaluate_every,
            epochs=training.epochs,
            initial_epoch=progress.epochs,
            callbacks=[*watchers, *callbacks, checkpoints],
            shuffle=False,
            verbose="auto" if sys.stdout.isatty() else 2,
        )
    if training.ema and is_chief:
        model.save(output / "averaged.keras")
    replicas.meet(strategy)
    if is_chief:
        print(f"{model.epochs_done} epochs done. The last and the best model: {output}/{{last,best}}.keras")
    return model


def _progress(checkpoint, steps):
    """Where the run stands that is to go on; at its beginning without a checkpoint."""
    progress = Progress.read(checkpoint) if checkpoint else Progress()
    if progress.batches and progress.steps != steps:
        raise ValueError(
            f"{checkpoint} was written within an epoch of {progress.steps} batches, and the data give "
            f"{steps} now. Go on with the data of before."
        )
    progress.steps = steps
    if checkpoint:
        print(f"{checkpoint}: {progress.epochs} epochs and {progress.batches} of {steps} batches are done.")
    return progress


def _endless(records, config, epoch, batch, **worker):
    """The training batches from one on, without an end; `worker` as for `training_dataset`."""
    options = records, config.data, config.model.input, config.training.seed
    if not batch:
        return training_dataset(*options, first_epoch=epoch, **worker).repeat()
    rest = training_dataset(*options, first_epoch=epoch, first_batch=batch, **worker)
    return rest.concatenate(training_dataset(*options, first_epoch=epoch + 1, **worker).repeat())


def _sizes(images, batch_size, first):
    """Images in each batch, of all workers, from the `first` of an epoch on; without an end."""
    of_epoch = [min(batch_size, images - start) for start in range(0, images, batch_size)]
    return itertools.chain(of_epoch[first:], itertools.cycle(of_epoch))


def _batch_at(records, config, epoch, batch):
    """One batch of training again: inputs, targets and the ids of its images."""
    inputs, targets = next(_endless(records, config, epoch, batch).as_numpy_iterator())
    records, size = trainable(records), config.data.batch_size
    chosen, _ = epoch_images(records, config.data, config.training.seed, epoch)
    ids = [records[index].image_id for index in chosen[batch * size : (batch + 1) * size]]
    return inputs, targets, ids


def _pictures(records):
    """For `Board`: what makes pictures of some images; None without OpenCV or images."""
    if records and importlib.util.find_spec("cv2") is None:
        print("TensorBoard gets no pictures: OpenCV draws them, pip install 'keras_mrcnn[viz]'.")
        return None

    def draw(model):
        found = {record: model.detect(record.path).above(0.5) for record in records}
        return {f"true and predicted/{r.image_id}": true_and_predicted(r, them) for r, them in found.items()}

    return draw if records else None


def _scores(config, model, strategy, valid, dataset):
    """What scores the epochs: `CocoScores` of this worker's share of the validation images."""
    data, training = config.data, config.training
    given = evaluator_of(valid, model, data.format), training.evaluate_every, training.output
    if not replicas.several_workers(strategy):
        return CocoScores(dataset, valid.records, *given)
    mine = share(valid.records, data.batch_size, *replicas.place(strategy))
    dataset = evaluation_dataset(mine, data, config.model.input) if mine else ()
    return CocoScores(dataset, mine, *given, replicas.gatherer(strategy), replicas.is_chief(strategy))


def _checkpoints(config, model, progress, is_chief):
    training, kinds = config.training, model.iou_types
    losses = ("loss", *model.loss_names)
    scores = [f"val_{kind}_{name}" for kind in kinds for name in ("AP", "AP50", "AP75")]

    def scored(epoch):
        due = (epoch + 1) % training.evaluate_every == 0 or epoch + 1 == training.epochs
        return bool(config.data.val_annotations) and due

    return Checkpoints(
        training.output,
        progress,
        [*losses, *(f"val_{name}" for name in losses), *scores, *Pace.COLUMNS],
        monitor=f"val_{kinds[min(1, len(kinds) - 1)]}_AP",
        every=training.checkpoint_steps,
        scored=scored,
        chief=is_chief,
    )


def load_data(data, split, categories=None):
    """The `CocoDataset` of one split, "train" or "val", of a `config.Data`."""
    annotations, images = getattr(data, f"{split}_annotations"), getattr(data, f"{split}_images")
    options = {"categories": categories, "invalid": data.invalid, "check_images": data.check_images}
    if data.format == "cityscapes":
        return load_cityscapes(images, annotations, **options)
    return load_coco(annotations, images, **options)


def evaluator_of(dataset, model, metric="coco", annotations=None):
    """What scores a model's detections.

    Args:
        dataset: what `load_coco` or `load_cityscapes` returned.
        model: `MaskRCNN`.
        metric: "coco", "lvis", "voc" or "cityscapes".
        annotations: path of the json; "lvis" needs it.

    Returns:
        An evaluator of `evaluation`.
    """
    limit = model.config.detections.max_detections
    boxes_and_masks = [kind for kind in model.iou_types if kind != "keypoints"]
    if metric == "cityscapes":
        return CityscapesEvaluator(dataset)
    if metric == "voc":
        return VocEvaluator(dataset, iou_types=boxes_and_masks)
    if metric == "lvis":
        return LvisEvaluator(dataset, annotations, max_detections=limit, iou_types=boxes_and_masks)
    sigmas = model.config.keypoint_head.sigmas
    sigmas = sigmas[0] if len(sigmas) == 1 else sigmas or None
    return CocoEvaluator(dataset, max_detections=limit, iou_types=model.iou_types, sigmas=sigmas)


def _check_divisible(config, number):
    size, parts = config.data.batch_size, config.training.accumulate
    if size % (number * parts):
        raise ValueError(
            f"`data.batch_size` is a multiple of the {number} devices times training.accumulate={parts}. "
            f"Received: {size}"
        )


def _output_folder(config, resume):
    """The folder of a run, made; checked against what is in it already, before anything slow."""
    needed = ["train_annotations", "train_images"] + ["val_images"] * bool(config.data.val_annotations)
    for key in needed:
        if is_shards(getattr(config.data, key.replace("images", "annotations"))):
            continue
        if not getattr(config.data, key):
            raise ValueError(f"`data.{key}` says where the data is. It is empty: add data.{key}=PATH.")
    output = pathlib.Path(config.training.output)
    last = output / "last.keras"
    if resume and not last.is_file():
        raise FileNotFoundError(f"Nothing to resume: there is no {last}. Train without --resume first.")
    if last.is_file() and not resume:
        raise ValueError(
            f"{output} holds an earlier run. Go on with it (--resume), or choose another training.output=..."
        )
    if resume:
        _check_same_run(config, output / "config.yaml")
    output.mkdir(parents=True, exist_ok=True)
    return output


def _check_same_run(config, path):
    """A resumed run goes on with the settings that its checkpoint was made with."""
    was = configs.load(path)
    free = ("output", "evaluate_every", "checkpoint_steps", "tensorboard")
    free = {name: getattr(config.training, name) for name in free}
    was.training = dataclasses.replace(was.training, **free)
    before = was.model, was.training, was.data.batch_size
    if before != (config.model, config.training, config.data.batch_size):
        raise ValueError(
            f"A run is resumed with the model, training and data.batch_size of {path}. These differ: pass "
            "that file as CONFIG, or train anew with another training.output=..."
        )


def _compiled_model(config, categories, steps, checkpoint):
    """The model to train: from a checkpoint with its optimizer, or new."""
    training = config.training
    if checkpoint:
        model = keras.models.load_model(checkpoint)
    else:
        if config.model.backbone.norm == "frozen" and not (training.weights or training.backbone):
            raise ValueError(
                "A frozen normalisation needs weights that were trained with it. Give training.weights=FILE "
                "or training.backbone=NAME (`mrcnn presets` lists them), or train from scratch with "
                "model.backbone.norm=group model.backbone.frozen_stages=0."
            )
        model = MaskRCNN(config.model, categories, seed=training.seed, dtype=training.precision)
        if training.class_mapping:
            source = MaskRCNN.from_preset(training.weights)
            mapping = {name: of_source or None for name, of_source in training.class_mapping.items()}
            print(f"{training.weights}: {map_classes(source, model, mapping)}")
        elif training.weights:
            model.load_weights(training.weights)
        elif training.backbone:
            print(f"{training.backbone}: {model.load_backbone(training.backbone)}")
        model.compile(schedule.optimizer(training, steps, config.data.batch_size))
        model.build_optimizer()  # wrong learning_rate_factors are told at once
    if training.optimizer == "sgd":
        schedule.regularize(model, training.weight_decay)
    model.micro_batches = training.accumulate
    replicas.synchronize(model)
    return model
