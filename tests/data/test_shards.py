"""TFRecords give the examples that the json gives; those of Model Garden are read."""

import subprocess

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from pycocotools.coco import COCO
from pycocotools.mask import decode

from keras_mrcnn import cli, config
from keras_mrcnn.data import pipeline, shards
from keras_mrcnn.data.coco import load_coco

INPUT = config.Input(short_edge=64, long_edge=100)
KEYPOINTS = {"id": 4, "name": "person", "keypoints": ["left_eye", "right_eye"], "skeleton": [[1, 2]]}

# With nothing of this package.
MODEL_GARDEN_READS = """
import glob, sys, numpy as np, tensorflow as tf
from official.vision.dataloaders.tf_example_decoder import TfExampleDecoder
decoder, found = TfExampleDecoder(include_mask=True), {}
for serialized in tf.data.TFRecordDataset(sorted(glob.glob(sys.argv[1] + "/*.tfrecord"))):
    example = decoder.decode(serialized)
    name = example["source_id"].numpy().decode()
    found["boxes " + name] = example["groundtruth_boxes"].numpy()
    found["masks " + name] = example["groundtruth_instance_masks"].numpy() > 0
np.savez(sys.argv[2], **found)
"""


@pytest.fixture
def everything(coco_folder):
    """Polygons, RLE, a crowd, a box only, keypoints, an image without objects, ids of all kinds."""
    polygons = [[1.13, 2.27, 9.9, 2, 9, 8.5], [12, 2, 15.77, 2, 15, 9]]
    runs = {"size": [20, 30], "counts": [40, 5, 15, 5, 535]}
    objects = [
        {"id": 7, "image_id": 1, "category_id": 3, "segmentation": polygons, "bbox": [1.1, 1.9, 14.7, 7.2]},
        {"id": "b", "image_id": 1, "category_id": 3, "segmentation": runs},
        {"image_id": 1, "category_id": 3, "segmentation": runs, "iscrowd": 1},
        {"id": 9, "image_id": "x", "category_id": 4, "bbox": [0.3, 0, 30, 20], "area": 17.5},
        {
            "id": 10,
            "image_id": "x",
            "category_id": 4,
            "bbox": [3, 0, 9, 9],
            "keypoints": [5, 7.3, 2, 0, 0, 0],
        },
    ]
    images = [{"id": i, "file_name": f"{i}.png", "height": 20, "width": 30} for i in (1, "x", 3)]
    categories = [{"id": 3, "name": "thing"}, KEYPOINTS]
    return coco_folder(objects, images, categories, {f"{i}.png": (20, 30) for i in (1, "x", 3)})


def sharded(dataset, folder, shard_count=2, **options):
    shards.write_shards(dataset, folder, shard_count, **options)
    return load_coco(folder / "*.tfrecord", "", invalid="error")


def assert_same_batches(ours, theirs, **changes):
    for make in (pipeline.evaluation_dataset, pipeline.training_dataset):
        settings = config.Data(batch_size=2, short_edges=[48, 64], **changes)
        one, other = (list(make(records, settings, INPUT).as_numpy_iterator()) for records in (ours, theirs))
        tf.nest.map_structure(np.testing.assert_array_equal, one, other)


def in_order(dataset, like):
    """Records in the order of the other data set: file after file, they are in another."""
    of = {str(record.image_id): record for record in dataset.records}
    return [of[str(record.image_id)] for record in like.records]


def test_the_examples_of_the_json(everything, tmp_path):
    dataset = load_coco(*everything, invalid="error")
    again = sharded(dataset, tmp_path / "shards")
    assert again.categories == dataset.categories
    records = in_order(again, dataset)
    for ours, theirs in zip(records, dataset.records, strict=True):
        for name in ("boxes", "classes", "crowd", "areas", "keypoints", "mirrored"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        assert (ours.image_id, ours.annotation_ids) == (theirs.image_id, theirs.annotation_ids)
    assert_same_batches(records, dataset.records)


def test_real_data(coco_sample, tmp_path):
    dataset = type(coco_sample)(coco_sample.records[:12], coco_sample.categories, [])
    assert_same_batches(in_order(sharded(dataset, tmp_path, 5), dataset), dataset.records)


def test_the_keys_of_model_garden(everything, tmp_path):
    dataset = load_coco(*everything, invalid="error")
    paths = shards.write_shards(dataset, tmp_path, 1, png_masks=True)
    assert [path[-24:] for path in paths] == ["/00000-of-00001.tfrecord"]
    serialized = next(iter(tf.data.TFRecordDataset(paths)))
    many = {name: tf.io.VarLenFeature(tf.float32) for name in ("bbox/xmin", "bbox/xmax", "bbox/ymin", "area")}
    many |= {name: tf.io.VarLenFeature(tf.int64) for name in ("class/label", "is_crowd")}
    many |= {"mask": tf.io.VarLenFeature(tf.string)}
    features = {f"image/object/{name}": kind for name, kind in many.items()}
    features |= {f"image/{edge}": tf.io.FixedLenFeature([], tf.int64) for edge in ("height", "width")}
    features |= {f"image/{name}": tf.io.FixedLenFeature([], tf.string) for name in ("encoded", "source_id")}
    found = {
        name: getattr(v, "values", v).numpy()
        for name, v in tf.io.parse_single_example(serialized, features).items()
    }
    assert (found["image/height"], found["image/width"], found["image/source_id"]) == (20, 30, b"1")
    np.testing.assert_allclose(found["image/object/bbox/xmax"], [15.8 / 30, 4 / 30, 4 / 30], rtol=1e-6)
    assert found["image/object/class/label"].tolist() == [3, 3, 3] and found[
        "image/object/is_crowd"
    ].tolist() == [0, 0, 1]
    masks = [tf.io.decode_png(png).numpy()[..., 0] for png in found["image/object/mask"]]
    assert masks[1].shape == (20, 30) and masks[1].sum() == 10 and masks[1][0:5, 2].all()


def test_records_of_model_garden(everything, tmp_path):
    """Without a key of ours: shares of the image, PNGs, no list of categories."""
    dataset = load_coco(*everything, invalid="error")
    (path,) = shards.write_shards(dataset, tmp_path, 1, png_masks=True)
    examples = [tf.train.Example.FromString(one.numpy()) for one in tf.data.TFRecordDataset(path)]
    with tf.io.TFRecordWriter(str(tmp_path / "garden.tfrecord")) as writer:
        for example in examples:
            for name in ("id", "box", "polygon/count", "polygon/size", "polygon/points", "rle", "keypoints"):
                example.features.feature.pop(f"image/object/{name}", None)
            writer.write(example.SerializeToString())
    (tmp_path / "categories.json").unlink()
    again = load_coco(tmp_path / "garden.tfrecord", "")
    assert [(c.id, c.name) for c in again.categories] == [(3, "thing"), (4, "person")]
    first, second = again.records[0], dataset.records[0]
    np.testing.assert_allclose(first.boxes, second.boxes, atol=1e-4)
    assert [coco["size"] for coco in first.segmentations] == [[20, 30]] * 3
    np.testing.assert_array_equal(first.crowd, second.crowd)


@pytest.mark.proof
def test_between_model_garden_and_here(shared, repository, tmp_path):
    """What its script wrote of real data is read here, and its decoder reads what is written here."""
    python = repository / ".venv-garden" / "bin" / "python"
    if not python.exists():
        pytest.skip("no .venv-garden (`make bench-garden`)")
    coco = shared / "data" / "coco_sample"
    annotations, images = coco / "annotations" / "instances_val2017.json", coco / "val2017"
    flags = [f"--image_dir={images}", f"--object_annotations_file={annotations}", "--include_masks"]
    flags += [f"--output_file_prefix={tmp_path / 'theirs'}", "--num_shards=2"]
    script = "official.vision.data.create_coco_tf_record"
    subprocess.run([python, "-m", script, *flags], check=True, capture_output=True)

    labels, objects = COCO(annotations), 0
    dataset, theirs = load_coco(annotations, images), load_coco(tmp_path / "theirs-*.tfrecord", "")
    for one, other in zip(dataset.records, in_order(theirs, dataset), strict=True):
        np.testing.assert_allclose(other.boxes, one.boxes, atol=1e-3)
        for number, label in enumerate(labels.loadAnns(one.annotation_ids)):
            assert theirs.categories[other.classes[number]].id == label["category_id"]
            assert other.crowd[number] == label["iscrowd"]
            np.testing.assert_array_equal(decode(other.segmentations[number]), labels.annToMask(label))
            objects += 1
    assert objects > 400

    shards.write_shards(dataset, tmp_path / "ours", 2, png_masks=True)
    subprocess.run([python, "-c", MODEL_GARDEN_READS, tmp_path / "ours", tmp_path / "read.npz"], check=True)
    with np.load(tmp_path / "read.npz") as read:
        for record in dataset.records:
            boxes, masks = read[f"boxes {record.image_id}"], read[f"masks {record.image_id}"]
            pixels = boxes[:, [1, 0, 3, 2]] * np.tile([record.width, record.height], 2)
            np.testing.assert_allclose(pixels, record.boxes, atol=1e-3)
            for mask, label in zip(masks, labels.loadAnns(record.annotation_ids), strict=True):
                np.testing.assert_array_equal(mask, labels.annToMask(label))


def test_what_is_wrong(everything, tmp_path):
    with pytest.raises(ValueError, match="No file is .*none.tfrecord"):
        load_coco(tmp_path / "none.tfrecord", "")
    (path,) = shards.write_shards(load_coco(*everything), tmp_path, 1)
    with open(path, "rb") as file:
        content = file.read()
    for damaged in (content[:-10], content[:5], b"\x1f\x8b" + content):
        (tmp_path / "damaged.tfrecord").write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged.tfrecord is no TFRecord"):
            load_coco(tmp_path / "damaged.tfrecord", "")


def test_the_command(everything, tmp_path):
    arguments = ["data", "shard", *map(str, everything), str(tmp_path / "out"), "--shards", "3"]
    said = CliRunner().invoke(cli.main, arguments)
    assert said.exit_code == 0, said.output
    assert f"data.train_annotations='{tmp_path}/out/*.tfrecord'" in said.output
    assert len(load_coco(tmp_path / "out/*.tfrecord", "").records) == 3
