"""The development server over HTTP: TensorFlow Serving's addresses, codes and limits."""

import base64
import concurrent.futures
import contextlib
import re
import threading
import time

import pytest
import tensorflow as tf
from click.testing import CliRunner

from keras_mrcnn.cli import main
from keras_mrcnn.serving import dev_server

requests = pytest.importorskip("requests")
uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")


class Toy(tf.Module):
    """The form of a served model, without one: lengths of the bytes, and an error for the text `bad`."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def lengths(self, image_bytes):
        good = tf.debugging.Assert(tf.reduce_all(image_bytes != b"bad"), ["image 0: not an image"])
        with tf.control_dependencies([good]):
            lengths = tf.strings.length(image_bytes)
        return {"num_detections": lengths, "names": image_bytes + b"!"}

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")])
    def brightest(self, images):
        return {"brightest": tf.reduce_max(images, [1, 2])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "toy"
    toy = Toy()
    for version in (2, 10):
        signatures = {"serving_default": toy.lengths, "image_tensor": toy.brightest}
        tf.saved_model.save(toy, folder / str(version), signatures)
    (folder / "notes").mkdir()
    (folder / "99").write_text("a file, no version")
    return folder


@contextlib.contextmanager
def serving(served):
    """The address of a server of its own thread."""
    config = uvicorn.Config(dev_server.application(served), port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1/models/toy"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def address(folder):
    with serving(dev_server.Served(folder)) as address:
        yield address


def encoded(data):
    return {"b64": base64.b64encode(data).decode()}


def test_rows_and_columns(address):
    rows = requests.post(f"{address}:predict", json={"instances": [encoded(b"\xe2\x82\xac"), "four"]})
    expected = [{"num_detections": 3, "names": "€!"}, {"num_detections": 4, "names": "four!"}]
    assert (rows.status_code, rows.json()) == (200, {"predictions": expected})
    assert rows.headers["content-type"] == "application/json"
    columns = requests.post(f"{address}:predict", json={"inputs": {"image_bytes": ["four"]}})
    assert columns.json() == {"outputs": {"num_detections": [4], "names": ["four!"]}}


def test_another_signature_and_a_named_version(address):
    body = {"signature_name": "image_tensor", "instances": [[[[1, 2, 3], [3, 2, 255]]]]}
    answer = requests.post(f"{address}/versions/10:predict", json=body)
    assert answer.json() == {"predictions": [[3, 2, 255]]}


def test_status_and_metadata(address):
    state = {"version": "10", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for path in ("", "/versions/10"):
        assert requests.get(address + path).json() == {"model_version_status": [state]}
    about = requests.get(f"{address}/metadata").json()
    assert about["model_spec"] == {"name": "toy", "signature_name": "", "version": "10"}
    definition = about["metadata"]["signature_def"]["signature_def"]["image_tensor"]
    assert definition["method_name"] == "tensorflow/serving/predict"
    (tensor,) = definition["inputs"].values()
    assert tensor["dtype"] == "DT_UINT8" and not tensor["tensor_shape"]["unknown_rank"]
    assert [dim["size"] for dim in tensor["tensor_shape"]["dim"]] == ["-1", "-1", "-1", "3"]


@pytest.mark.parametrize(
    "method, path, code, says",
    [
        ("GET", "/versions/2", 404, "Could not find version 2 of model toy"),
        ("POST", "/versions/2:predict", 404, r"Servable not found for request: Specific\(toy, 2\)"),
        ("POST", "/labels/stable:predict", 400, "Unrecognized servable version label: stable"),
        ("POST", "/../other:predict", 404, r"Latest\(other\)"),
        ("GET", "/../other", 404, "any versions of model other"),
        ("POST", ":classify", 501, ":predict alone"),
        ("POST", ":nothing", 400, "Malformed request: POST /v1/models/toy:nothing"),
        ("GET", ":predict", 400, "Malformed request: GET"),
        ("GET", "/../../../", 404, "Malformed"),
        ("POST", ":predict", 400, "JSON Parse error"),
    ],
)
def test_errors_have_the_servers_codes(address, method, path, code, says):
    answer = requests.request(method, address + path)
    assert answer.status_code == code and list(answer.json()) == ["error"]
    assert re.search(says, answer.json()["error"])


def test_an_error_in_the_graph_is_told_and_the_next_request_answered(address):
    answer = requests.post(f"{address}:predict", json={"instances": ["bad"]})
    assert answer.status_code == 400 and "image 0: not an image" in answer.json()["error"]
    assert requests.post(f"{address}:predict", json={"instances": ["good"]}).ok


def test_a_body_too_large_is_refused(address, monkeypatch):
    monkeypatch.setattr(dev_server, "MOST_BYTES", 100)
    answer = requests.post(f"{address}:predict", json={"instances": ["x" * 200]})
    assert answer.status_code == 413 and "100 bytes" in answer.json()["error"]


def test_more_requests_than_may_wait_are_refused(folder, monkeypatch):
    served, entered, go_on = dev_server.Served(folder), threading.Event(), threading.Event()

    def slow(body):
        entered.set()
        assert go_on.wait(60)
        return "{}"

    monkeypatch.setattr(served, "predict", slow)
    monkeypatch.setattr(dev_server, "MOST_WAITING", 2)
    with serving(served) as address, concurrent.futures.ThreadPoolExecutor(2) as clients:
        try:
            both = [clients.submit(requests.post, f"{address}:predict", json={}) for _ in range(2)]
            assert entered.wait(60)
            deadline, codes = time.monotonic() + 60, []
            while 503 not in codes and time.monotonic() < deadline:  # until the second is seen to wait
                with contextlib.suppress(requests.Timeout):
                    codes.append(requests.post(f"{address}:predict", json={}, timeout=1).status_code)
            assert codes[-1] == 503
        finally:
            go_on.set()
        assert [answer.result().status_code for answer in both].count(200) >= 1


def test_a_folder_without_versions(tmp_path):
    with pytest.raises(FileNotFoundError, match="no version"):
        dev_server.Served(tmp_path)


def test_it_wants_to_hear_that_it_is_for_development(tmp_path):
    result = CliRunner().invoke(main, ["serve", str(tmp_path)])
    assert result.exit_code != 0 and "for development" in result.output
