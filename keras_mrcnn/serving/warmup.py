"""Requests that TensorFlow Serving replays when it loads a model, so that the first real one is not slow.

The file holds TensorFlow Serving's `PredictionLog`s. They are put together field by field: four messages do
not need `tensorflow-serving-api`.
"""

import pathlib

import numpy as np
import tensorflow as tf

FILE = pathlib.Path("assets.extra", "tf_serving_warmup_requests")
SIZES = ((480, 640), (800, 600))  # height and width of the made-up pictures
MOST = 1000  # requests that TensorFlow Serving takes


def write(folder, name, channels=3, pictures=()):
    """Write requests of one image each for `serving_default`.

    Args:
        folder: of a SavedModel that `export_saved_model` made.
        name: str, of the model on the server.
        channels: int, of its images. Only models of 3 take encoded images.
        pictures: paths of image files like those to come; none: two made-up pictures of different sizes.

    Raises:
        ValueError: pictures are given that the model does not take, or too many.
    """
    if pictures and (channels != 3 or len(pictures) > MOST):
        raise ValueError(
            f"Warm-up takes at most {MOST} image files, and none for a model of {channels} channels. "
            f"Received: {len(pictures)}"
        )
    if channels != 3:
        pixels = [("images", picture(size, channels)) for size in SIZES]
    elif pictures:
        pixels = [("image_bytes", pathlib.Path(path).read_bytes()) for path in pictures]
    else:
        pixels = [("image_bytes", tf.io.encode_jpeg(picture(size)).numpy()) for size in SIZES]
    path = pathlib.Path(folder, FILE)
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as file:
        for argument, image in pixels:
            file.write(prediction_log(name, "serving_default", {argument: np.array([image])}))


def picture(size, channels=3):
    """A made-up picture, uint8 `[H, W, channels]`: soft light, and edges of thirty ellipses on it."""
    random = np.random.default_rng(0)
    light = tf.image.resize(random.uniform(40, 200, (6, 8, channels)), size, "bicubic").numpy()
    rows, columns = np.mgrid[: size[0], : size[1]]
    for _ in range(30):
        y, x = random.uniform(0, size)
        radii = np.exp(random.uniform(np.log(8), np.log(min(size) / 4), 2))
        inside = ((rows - y) / radii[0]) ** 2 + ((columns - x) / radii[1]) ** 2 < 1
        light[inside] = 0.5 * light[inside] + random.uniform(0, 128, channels)
    return np.clip(light + random.normal(0, 3, light.shape), 0, 255).astype(np.uint8)


def prediction_log(name, signature, inputs):
    """A serialised `PredictionLog` of one `PredictRequest`, without an answer.

    Args:
        name: str, of the model.
        signature: str.
        inputs: {name: array}.
    """
    # Field numbers: tensorflow_serving/apis/{model,predict,prediction_log}.proto.
    request = _field(1, _field(1, name.encode()) + _field(3, signature.encode()))
    for key, value in sorted(inputs.items()):
        tensor = tf.make_tensor_proto(value).SerializeToString()
        request += _field(2, _field(1, key.encode()) + _field(2, tensor))
    return _field(6, _field(1, request))


def _field(number, payload):
    """A field with a length, in protobuf's wire format."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value):
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])
