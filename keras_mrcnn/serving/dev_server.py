"""A stand-in for TensorFlow Serving's REST interface on a developer's machine: not for production.

It needs TensorFlow and an export, no model code. It serves the highest version that is there when it starts,
one request after the other; others wait, up to a limit.
"""

import asyncio
import concurrent.futures
import contextlib
import functools
import json
import pathlib
import re

import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import saved_model_pb2

from keras_mrcnn.serving import rest

MOST_BYTES = 64 * 2**20  # of a request's body
MOST_WAITING = 16  # requests, the one at work included
_VERSION = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_PREDICT = re.compile(rf"/v1/models/(?P<name>[^/:]+){_VERSION}:(?P<method>predict|classify|regress)", re.I)
_STATUS = re.compile(rf"/v1/models/(?P<name>[^/:]+){_VERSION}(?P<metadata>/metadata)?", re.I)
# tf.errors' codes as HTTP's, as the server does it; 500 for others.
_HTTP = {1: 499, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 9: 400, 10: 409, 11: 400, 12: 501, 14: 503}


class RestError(Exception):
    """An answer that is an error: HTTP's code and what to say."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class Served:
    """The highest version of an export.

    Args:
        folder: path that holds folders with numbers for names, of SavedModels. Its name is the model's.

    Raises:
        FileNotFoundError: there is no version in it.
    """

    def __init__(self, folder):
        folder = pathlib.Path(folder).resolve()
        versions = [path for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()]
        if not versions:
            raise FileNotFoundError(
                f"{folder} holds no version, which is a folder with a number for a name. Give the OUTPUT of "
                "`mrcnn export`."
            )
        path = max(versions, key=lambda path: int(path.name))
        self.name, self.version = folder.name, path.name
        self.loaded = tf.saved_model.load(path)
        graph = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes()).meta_graphs[0]
        self.definitions = graph.signature_def
        self.inputs = {
            name: function.structured_input_signature[1] for name, function in self.loaded.signatures.items()
        }

    def predict(self, body):
        """The answer to a request's body, JSON text.

        Raises:
            RestError: the request is refused, or fails.
        """
        try:
            name, tensors, rows = rest.request(body, self.inputs)
            found = self.loaded.signatures[name](**tensors)
            return rest.answer({key: value.numpy() for key, value in found.items()}, rows)
        except tf.errors.OpError as error:
            raise RestError(_HTTP.get(error.error_code, 500), error.message) from error
        except (ValueError, TypeError) as error:
            raise RestError(400, str(error)) from error

    def check(self, name, version, label, where):
        """Raises `RestError` when this is not the model that is asked for."""
        if label:
            raise RestError(400, f"Unrecognized servable version label: {label}")
        if name != self.name or version and int(version) != int(self.version):
            raise RestError(404, where)

    def status(self):
        """The answer to `GET /v1/models/NAME`."""
        state = {"version": self.version, "state": "AVAILABLE"}
        state["status"] = {"error_code": "OK", "error_message": ""}
        return {"model_version_status": [state]}

    def metadata(self):
        """The answer to `GET /v1/models/NAME/metadata`."""
        definitions = {
            name: {
                "inputs": {key: _described(info) for key, info in definition.inputs.items()},
                "outputs": {key: _described(info) for key, info in definition.outputs.items()},
                "method_name": definition.method_name,
            }
            for name, definition in self.definitions.items()
        }
        return {
            "model_spec": {"name": self.name, "signature_name": "", "version": self.version},
            "metadata": {"signature_def": {"signature_def": definitions}},
        }


def _described(info):
    dimensions = [{"size": str(dim.size), "name": dim.name} for dim in info.tensor_shape.dim]
    shape = {"dim": dimensions, "unknown_rank": info.tensor_shape.unknown_rank}
    return {"dtype": types_pb2.DataType.Name(info.dtype), "tensor_shape": shape, "name": info.name}


def application(served):
    """The web application (ASGI) of a `Served`."""
    starlette = _web()[0]
    worker = concurrent.futures.ThreadPoolExecutor(1)
    waiting = 0

    async def predict(request, name, version, label, method):
        nonlocal waiting
        wanted = f"Specific({name}, {version})" if version else f"Latest({name})"
        served.check(name, version, label, f"Servable not found for request: {wanted}")
        if method.lower() != "predict":
            raise RestError(501, f"This development server has :predict alone, no :{method}.")
        if waiting >= MOST_WAITING:
            raise RestError(503, f"{waiting} requests are waiting already")
        waiting += 1
        try:
            body = await _body(request)
            return await asyncio.get_running_loop().run_in_executor(worker, served.predict, body)
        finally:
            waiting -= 1

    async def tell(name, version, label, metadata):
        which = f"version {version} of model {name}" if version else f"any versions of model {name}"
        served.check(name, version, label, f"Could not find {which}")
        return json.dumps(served.metadata() if metadata else served.status(), indent=1)

    async def handle(request):
        path, code = request.url.path, 200
        try:
            if request.method == "POST" and (asked := _PREDICT.fullmatch(path)):
                text = await predict(request, **asked.groupdict())
            elif request.method == "GET" and (asked := _STATUS.fullmatch(path)):
                text = await tell(**asked.groupdict())
            else:
                raise RestError(
                    400 if path.startswith("/v1/") else 404, f"Malformed request: {request.method} {path}"
                )
        except RestError as error:
            code, text = error.code, json.dumps({"error": str(error)})
        return starlette.responses.Response(text, code, media_type="application/json")

    @contextlib.asynccontextmanager
    async def lifespan(_):
        yield
        worker.shutdown()

    every = starlette.routing.Route("/{path:path}", handle, methods=["GET", "POST"])
    return starlette.applications.Starlette(routes=[every], lifespan=lifespan)


async def _body(request):
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MOST_BYTES:
            raise RestError(413, f"The request is larger than {MOST_BYTES} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


@functools.cache
def _web():
    try:
        import starlette.applications
        import starlette.responses
        import starlette.routing
        import uvicorn
    except ImportError as error:
        raise ImportError(
            'The development server is an extra: pip install "keras_mrcnn[serving-dev]"'
        ) from error
    return starlette, uvicorn


def run(folder, host="127.0.0.1", port=8501):
    """Serve an export until the process is interrupted or terminated; requests at work are finished.

    Args:
        folder: see `Served`.
        host, port: where to listen. There is no access control: other than loopback is at your own risk.
    """
    _, uvicorn = _web()
    served = Served(folder)
    print(
        f"DEVELOPMENT server, not for production: version {served.version} of {served.name} at "
        f"http://{host}:{port}/v1/models/{served.name}",
        flush=True,
    )
    uvicorn.run(application(served), host=host, port=port, log_level="warning", timeout_graceful_shutdown=60)
