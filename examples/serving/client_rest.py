"""Ask a served model over REST what is in a picture, and draw the answer.

    python examples/serving/client_rest.py PHOTO.jpg found.png --model nuclei

It needs requests, numpy and pillow, neither TensorFlow nor this package. The server is
TensorFlow Serving, or `mrcnn serve FOLDER --dev`.
"""

import argparse
import base64

import numpy as np
import requests
from PIL import Image, ImageDraw


def ask(address, model, encoded):
    """The answer to one image: a dictionary of the outputs that the export's `assets/README.md` describes.

    Args:
        address: of the server, as "http://localhost:8501".
        model: its name there.
        encoded: the bytes of an image file.
    """
    body = {"instances": [{"b64": base64.b64encode(encoded).decode()}]}
    response = requests.post(f"{address}/v1/models/{model}:predict", json=body, timeout=120)
    if not response.ok:
        raise SystemExit(f"HTTP {response.status_code}: {response.json()['error']}")
    return response.json()["predictions"][0]


def decode_rle(counts, height, width):
    """bool `[height, width]` of COCO's compressed run lengths.

    A run is written in groups of five bits, the lowest first, as a character from "0" on; its sixth bit says
    that more follow, the highest bit of the last group is the sign. From the fourth run on it is the
    difference from the run two before. Runs go down the columns, of zeros first.
    """
    runs, value, shift = [], 0, 0
    for character in counts.encode():
        group = character - 48
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            value -= (group & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(width, height).T


def draw(path, answer, threshold=0.5):
    """The picture with masks, boxes and names of what scores at least `threshold`, and how many these are."""
    picture = Image.open(path).convert("RGB")
    random = np.random.default_rng(0)
    shown = 0
    for index in range(answer["num_detections"]):
        score = answer["detection_scores"][index]
        if score < threshold:
            continue
        shown += 1
        color = tuple(int(part) for part in random.integers(64, 256, 3))
        counts = answer["detection_masks"][index] if "detection_masks" in answer else ""
        if isinstance(counts, str) and counts:
            mask = decode_rle(counts, picture.height, picture.width)
            picture.paste(color, mask=Image.fromarray(mask.astype(np.uint8) * 110))
        pen = ImageDraw.Draw(picture)
        box = answer["detection_boxes_pixels"][index]
        pen.rectangle(box, outline=color, width=2)
        pen.text(
            (box[0] + 3, box[1] + 1), f"{answer['detection_class_names'][index]} {score:.2f}", fill=color
        )
    return picture, shown


def main(ask=ask, address="http://localhost:8501"):
    """The command line, with any way to `ask`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture")
    parser.add_argument("output")
    parser.add_argument("--model", required=True)
    parser.add_argument("--address", default=address)
    parser.add_argument("--threshold", type=float, default=0.5)
    given = parser.parse_args()
    with open(given.picture, "rb") as file:
        answer = ask(given.address, given.model, file.read())
    if answer.get("error"):
        raise SystemExit(f"{given.picture}: {answer['error']}")
    drawn, shown = draw(given.picture, answer, given.threshold)
    drawn.save(given.output)
    print(f"{given.picture}: {shown} of {answer['num_detections']} detections -> {given.output}")


if __name__ == "__main__":
    main()
