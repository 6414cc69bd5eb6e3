"""TensorFlow Serving's REST form of tensors: JSON of a request to tensors, tensors of an answer to JSON.

The rules are those of https://www.tensorflow.org/tfx/serving/api_rest and of the server's `json_tensor.cc`:
which keys there are, what may be left out, what is base64, and what is refused.
"""

import base64
import json

import numpy as np
import tensorflow as tf

_BYTES = "_bytes"  # a string output of such a name is not text, and is written in base64


def request(body, signatures):
    """What a body asks for.

    Args:
        body: bytes, JSON.
        signatures: {name: {input: `tf.TensorSpec`}}.

    Returns:
        Tuple of the signature's name, {input: tensor}, and whether the answer has rows.

    Raises:
        ValueError: it is not what TensorFlow Serving takes.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"JSON Parse error: {error}") from error
    if not isinstance(given, dict):
        raise ValueError("JSON Value is not an object")
    name = given.get("signature_name", "") or "serving_default"
    if not isinstance(name, str):
        raise ValueError("'signature_name' key must be a string value.")
    if name not in signatures:
        raise ValueError(f'Serving signature name: "{name}" not found in signature def')
    specs, rows = signatures[name], "instances" in given
    if rows == ("inputs" in given):
        raise ValueError(
            "Expecting only one of 'inputs' or 'instances' keys"
            if rows
            else "Missing 'inputs' or 'instances' key"
        )
    columns = _of_instances(given["instances"], specs) if rows else _of_inputs(given["inputs"], specs)
    return name, {key: _tensor(key, columns[key], spec.dtype) for key, spec in specs.items()}, rows


def _of_instances(instances, specs):
    if not isinstance(instances, list) or not instances:
        raise ValueError("Expecting 'instances' to be a list with at least one value")
    if not _is_object(instances[0]):
        if len(specs) > 1:
            raise ValueError(
                "instances is a plain list, but expecting list of objects as multiple input tensors required"
            )
        return {next(iter(specs)): instances}
    for number, instance in enumerate(instances):
        if not _is_object(instance) or set(instance) != set(specs):
            raise ValueError(
                f"Failed to process element: {number} of 'instances' list. "
                f"Expecting an object whose keys are equal to: {','.join(sorted(specs))}"
            )
    return {key: [instance[key] for instance in instances] for key in specs}


def _of_inputs(inputs, specs):
    if _is_object(inputs):
        missing = [key for key in specs if key not in inputs]
        if missing:
            raise ValueError(f"Missing named input: {missing[0]} in 'inputs' object.")
        return inputs
    if len(specs) > 1:
        raise ValueError(
            "inputs is a plain value/list, but expecting an object as multiple input tensors required"
        )
    return {next(iter(specs)): inputs}


def _is_base64(value):
    return isinstance(value, dict) and list(value) == ["b64"] and isinstance(value["b64"], str)


def _is_object(value):
    return isinstance(value, dict) and not _is_base64(value)


def _tensor(key, value, dtype):
    try:
        if dtype == tf.string:
            return tf.constant(_strings(value), dtype)
        array = np.array(value)
        kinds = {"f": "if", "b": "b"}.get(np.dtype(dtype.as_numpy_dtype).kind, "i")
        if array.size and array.dtype.kind not in kinds:
            raise ValueError(f"it holds {array.dtype}")
        if dtype.is_integer and array.size and not dtype.min <= array.min() <= array.max() <= dtype.max:
            raise ValueError(f"it holds {array.min()} to {array.max()}")
        return tf.constant(array, dtype)
    except (ValueError, TypeError) as error:
        raise ValueError(f"JSON value of '{key}' is not a tensor of type {dtype.name}: {error}") from error


def _strings(value):
    if isinstance(value, list):
        return [_strings(item) for item in value]
    if _is_base64(value):
        text = value["b64"]
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    if isinstance(value, str):
        return value.encode()
    raise ValueError(f"{type(value).__name__} is neither text nor an object of b64")


def answer(tensors, rows):
    """The JSON text of an answer.

    Args:
        tensors: {output: numpy array}.
        rows: bool, the request came as `instances`.

    Raises:
        ValueError: TensorFlow Serving could not write it.
    """
    values = {key: _values(key, array) for key, array in sorted(tensors.items())}
    if rows:
        sizes = {key: array.shape[:1] for key, array in tensors.items()}
        if len(set(sizes.values())) > 1 or () in sizes.values():
            raise ValueError(f"Outputs have inconsistent batch sizes: {sizes}")
        values = {key: list(value) for key, value in values.items()}
        found = [dict(zip(values, row)) for row in zip(*values.values())]
        if len(values) == 1:
            (found,) = values.values()
        return json.dumps({"predictions": found})
    if len(values) == 1:
        (values,) = values.values()
    return json.dumps({"outputs": values})


def _values(key, array):
    if array.dtype.kind in "OSU":
        return _texts(key, array.tolist())
    if array.dtype == np.float32:
        # The shortest decimal that is this float32; as a Python float it would have noise behind it.
        array = array.astype(str).astype(np.float64)
    return array.tolist()


def _texts(key, value):
    if isinstance(value, list):
        return [_texts(key, item) for item in value]
    if key.endswith(_BYTES):
        return {"b64": base64.b64encode(value).decode()}
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"Output '{key}' holds bytes that are no text. TensorFlow Serving writes base64 only of outputs "
            f"whose name ends in {_BYTES}, and broken JSON of this one: ask over gRPC."
        ) from error
