"""Detections from an exported model, with TensorFlow and nothing else.

python examples/predict_saved_model.py SAVED_MODEL/VERSION IMAGE
"""

import pathlib
import sys

import tensorflow as tf


def main(folder, path):
    """Prints the detections of one image that score more than one half, in the image's own pixels."""
    detect = tf.saved_model.load(folder).signatures["serving_default"]
    found = detect(image_bytes=tf.constant([pathlib.Path(path).read_bytes()]))
    good = int(tf.reduce_sum(tf.cast(found["detection_scores"][0] > 0.5, tf.int32)))
    print(f"{path}: {good} objects; the best three:")
    best = (found[f"detection_{name}"][0, :3].numpy() for name in ("class_names", "scores", "boxes_pixels"))
    for name, score, box in zip(*best):
        print(f"  {name.decode()}, score {score:.3f}, box {[round(float(edge), 1) for edge in box]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
