"""The warm-up file: TensorFlow Serving's own messages, and the model answers them."""

import numpy as np
import pytest
import tensorflow as tf

from keras_mrcnn.serving import warmup


def records(folder):
    return [record.numpy() for record in tf.data.TFRecordDataset(str(folder / warmup.FILE))]


@pytest.mark.parametrize("length", [0, 1, 127, 128, 300, 100_000])
def test_bytes_are_those_of_the_serving_api(length):
    log_pb2 = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    images = np.array([b"x" * length, b"y"], object)
    expected = log_pb2.PredictionLog()
    request = expected.predict_log.request
    request.model_spec.name, request.model_spec.signature_name = "nuclei", "tf_example"
    request.inputs["examples"].CopyFrom(tf.make_tensor_proto(images))
    found = warmup.prediction_log("nuclei", "tf_example", {"examples": images})
    assert found == expected.SerializeToString(deterministic=True)


def test_a_varint_worked_by_hand():
    # 300 = 0b10_0101100: the low seven bits first, with the bit that says more follows
    assert warmup._varint(300) == bytes([0b1_0101100, 0b10])
    # field 2 of wire type 2: 2 << 3 | 2 = 18
    assert warmup._field(2, b"ab") == bytes([18, 2]) + b"ab"


def test_the_export_answers_its_own_warm_up(exported):
    log_pb2 = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    served, shapes = tf.saved_model.load(exported), []
    for record in records(exported):
        request = log_pb2.PredictionLog.FromString(record).predict_log.request
        assert request.model_spec.name == exported.parent.name
        inputs = {key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()}
        answer = served.signatures[request.model_spec.signature_name](**inputs)
        assert answer["num_detections"][0] > 0  # what comes after the suppression was warmed, too
        shapes.append(tuple(answer["image_sizes"][0].numpy()))
    assert shapes == list(warmup.SIZES)


def test_given_pictures_are_taken_as_they_are(tmp_path):
    (tmp_path / "a.png").write_bytes(b"not looked at")
    warmup.write(tmp_path, "m", pictures=[tmp_path / "a.png"])
    assert records(tmp_path) == [
        warmup.prediction_log("m", "serving_default", {"image_bytes": np.array([b"not looked at"])})
    ]


def test_a_model_of_other_channels_gets_pixels(tmp_path):
    warmup.write(tmp_path, "m", channels=5)
    expected = {"images": warmup.picture(warmup.SIZES[0], 5)[None]}
    assert records(tmp_path)[0] == warmup.prediction_log("m", "serving_default", expected)
    with pytest.raises(ValueError, match="5 channels"):
        warmup.write(tmp_path, "m", channels=5, pictures=["a.png"])


def test_pictures_are_of_a_photographs_size_as_files(tmp_path):
    warmup.write(tmp_path, "m")
    assert all(20_000 < len(record) < 200_000 for record in records(tmp_path))
