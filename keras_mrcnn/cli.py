"""The command line: `mrcnn check | train | eval | predict | export | presets | convert | shapes`, and
`build-ops | doctor` about the compiled operations.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

import dataclasses
import json
import pathlib
import sys

import click

_FILE = click.Path(exists=True, dir_okay=False)
_FOLDER = click.Path(exists=True, file_okay=False)
_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")


class _Commands(click.Group):
    """What is wrong with the input is told without a traceback."""

    def invoke(self, context):
        try:
            return super().invoke(context)
        except (ValueError, OSError, ImportError, FloatingPointError) as error:
            if context.params["traceback"]:
                raise
            raise click.ClickException(f"{error}\n(mrcnn --traceback ... shows where.)") from error


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.option("--traceback", is_flag=True, help="Show where in the code an error came from.")
@click.version_option(package_name="keras_mrcnn")
def main(traceback):
    """Mask R-CNN for Keras 3: train on COCO-style labels, score, predict, export."""


@main.command()
@click.argument("annotations", type=_FILE)
@click.argument("images", type=_FOLDER)
def check(annotations, images):
    """Read a COCO json and its image folder, and say what is in them and what is wrong with them."""
    from keras_mrcnn.data.coco import load_coco

    dataset = load_coco(annotations, images)
    click.echo(dataset.summary(examples=20))


@main.command()
@click.argument("config")
@click.argument("overrides", nargs=-1)
@click.option("--resume", is_flag=True, help="Go on from the last finished epoch in training.output.")
def train(config, overrides, resume):
    """Train as CONFIG says (a YAML file, or a name in configs/), changed by OVERRIDES (data.batch_size=4)."""
    from keras_mrcnn import config as configs

    run(configs.load(config, overrides), resume)


def run(config, resume=False, callbacks=()):
    """Train as a `config.Config` says; checkpoints, logs and scores go to `config.training.output`.

    Args:
        config: `config.Config`; without validation annotations nothing is scored.
        resume: bool, go on from the last finished epoch.
        callbacks: more Keras callbacks.

    Returns:
        The trained `MaskRCNN`.
    """
    import keras

    from keras_mrcnn import config as configs
    from keras_mrcnn.data.coco import load_coco
    from keras_mrcnn.data.pipeline import evaluation_dataset, trainable, training_dataset
    from keras_mrcnn.evaluation import CocoEvaluator
    from keras_mrcnn.model import LOSSES
    from keras_mrcnn.training.callbacks import Checkpoints, CocoScores, Log

    data, training = config.data, config.training
    output = _output_folder(config, resume)
    configs.save(config, output / "config.yaml")
    keras.utils.set_random_seed(training.seed)

    options = {"invalid": data.invalid, "check_images": data.check_images}
    learn = load_coco(data.train_annotations, data.train_images, **options)
    click.echo(f"Training: {learn.summary()}")
    steps = -(-len(trainable(learn.records)) // data.batch_size)
    model = _compiled_model(config, learn.categories, steps, output / "last.keras" if resume else None)
    first_epoch = model.epochs_done

    watchers, validation = [], None
    if data.val_annotations:
        valid = load_coco(data.val_annotations, data.val_images, categories=learn.categories, **options)
        click.echo(f"Validation: {valid.summary()}")
        validation = evaluation_dataset(valid.records, data, config.model.input)
        evaluator = CocoEvaluator(valid, max_detections=config.model.detections.max_detections)
        watchers.append(CocoScores(validation, valid.records, evaluator, training.evaluate_every, output))
    watchers += [
        Checkpoints(output),
        Log(output / "log.csv", ("loss", *LOSSES), append=resume),
        keras.callbacks.TerminateOnNaN(),
        *callbacks,
    ]
    model.fit(
        training_dataset(learn.records, data, config.model.input, training.seed, first_epoch),
        validation_data=validation,
        validation_freq=training.evaluate_every,
        epochs=training.epochs,
        initial_epoch=first_epoch,
        callbacks=watchers,
        shuffle=False,
        verbose="auto" if sys.stdout.isatty() else 2,
    )
    click.echo(f"{model.epochs_done} epochs done. The last and the best model: {output}/{{last,best}}.keras")
    return model


def _output_folder(config, resume):
    """The folder of a run, made; checked against what is in it already, before anything slow."""
    needed = ["train_annotations", "train_images"] + ["val_images"] * bool(config.data.val_annotations)
    for key in needed:
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
    else:
        (output / "best.json").unlink(missing_ok=True)
    output.mkdir(parents=True, exist_ok=True)
    return output


def _check_same_run(config, path):
    """A resumed run goes on with the settings that its checkpoint was made with."""
    from keras_mrcnn import config as configs

    was = configs.load(path)
    free = {"output": config.training.output, "evaluate_every": config.training.evaluate_every}
    was.training = dataclasses.replace(was.training, **free)
    before = was.model, was.training, was.data.batch_size
    if before != (config.model, config.training, config.data.batch_size):
        raise ValueError(
            f"A run is resumed with the model, training and data.batch_size of {path}. These differ: pass "
            "that file as CONFIG, or train anew with another training.output=..."
        )


def _compiled_model(config, categories, steps, checkpoint):
    """The model to train: from a checkpoint with its optimizer, or new."""
    import keras

    from keras_mrcnn.model import MaskRCNN
    from keras_mrcnn.training import schedule

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
        if training.weights:
            model.load_weights(training.weights)
        elif training.backbone:
            click.echo(f"{training.backbone}: {model.load_backbone(training.backbone)}")
        model.compile(schedule.optimizer(training, steps))
        model.optimizer.build(model.trainable_variables)  # wrong learning_rate_factors are told at once
    if training.optimizer == "sgd":
        schedule.regularize(model, training.weight_decay)
    return model


@main.command(name="eval")
@click.argument("model", type=_FILE)
@click.argument("annotations", type=_FILE)
@click.argument("images", type=_FOLDER)
@click.option("--batch-size", default=1, show_default=True)
@click.option("--output", type=click.Path(), help="Also write the scores there, as json.")
def evaluate(model, annotations, images, batch_size, output):
    """COCO box and mask scores of MODEL (a .keras file) on labelled images."""
    from keras_mrcnn import config as configs
    from keras_mrcnn.data.coco import load_coco
    from keras_mrcnn.data.pipeline import evaluation_dataset
    from keras_mrcnn.evaluation import CocoEvaluator, format_table
    from keras_mrcnn.training import callbacks

    model = load_model(model)
    dataset = load_coco(annotations, images, categories=model.categories)
    click.echo(dataset.summary())
    evaluator = CocoEvaluator(dataset, max_detections=model.config.detections.max_detections)
    batches = evaluation_dataset(dataset.records, configs.Data(batch_size=batch_size), model.config.input)
    with click.progressbar(length=len(dataset.records), label="Scoring") as bar:
        scores = callbacks.score(model, batches, dataset.records, evaluator, progress=bar.update)
    click.echo(format_table(scores))
    if output:
        callbacks.write_scores(scores, output)


@main.command()
@click.argument("model", type=_FILE)
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True))
@click.option("--output", default="predictions", show_default=True, type=click.Path(file_okay=False))
@click.option("--threshold", default=0.5, show_default=True, help="Least score of what is drawn.")
def predict(model, images, output, threshold):
    """Draw what MODEL finds in IMAGES (files or folders), and write it as a COCO result json."""
    files = _image_files(images)
    if not files:
        raise ValueError(f"No picture ({' '.join(_PICTURES)}) in {', '.join(images)}.")
    model = load_model(model)
    folder = pathlib.Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    found, drawn, failed = [], set(), 0
    for path in files:
        try:
            results = model.detect(path)
        except ValueError as error:
            click.echo(f"{path}: left out. {error}", err=True)
            failed += 1
            continue
        found += results.to_coco()
        shown = results.above(threshold)
        picture = folder / f"{path.stem}_found.png"
        while picture in drawn:  # pictures of one name from several folders
            picture = picture.with_stem(picture.stem + "_")
        drawn.add(picture)
        shown.save(picture)
        click.echo(f"{path}: {shown} -> {picture}")
    (folder / "results.json").write_text(json.dumps(found))
    click.echo(f"{len(found)} detections of every score -> {folder / 'results.json'}")
    if failed:
        raise click.ClickException(f"{failed} of {len(files)} images could not be read.")


@main.command()
@click.argument("model", type=_FILE)
@click.argument("folder", type=click.Path())
@click.option(
    "--ops",
    "operations",
    type=click.Choice(["stock", "native"]),
    default="stock",
    show_default=True,
    help="native: with the compiled operations of `mrcnn build-ops`.",
)
def export(model, folder, operations):
    """Write MODEL as a SavedModel of stock TensorFlow operations to FOLDER."""
    from keras_mrcnn.serving.export import export_saved_model

    export_saved_model(load_model(model), folder, operations)
    click.echo(f"SavedModel, float32, signature serving_default(images, image_sizes) -> {folder}")
    if operations == "native":
        click.echo(
            "It holds the compiled operation: stock TensorFlow Serving cannot load it, and Python only after "
            "`keras_mrcnn.ops.library.choice()`. Export without --ops native for everybody else."
        )


@main.command()
def presets():
    """List the published weights that `from_preset` and `convert` know by name."""
    from keras_mrcnn.weights.presets import preset_table

    click.echo(preset_table())


@main.command()
@click.argument("weights")
@click.argument("output", type=click.Path())
@click.option(
    "--like", help="The published weights (see `mrcnn presets`) whose rules and names a file follows."
)
@click.option("--verify", help="A golden file (.npz), or `torch` to run torchvision beside.")
@click.option("--set", "overrides", multiple=True, help="Change the model: section.key=value.")
def convert(weights, output, like, verify, overrides):
    """Make a model of WEIGHTS (a name, a file, hf://...): OUTPUT is a .keras file or a folder.

    With --verify every station is compared with a reference, and nothing is written if one differs.
    """
    from keras_mrcnn.weights import certificate, sourced, torch_reference

    golden = None
    if verify == "torch":
        torch_reference.import_torch()
    elif verify:
        golden = certificate.Golden.load(verify)
    model, report = sourced.from_preset(weights, like=like, overrides=overrides)
    click.echo(f"{weights}: {report}")
    if verify:
        golden = golden or _torch_golden(model, weights, like)
        differing = []
        for case, stations in certificate.certify(model, golden).items():
            click.echo(f"{case}:")
            for station in stations:
                click.echo(f"  {station}")
            differing += [f"{station.name} of {case}" for station in stations if not station.passed]
        if differing:
            raise click.ClickException(
                f"{len(differing)} stations differ, {differing[0]} first. Nothing was written."
            )
    if output.endswith(".keras"):
        model.save(output)
    else:
        model.save_to_preset(output)
    click.echo(f"-> {output}")


def _torch_golden(model, weights, like):
    """torchvision on two made-up pictures, at half the model's size: enough to see a difference."""
    import numpy as np

    from keras_mrcnn import config as configs
    from keras_mrcnn.data.shapes import draw_image
    from keras_mrcnn.weights import sources
    from keras_mrcnn.weights.files import read_weights
    from keras_mrcnn.weights.torch_reference import torchvision_golden

    random = np.random.default_rng(0)
    images = [draw_image(size, 8, random)[0] for size in ((240, 320), (300, 200))]
    smaller = configs.override(model.config, ["input.short_edge=400", "input.long_edge=666"])
    return torchvision_golden(like or weights, read_weights(sources.resolve(weights)), smaller, images)


@main.command()
@click.argument("folder", type=click.Path())
@click.option("--train", "train_images", default=200, show_default=True, help="Training images.")
@click.option("--val", "val_images", default=40, show_default=True, help="Validation images.")
@click.option("--seed", default=0, show_default=True)
def shapes(folder, train_images, val_images, seed):
    """Make pictures of circles, triangles and squares with exact masks, as a COCO folder."""
    from keras_mrcnn.data.shapes import make_shapes

    paths = make_shapes(folder, train_images, val_images, seed=seed)
    click.echo(
        "mrcnn train shapes_r18_fpn " + " ".join(f"data.{name}={path}" for name, path in paths.items())
    )


@main.command()
@click.option("--force", is_flag=True, help="Compile again what was compiled before.")
def build_ops(force):
    """Compile RoIAlign for the TensorFlow that is installed, with CUDA where there is an nvcc."""
    from keras_mrcnn import doctor
    from keras_mrcnn.ops import build, library

    path = build.build(force)
    library.load(path)
    click.echo(path)
    click.echo("\n".join(doctor.implementation()))


@main.command(name="doctor")
def tell():
    """Say which RoIAlign is in use and why, and what is installed."""
    from keras_mrcnn import doctor

    click.echo(doctor.report())


def load_model(path):
    """The `MaskRCNN` of a .keras file, not compiled."""
    import keras

    import keras_mrcnn.model  # noqa: F401  registers the class

    return keras.models.load_model(path, compile=False)


def _image_files(paths):
    """The files, and the pictures in the folders, in order."""
    files = []
    for path in map(pathlib.Path, paths):
        inside = (
            sorted(p for p in path.iterdir() if p.suffix.lower() in _PICTURES) if path.is_dir() else [path]
        )
        files += inside
    return files
