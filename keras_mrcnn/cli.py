"""The command line: `mrcnn check | train | eval | predict | export | serve | presets | convert | shapes`,
`data shard`, and `build-ops | doctor` about the compiled operations.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

import json
import pathlib

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


@main.group()
def data():
    """Data sets in other forms."""


@data.command()
@click.argument("annotations", type=_FILE)
@click.argument("images", type=_FOLDER)
@click.argument("output", type=click.Path(file_okay=False))
@click.option("--shards", "count", default=16, show_default=True, type=click.IntRange(1), help="Files.")
@click.option("--masks", is_flag=True, help="Also a PNG of each mask, for TensorFlow Model Garden.")
def shard(annotations, images, output, count, masks):
    """Write a COCO json and its images as TFRecords to OUTPUT, with TensorFlow Model Garden's keys.

    Train on them with data.train_annotations=OUTPUT/*.tfrecord; memory: one image at a time.
    """
    from keras_mrcnn.data import shards
    from keras_mrcnn.data.coco import load_coco

    dataset = load_coco(annotations, images)
    click.echo(dataset.summary())
    shards.write_shards(dataset, output, count, masks)
    click.echo(f"data.train_annotations='{output}/*.tfrecord'")


@main.command()
@click.argument("config")
@click.argument("overrides", nargs=-1)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in training.output.")
@click.option("--devices", type=int, help="GPUs that share each batch (without one: parts of the CPU).")
def train(config, overrides, resume, devices):
    """Train as CONFIG says (a YAML file, or a name in configs/), changed by OVERRIDES (data.batch_size=4).

    Several machines train together when each runs this command with its TF_CONFIG, as TensorFlow's
    MultiWorkerMirroredStrategy wants it. They share the scoring, too; the first one writes the files.
    """
    from keras_mrcnn import config as configs
    from keras_mrcnn.train import run

    run(configs.load(config, overrides), resume, devices=devices)


@main.command()
@click.option("--table", "name", required=True, help="Of the paper: 2a, 2b, 2c, 2d, 2e or 3.")
@click.argument("overrides", nargs=-1)
@click.option("--seeds", default=1, show_default=True, help="Runs of each row.")
@click.option(
    "--backbone", help="ImageNet weights of a ResNet-18 (a name or a file), instead of from scratch."
)
@click.option("--output", default="runs/ablation", show_default=True, type=click.Path(file_okay=False))
def ablate(name, overrides, seeds, backbone, output):
    """Train the rows of a table of the paper at toy scale, and print ours beside the paper's.

    Without data.train_annotations=... and the other three paths, on synthetic shapes.
    """
    from keras_mrcnn import ablation
    from keras_mrcnn.data.shapes import make_shapes

    given = any(override.startswith("data.train_annotations=") for override in overrides)
    data = {} if given else make_shapes(pathlib.Path(output, "shapes"), 500, 100)
    found = ablation.ablate(name, data, seeds, output, overrides, backbone)
    click.echo(ablation.format_table(name, found))


@main.command(name="eval")
@click.argument("model", type=_FILE)
@click.argument("annotations")
@click.argument("images", type=_FOLDER)
@click.option(
    "--metric",
    type=click.Choice(["coco", "lvis", "voc", "cityscapes"]),
    default="coco",
    show_default=True,
    help="cityscapes: IMAGES is its folder, ANNOTATIONS the name of a split.",
)
@click.option("--batch-size", default=1, show_default=True)
@click.option("--output", type=click.Path(), help="Also write the scores there, as json.")
@click.option("--scales", default="", help="Short edges at which every image is seen, as 400,500,600.")
@click.option("--flip", is_flag=True, help="Every image is seen mirrored, too.")
def evaluate(model, annotations, images, metric, batch_size, output, scales, flip):
    """Scores of MODEL (a .keras file) on labelled images: of boxes, masks, keypoints."""
    from keras_mrcnn import config as configs
    from keras_mrcnn.data.pipeline import evaluation_dataset
    from keras_mrcnn.evaluation import format_table
    from keras_mrcnn.train import evaluator_of, load_data
    from keras_mrcnn.training import callbacks

    model = load_model(model)
    kind = "cityscapes" if metric == "cityscapes" else "coco"
    data = configs.Data(format=kind, val_annotations=annotations, val_images=images)
    dataset = load_data(data, "val", model.categories)
    click.echo(dataset.summary())
    evaluator = evaluator_of(dataset, model, metric, annotations)
    records = dataset.records
    with click.progressbar(length=len(records), label="Scoring") as bar:
        if scales or flip:
            views = {"short_edges": [int(edge) for edge in scales.split(",") if edge], "flip": flip}
            scores = callbacks.score_views(model, records, evaluator, views, progress=bar.update)
        else:
            batches = evaluation_dataset(records, configs.Data(batch_size=batch_size), model.config.input)
            scores = callbacks.score(model, batches, records, evaluator, progress=bar.update)
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
@click.argument("output", type=click.Path())
@click.option(
    "--format",
    "kind",
    type=click.Choice(["savedmodel", "onnx", "openvino"]),
    default="savedmodel",
    show_default=True,
    help="onnx, openvino: the network alone, from resized images, as the file OUTPUT (.onnx, .xml).",
)
@click.option("--version", default=1, show_default=True, help="The folder in OUTPUT.")
@click.option(
    "--masks",
    type=click.Choice(["rle", "box", "png", "none"]),
    default="rle",
    show_default=True,
    help="COCO's run lengths; probabilities over the box; PNG files; none.",
)
@click.option("--max-pixels", default=64_000_000, show_default=True, help="Larger images are refused.")
@click.option(
    "--on-error",
    type=click.Choice(["raise", "empty"]),
    default="raise",
    show_default=True,
    help="An image that cannot be read fails the request, or has no detections and an `error`.",
)
@click.option(
    "--ops",
    "operations",
    type=click.Choice(["stock", "native"]),
    default="stock",
    show_default=True,
    help="native: with the compiled operations of `mrcnn build-ops`.",
)
@click.option(
    "--warmup",
    "pictures",
    multiple=True,
    type=_FILE,
    help="A picture like those to come, for the server to warm up with; may be given several times.",
)
@click.option("--deploy", is_flag=True, help="Also write docker-compose.yml and what it needs beside OUTPUT.")
@click.pass_context
def export(context, model, output, kind, deploy, **options):
    """Write MODEL as a SavedModel to OUTPUT/VERSION, for TensorFlow Serving and plain TensorFlow."""
    if kind != "savedmodel":
        of_others = [
            name
            for name in ("deploy", *options)
            if context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE
        ]
        if of_others:
            raise click.UsageError(f"{', '.join(of_others)}: only of a SavedModel, not of --format {kind}.")
        from keras_mrcnn.serving import onnx

        write = onnx.export_onnx if kind == "onnx" else onnx.export_openvino
        write(load_model(model), output)
        click.echo(f"float32, images and image_sizes in the network frame -> {output}")
        return
    from keras_mrcnn.serving import layout
    from keras_mrcnn.serving.export import export_saved_model

    path = export_saved_model(load_model(model), output, **options)
    click.echo(f"SavedModel, float32, signature serving_default(image_bytes) -> {path}")
    if options["operations"] == "native":
        click.echo(
            "It holds the compiled operation: stock TensorFlow Serving cannot load it, and Python only after "
            "`keras_mrcnn.ops.library.choice()`. Export without --ops native for everybody else."
        )
    if deploy:
        written, kept = layout.write(output)
        click.echo("".join(f"written: {path}\n" for path in written), nl=False)
        click.echo("".join(f"left as it was: {path}\n" for path in kept), nl=False)


@main.command()
@click.argument("folder", type=_FOLDER)
@click.option("--dev", is_flag=True, help="Say that you know: this is for development only.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8501, show_default=True)
def serve(folder, dev, host, port):
    """Answer as TensorFlow Serving's REST interface would, for FOLDER of `mrcnn export`. Development only.

    One process, one request after the other, no gRPC. In production run TensorFlow Serving itself:
    `mrcnn export --deploy` writes what it needs.
    """
    if not dev:
        raise click.UsageError("This server is for development: `mrcnn serve --dev`. See --help.")
    from keras_mrcnn.serving import dev_server

    dev_server.run(folder, host, port)


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
    from keras_mrcnn.weights.golden import Golden

    golden = None
    if verify == "torch":
        torch_reference.import_torch()
    elif verify:
        golden = Golden.load(verify)
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
    given = " ".join(f"data.{name}={path}" for name, path in paths.items())
    click.echo(f"mrcnn train shapes_r18_fpn {given}")


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
    """Say which operations are in use and why, and what is installed."""
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
        folder = path.is_dir()
        files += sorted(p for p in path.iterdir() if p.suffix.lower() in _PICTURES) if folder else [path]
    return files
