"""The same as client_rest.py over gRPC: less to send, and faster to read.

    python examples/serving/client_grpc.py PHOTO.jpg found.png --model nuclei

It needs tensorflow-serving-api, which brings TensorFlow for its messages, numpy and pillow.
"""

import client_rest
import grpc
import numpy as np
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

MOST_BYTES = 256 * 2**20  # of an answer; gRPC's own limit is 4 MiB
FLOAT, INT32, STRING, INT64 = 1, 3, 7, 9  # tensorflow/core/framework/types.proto
FIELDS = {FLOAT: ("float_val", "<f4"), INT32: ("int_val", "<i4"), INT64: ("int64_val", "<i8")}


def ask(address, model, encoded):
    """See `client_rest.ask`; the address has no scheme: "localhost:8500"."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = "serving_default"
    tensor = request.inputs["image_bytes"]
    tensor.dtype = STRING
    tensor.string_val.append(encoded)
    tensor.tensor_shape.dim.add(size=1)
    options = [("grpc.max_receive_message_length", MOST_BYTES), ("grpc.max_send_message_length", MOST_BYTES)]
    with grpc.insecure_channel(address, options) as channel:
        service = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        try:
            response = service.Predict(request, timeout=120)
        except grpc.RpcError as error:
            raise SystemExit(f"{error.code().name}: {error.details()}") from error
    return {name: values(name, tensor)[0] for name, tensor in response.outputs.items()}


def values(name, tensor):
    """The values of a `TensorProto` as nested lists; text is decoded, files (`..._bytes`) stay bytes."""
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    if tensor.dtype == STRING:
        texts = (
            tensor.string_val if name.endswith("_bytes") else [text.decode() for text in tensor.string_val]
        )
        return np.array(texts, object).reshape(shape).tolist()
    field, dtype = FIELDS[tensor.dtype]
    if tensor.tensor_content:
        return np.frombuffer(tensor.tensor_content, dtype).reshape(shape).tolist()
    return np.array(getattr(tensor, field), dtype).reshape(shape).tolist()


if __name__ == "__main__":
    client_rest.main(ask, "localhost:8500")
