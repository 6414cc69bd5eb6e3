"""The clients of `examples/serving` against `mrcnn serve --dev` and a gRPC server of the test's own."""

import concurrent.futures
import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from tests.serving.conftest import encode

requests = pytest.importorskip("requests")
Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def client(repository):
    spec = importlib.util.spec_from_file_location(
        "client_rest", repository / "examples/serving/client_rest.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def photo(tmp_path, files):
    (tmp_path / "photo.jpg").write_bytes(files[0])
    (tmp_path / "broken.jpg").write_bytes(files[0][:300])
    return tmp_path / "photo.jpg"


def run(repository, name, *arguments):
    """A client in a process that must not load the package, nor, by REST, TensorFlow."""
    path = repository / "examples" / "serving"
    forbidden = ["keras_mrcnn"] + ["keras", "tensorflow"] * (name == "client_rest")
    code = (
        f"import sys; sys.path.insert(0, {str(path)!r}); sys.argv[0] = {name!r}\n"
        f"for name in {forbidden}: sys.modules[name] = None\n"
        f"import runpy; runpy.run_path({str(path / name) + '.py'!r}, run_name='__main__')"
    )
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


def test_run_lengths_are_decoded_as_by_pycocotools(client):
    from pycocotools import mask as coco

    random = np.random.default_rng(0)
    for size in [(1, 1), (7, 5), (200, 300), (33, 1000)]:
        for share in (0, 0.001, 0.5, 1):
            mask = random.uniform(size=size) < share
            counts = coco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
            np.testing.assert_array_equal(client.decode_rle(counts, *size), mask)


@contextlib.contextmanager
def development_server(folder):
    """(address, process) of `mrcnn serve --dev`, which is terminated, and must end, afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "keras_mrcnn", "serve", str(folder), "--dev", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})
    try:
        assert "not for production" in process.stdout.readline()
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while True:
            try:
                requests.get(f"{address}/v1/models/{folder.name}", timeout=60)
                break
            except requests.ConnectionError:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.1)
        yield address
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()


def test_rest_client_draws_what_the_server_finds(exported, repository, client, photo):
    pytest.importorskip("starlette")
    found = photo.with_name("found.png")
    with development_server(exported.parent) as address:
        options = ["--model", exported.parent.name, "--address", address, "--threshold", "0.0"]
        result = run(repository, "client_rest", str(photo), str(found), *options)
        assert result.returncode == 0, result.stderr
        broken = run(repository, "client_rest", str(photo.with_name("broken.jpg")), str(found), *options)
        answer = client.ask(address, exported.parent.name, photo.read_bytes())
    assert f"{answer['num_detections']} of {answer['num_detections']} detections" in result.stdout
    assert np.any(np.array(Image.open(found)) != np.array(Image.open(photo).convert("RGB")))
    assert broken.returncode != 0 and "broken.jpg" in broken.stderr  # the export answers with an `error`

    signature = tf.saved_model.load(exported).signatures["serving_default"]
    expected = signature(image_bytes=tf.constant([photo.read_bytes()]))
    assert answer.pop("error") == "" and set(answer) == set(expected) - {"error"}
    for name in answer:
        value = expected[name].numpy()[0]
        if value.dtype == object:
            assert answer[name] == [text.decode() for text in value]
        else:
            np.testing.assert_array_equal(np.array(answer[name], value.dtype), value, err_msg=name)
    height, width = answer["image_sizes"]
    mask = client.decode_rle(answer["detection_masks"][0], height, width)
    x1, y1, x2, y2 = answer["detection_boxes_pixels"][0]
    rows, columns = np.nonzero(mask)
    assert x1 - 1 <= columns.min() and columns.max() <= x2 and y1 - 1 <= rows.min() and rows.max() <= y2


def test_grpc_client_draws_the_same(exported, repository, client, photo):
    grpc = pytest.importorskip("grpc")
    predict_pb2 = pytest.importorskip("tensorflow_serving.apis.predict_pb2")
    from tensorflow_serving.apis import prediction_service_pb2_grpc as service_pb2

    signature = tf.saved_model.load(exported).signatures["serving_default"]

    class Service(service_pb2.PredictionServiceServicer):
        def Predict(self, request, context):
            assert request.model_spec.name == "tiny"
            inputs = {name: tf.constant(tf.make_ndarray(tensor)) for name, tensor in request.inputs.items()}
            response = predict_pb2.PredictResponse()
            for name, value in signature(**inputs).items():
                response.outputs[name].CopyFrom(tf.make_tensor_proto(value.numpy()))
            return response

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    service_pb2.add_PredictionServiceServicer_to_server(Service(), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    found = photo.with_name("found.png")
    try:
        options = ["--model", "tiny", "--address", address, "--threshold", "0.0"]
        result = run(repository, "client_grpc", str(photo), str(found), *options)
    finally:
        server.stop(None)
    assert result.returncode == 0, result.stderr

    expected = signature(image_bytes=tf.constant([photo.read_bytes()]))
    answer = {name: value.numpy().tolist()[0] for name, value in expected.items()}
    for name in ("detection_masks", "detection_class_names"):
        answer[name] = [text.decode() for text in answer[name]]
    drawn, _ = client.draw(photo, answer, 0.0)
    np.testing.assert_array_equal(np.array(Image.open(found)), np.array(drawn))


def test_a_request_is_little_more_than_the_file(client, monkeypatch):
    bodies = []

    class Answer:
        ok = True

        def json(self):
            return {"predictions": [{}]}

    def post(address, json, timeout):
        bodies.append(requests.Request("POST", address, json=json).prepare().body)
        return Answer()

    monkeypatch.setattr(client.requests, "post", post)
    photo = encode(np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8), "JPEG")
    client.ask("http://localhost", "m", photo)
    assert 4 / 3 < len(bodies[0]) / len(photo) <= 1.4
