"""TensorFlow Serving's JSON: what its documentation shows, and what it refuses."""

import base64
import json

import numpy as np
import pytest
import tensorflow as tf

from keras_mrcnn.serving import rest

ONE = {"x": tf.TensorSpec([None], tf.string)}
TWO = {"tag": tf.TensorSpec([None], tf.string), "signal": tf.TensorSpec([None, None], tf.float32)}
PIXELS = {"images": tf.TensorSpec([None, None, None, 3], tf.uint8)}
SIGNATURES = {"serving_default": ONE, "two": TWO, "pixels": PIXELS}


def ask(**body):
    name, tensors, rows = rest.request(json.dumps(body).encode(), SIGNATURES)
    return name, {key: tensor.numpy().tolist() for key, tensor in tensors.items()}, rows


def test_rows_of_one_input_are_plain_values():
    assert ask(instances=["foo", "bar"]) == ("serving_default", {"x": [b"foo", b"bar"]}, True)


def test_rows_of_one_input_may_name_it():
    assert ask(instances=[{"x": "foo"}])[1] == {"x": [b"foo"]}


def test_bytes_are_objects_of_b64():
    encoded = base64.b64encode(b"\xff\x00JPEG").decode()
    assert ask(instances=[{"b64": encoded}])[1] == {"x": [b"\xff\x00JPEG"]}
    assert ask(instances=[{"x": {"b64": encoded}}])[1] == {"x": [b"\xff\x00JPEG"]}
    assert ask(inputs=[{"b64": encoded.rstrip("=")}])[1] == {"x": [b"\xff\x00JPEG"]}
    assert ask(inputs={"x": [{"b64": encoded}]})[1] == {"x": [b"\xff\x00JPEG"]}


def test_rows_and_columns_of_several_inputs_are_one_thing():
    # the example of the documentation
    rows = [{"tag": "foo", "signal": [1, 2, 3]}, {"tag": "bar", "signal": [3, 4, 1.5]}]
    columns = {"tag": ["foo", "bar"], "signal": [[1, 2, 3], [3, 4, 1.5]]}
    expected = {"tag": [b"foo", b"bar"], "signal": [[1, 2, 3], [3, 4, 1.5]]}
    assert ask(signature_name="two", instances=rows) == ("two", expected, True)
    assert ask(signature_name="two", inputs=columns) == ("two", expected, False)


def test_pixels():
    image = [[[0, 128, 255]]]
    assert ask(signature_name="pixels", instances=[image])[1] == {"images": [image]}


@pytest.mark.parametrize(
    "body, says",
    [
        (b"", "JSON Parse error"),
        (b"{", "JSON Parse error"),
        (b"[" * 100_000, "JSON Parse error"),
        (b"[]", "not an object"),
        (b'{"signature_name": 1, "instances": ["a"]}', "must be a string"),
        (b'{"signature_name": "none", "instances": ["a"]}', 'name: "none" not found'),
        (b"{}", "Missing 'inputs' or 'instances'"),
        (b'{"inputs": ["a"], "instances": ["a"]}', "only one of"),
        (b'{"instances": []}', "at least one value"),
        (b'{"instances": "a"}', "to be a list"),
        (b'{"instances": [{"y": "a"}]}', "keys are equal to: x"),
        (b'{"instances": [{"x": "a"}, "b"]}', "element: 1"),
        (b'{"instances": ["b", {"x": "a"}]}', "'x'"),
        (b'{"instances": ["b", ["a"]]}', "'x'"),
        (b'{"instances": [1]}', "int is neither text"),
        (b'{"instances": [{"b64": "*"}]}', "'x'"),
        (b'{"inputs": {"y": ["a"]}}', "Missing named input: x"),
        (b'{"signature_name": "two", "inputs": ["a"]}', "expecting an object"),
        (b'{"signature_name": "two", "instances": ["a"]}', "expecting list of objects"),
        (b'{"signature_name": "pixels", "instances": [[[[0, 0, 256]]]]}', "0 to 256"),
        (b'{"signature_name": "pixels", "instances": [[[[0, 0, 0.5]]]]}', "float64"),
        (b'{"signature_name": "pixels", "instances": [[[[0, 0]], [[0]]]]}', "'images'"),
        (b'{"signature_name": "pixels", "instances": ["text"]}', "'images'"),
    ],
)
def test_what_the_server_refuses(body, says):
    with pytest.raises(ValueError, match=says.replace("[", r"\[")):
        rest.request(body, SIGNATURES)


def test_answers_in_rows_and_columns():
    tensors = {
        "scores": np.array([[0.1, 9e6], [1e-8, 1]], np.float32),
        "names": np.array([b"caf\xc3\xa9", b""], object),
        "file_bytes": np.array([b"\xff", b""], object),
        "count": np.array([2, 1], np.int32),
    }
    rows = json.loads(rest.answer(tensors, rows=True))["predictions"]
    expected = {"scores": [0.1, 9e6], "names": "café", "file_bytes": {"b64": "/w=="}, "count": 2}
    assert rows[0] == expected and len(rows) == 2
    columns = json.loads(rest.answer(tensors, rows=False))["outputs"]
    assert columns == {key: [row[key] for row in rows] for key in tensors}


def test_one_output_has_no_name():
    tensors = {"y": np.array([[1.5], [2.5]], np.float32)}
    assert rest.answer(tensors, rows=True) == '{"predictions": [[1.5], [2.5]]}'
    assert rest.answer(tensors, rows=False) == '{"outputs": [[1.5], [2.5]]}'


def test_floats_are_as_short_as_they_can_be():
    random = np.random.default_rng(0)
    values = (random.normal(size=2000) * 10.0 ** random.integers(-9, 9, 2000)).astype(np.float32)
    text = rest.answer({"y": values}, rows=False)
    np.testing.assert_array_equal(np.array(json.loads(text)["outputs"]).astype(np.float32), values)
    assert len(text) < 2000 * 16  # as Python floats: 22 each


def test_answers_that_the_server_cannot_write():
    with pytest.raises(ValueError, match="inconsistent"):
        rest.answer({"a": np.zeros(2), "b": np.zeros(3)}, rows=True)
    with pytest.raises(ValueError, match="_bytes"):
        rest.answer({"detection_masks": np.array([b"\x89PNG"], object)}, rows=True)
