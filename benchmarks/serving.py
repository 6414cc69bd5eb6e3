"""Time of a served request by the form of its masks, and the sizes of request and answer.

python benchmarks/serving.py [--model FILE.keras] [--image FILE] [--repeats 7]

Without a model: R50-FPN with random weights, 100 detections in an image of 800 x 1333 pixels. Its masks are
noise, with more runs than real ones have: the time of the run lengths is an upper bound, and the size of the
answer is given with ellipses over the same boxes, too.
"""

import argparse
import base64
import json
import pathlib
import statistics
import time

import keras
import numpy as np
import tensorflow as tf
import work
import worker_keras

from keras_mrcnn import load_model
from keras_mrcnn.ops import library
from keras_mrcnn.serving import rest, rle
from keras_mrcnn.serving.answers import MASKS
from keras_mrcnn.serving.export import MAX_PIXELS
from keras_mrcnn.serving.signatures import Endpoints

SIZE = 800, 1333  # pixels, height and width


def random_model():
    """R50-FPN that finds 100 objects."""
    keras.utils.set_random_seed(0)
    model = worker_keras.build("float32")
    inputs = {"images": work.image(800, 1344)[None], "image_sizes": np.int32([SIZE])}
    worker_keras.prepare_inference(model, {name: tf.constant(value) for name, value in inputs.items()})
    return model


def timed(functions, given, repeats):
    """{name: list of seconds}; the functions take turns, after one untimed call of each."""
    seconds = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            tf.nest.map_structure(lambda tensor: tensor.numpy(), function(image_bytes=given))
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def with_ellipses(answer):
    """The answer with the run lengths of an ellipse in each box."""
    grid = (np.arange(28) - 13.5) / 14
    ellipse = np.clip(3 * (1 - np.hypot(*np.meshgrid(grid, grid))) + 0.5, 0, 1)
    boxes, count = answer["detection_boxes_pixels"][0], answer["num_detections"][0]
    maps, sizes = np.tile(ellipse, (len(boxes), 1, 1)), np.repeat(answer["image_sizes"], len(boxes), axis=0)
    counts = rle.run_lengths(maps, boxes, sizes, np.arange(len(boxes)) < count, "centres")
    return {**answer, "detection_masks": counts.numpy()[None]}


def main():
    """Prints the table and the sizes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model")
    parser.add_argument("--image")
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    model = load_model(given.model) if given.model else random_model()
    encoded = pathlib.Path(given.image).read_bytes() if given.image else tf.io.encode_jpeg(work.image(*SIZE))
    encoded = tf.reshape(encoded, [1])
    with library.stock_operations():
        functions = {
            masks: Endpoints(model, masks, MAX_PIXELS, "raise").signatures()["serving_default"]
            for masks in MASKS
        }
    seconds = timed(functions, encoded, given.repeats)
    print(f"TensorFlow {tf.version.VERSION}, medians of {given.repeats} (lowest, highest), seconds a request")
    print("| masks | seconds | against none |\n| --- | --- | --- |")
    least = statistics.median(seconds["none"])
    for name, values in seconds.items():
        middle = statistics.median(values)
        span = f"({min(values):.3f}, {max(values):.3f})"
        print(f"| {name} | {middle:.3f} {span} | {100 * (middle / least - 1):+.1f} % |")

    for name, function in functions.items():
        answer = {key: value.numpy() for key, value in function(image_bytes=encoded).items()}
        size = len(rest.answer(answer, rows=True))
        print(f"answer, masks={name}: {answer['num_detections'][0]} detections, {size / 1000:.1f} kB of JSON")
        if name == "rle":
            size = len(rest.answer(with_ellipses(answer), rows=True))
            print(f"answer, masks={name} of ellipses: {size / 1000:.1f} kB of JSON")
    photograph = tf.io.encode_jpeg(work.image(1024, 1024)).numpy()
    text = base64.b64encode(photograph).decode()
    body = json.dumps({"instances": [{"image_bytes": {"b64": text}}]})
    print(f"request of 1024 x 1024 pixels: {len(body) / len(photograph):.3f} times the file's size")


if __name__ == "__main__":
    main()
