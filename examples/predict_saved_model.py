"""Detections from an exported model, with TensorFlow and nothing else.

python examples/predict_saved_model.py SAVED_MODEL IMAGE [SHORT_EDGE LONG_EDGE]
"""

import sys

import tensorflow as tf


def main(folder, path, short_edge=320, long_edge=640):
    """Prints the detections of one image that score more than one half, in the image's own pixels."""
    detect = tf.saved_model.load(folder).signatures["serving_default"]
    image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    scale = tf.minimum(float(short_edge) / tf.reduce_min(size), float(long_edge) / tf.reduce_max(size))
    resized = tf.image.resize(image, tf.cast(tf.round(size * scale), tf.int32), antialias=True)
    resized = tf.saturate_cast(tf.round(resized), tf.uint8)
    found = detect(images=resized[None], image_sizes=tf.shape(resized)[None, :2])
    good = found["scores"][0] > 0.5
    print(f"{path}: {int(tf.reduce_sum(tf.cast(good, tf.int32)))} objects; the best three:")
    for box, score in zip(found["boxes"][0][:3] / scale, found["scores"][0][:3]):
        print(f"  score {float(score):.3f}, box {[round(float(edge), 1) for edge in box]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
