"""Images per second of the input pipeline alone, and the processor time of its stages.

    python benchmarks/input_pipeline.py COCO_JSON COCO_IMAGES

makes JPEGs of 640 x 480 with seven polygons each from the data given, in a temporary folder, and feeds them
as training does, to a short edge of 800 (800 x 1067). Processor time counts all threads, so it is what
another process on the same cores changes least; images per second are those of the wall clock.
"""

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from keras_mrcnn import config
from keras_mrcnn.data import images, pipeline, transforms
from keras_mrcnn.data.coco import load_coco
from keras_mrcnn.data.objects import Objects
from keras_mrcnn.ops import library

HEIGHT, WIDTH, OBJECTS = 480, 640, 7


def make_data(annotations, folder, count, output):
    """Records of `count` images made from those of a COCO json: scaled, with seven of its polygon objects."""
    source = load_coco(annotations, folder)
    records = [r for r in source.records if any(isinstance(s, list) for s in r.segmentations)]
    entries, objects = [], []
    for index in range(count):
        record = records[index % len(records)]
        pixels = images.decode(tf.io.read_file(record.path))
        pixels = images.resize(pixels, (HEIGHT, WIDTH))
        name = f"{index}.jpg"
        tf.io.write_file(os.path.join(output, name), tf.io.encode_jpeg(pixels, quality=90))
        entries.append({"id": index, "file_name": name, "height": HEIGHT, "width": WIDTH})
        polygons = [s for s in record.segmentations if isinstance(s, list)]
        scale = np.array([WIDTH / record.width, HEIGHT / record.height])
        for k in range(OBJECTS):
            moved = [(np.reshape(p, (-1, 2)) * scale).ravel().tolist() for p in polygons[k % len(polygons)]]
            objects.append({"id": len(objects), "image_id": index, "category_id": 1, "segmentation": moved})
    path = pathlib.Path(output, "annotations.json")
    categories = [{"id": 1, "name": "object"}]
    path.write_text(json.dumps({"images": entries, "annotations": objects, "categories": categories}))
    return load_coco(path, output, invalid="error").records


def measure(run, count, repeats):
    """Medians of (processor milliseconds, wall milliseconds) of one of the `count` images that `run` does."""
    run()
    times = []
    for _ in range(repeats):
        start = time.process_time(), time.perf_counter()
        run()
        times.append((time.process_time() - start[0], time.perf_counter() - start[1]))
    return [statistics.median(column) / count * 1000 for column in zip(*times, strict=True)]


def stages(records):
    """{name: function of an index}; each stage is given what the one before it made."""
    objects = Objects(records)
    paths = tf.constant([record.path for record in records])
    encoded = tf.stack([tf.io.read_file(path) for path in paths])
    decoded = tf.stack([images.decode(one) for one in encoded])
    resized = images.resize(decoded[0], (800, 1067))
    example = {"image": decoded[0], "boxes": tf.zeros([OBJECTS, 4]), "masks": objects.of(0)["masks"]}
    return {
        "read": lambda i: tf.io.read_file(paths[i]),
        "decode": lambda i: images.decode(encoded[i]),
        "objects, mask crops": lambda i: objects.of(i)["masks"],
        "flip": lambda i: transforms.horizontal_flip(example)["image"],
        "resize": lambda i: images.resize(decoded[i], (800, 1067)),
        "pad": lambda i: images.pad_to_stride(resized),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("annotations")
    parser.add_argument("images")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=2)
    arguments = parser.parse_args()
    chosen = library.choice()
    print(f"operations: {'compiled' if chosen.module else 'stock'} ({chosen.reason}); {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        records = make_data(arguments.annotations, arguments.images, arguments.count, folder)
        count = len(records)
        for name, stage in stages(records).items():
            run = tf.function(stage, input_signature=[tf.TensorSpec([], tf.int32)])
            cpu, _ = measure(
                lambda run=run: [run(tf.constant(i)) for i in range(count)], count, arguments.repeats
            )
            print(f"{name:<20} {cpu:6.2f} ms of processor time an image, its call included")
        data = config.Data(batch_size=arguments.batch_size, short_edges=[800])
        dataset = pipeline.training_dataset(records, data, config.Input())
        cpu, wall = measure(lambda: sum(1 for _ in dataset), count, arguments.repeats)
    print(f"{'whole pipeline':<20} {cpu:6.2f} ms of processor time an image; {1000 / wall:.0f} images/s,")
    print(
        f"{'':<20} {1000 * os.cpu_count() / cpu:6.0f} images/s if it had all {os.cpu_count()} cores to itself"
    )


if __name__ == "__main__":
    main()
