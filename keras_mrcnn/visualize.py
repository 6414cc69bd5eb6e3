"""Pictures of objects: an image with masks, boxes and labels drawn on it, alone or two side by side.

Everything is in the pixels of the image. Needs OpenCV (the extra `viz`), imported at the first drawing.
"""

import colorsys
import pathlib

import numpy as np

_GOLDEN_RATIO = 0.618033988749895
_LUMINANCE = np.array([0.299, 0.587, 0.114])
_DARKEST = 0.42  # luminance 0..1 of the darkest colour
_SURE = 0.05  # score from which on a keypoint is drawn; a flat heat map of 56 x 56 cells has 0.0003
_TINY = 1.5  # lines of text; a box lower or narrower than that gets no label


def draw(
    image,
    boxes,
    masks=None,
    labels=None,
    scores=None,
    opacity=0.45,
    max_labels=30,
    scale=1,
    keypoints=None,
    skeletons=None,
    keypoint_threshold=_SURE,
):
    """Draws objects on an image: a tint and an outline for the mask, a thin box, a skeleton, a small label.

    The n-th object always has the n-th colour. A box too small to carry a label gets none, and with more
    than `max_labels` objects none gets one; where there is no label, a mask is drawn without its box.

    Args:
        image: uint8 `[H, W, 3]` RGB, `[H, W]` or `[H, W, 1]` grey; not changed.
        boxes: `[N, 4]`, (x1, y1, x2, y2), pixels of `image`.
        masks: bool `[N, H, W]`, or None; single masks may be None.
        labels: list of str `[N]`, or None.
        scores: `[N]`, written behind the labels with two digits, or None.
        opacity: 0..1, of the tint.
        max_labels: with more objects than this, no text is written.
        scale: integer factor by which the picture is enlarged first, for small images.
        keypoints: `[N, K, 3]`, (x, y, score), pixels of `image`; or with COCO's v, 0 for what is not there,
            in place of the score; or None.
        skeletons: for each object the pairs of keypoints, from 0, that a line connects; or None: points only.
        keypoint_threshold: points of a lower score, and lines to them, are not drawn; nor are those of 0.

    Returns:
        uint8 `[H * scale, W * scale, 3]` RGB.

    Raises:
        ValueError: the image is not uint8 or the arguments differ in number.
        ImportError: OpenCV is not installed.
    """
    cv2 = _opencv()
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4) * scale
    count = len(boxes)
    objects = {"masks": masks, "labels": labels, "scores": scores}
    objects |= {"keypoints": keypoints, "skeletons": skeletons}
    for name, values in objects.items():
        if values is not None and len(values) != count:
            raise ValueError(f"`{name}` must be as many as `boxes`, {count}. Received: {len(values)}")
    picture = np.repeat(np.repeat(_as_rgb(image), scale, 0), scale, 1)
    masks = [None] * count if masks is None else masks
    masks = [_scaled(mask, scale, picture.shape[:2]) for mask in masks]
    colours = [colour(index) for index in range(count)]
    line = max(1, round(min(picture.shape[:2]) / 500))
    sides = np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    row = _line_height(cv2, _font_size(picture.shape[:2]))
    roomy = (sides >= _TINY * row) & (count <= max_labels)
    # large objects first, so that small ones lie on top of them
    order = np.argsort(-(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), kind="stable")
    for index in order:
        if masks[index] is not None:
            _tint(picture, masks[index], colours[index], opacity)
    for index in order:
        if masks[index] is not None:
            _outline(cv2, picture, masks[index], colours[index], line)
        if masks[index] is None or roomy[index]:
            _box(cv2, picture, boxes[index], colours[index], line)
    for index in order if keypoints is not None else ():
        points = np.asarray(keypoints[index], np.float64) * [scale, scale, 1]
        sure = (points[:, 2] >= keypoint_threshold) & (points[:, 2] > 0)
        skeleton = () if skeletons is None else skeletons[index]
        _skeleton(cv2, picture, points[:, :2], sure, skeleton, colours[index], line)
    texts = [_text(labels, scores, index) if roomy[index] else "" for index in range(count)]
    _write_labels(cv2, picture, boxes, texts, colours)
    return picture


def side_by_side(true, predicted, titles=("true", "predicted")):
    """Two pictures next to each other, each below its title.

    Args:
        true, predicted: uint8 RGB or grey pictures; the lower one gets a white margin at its foot.
        titles: two strings.

    Returns:
        uint8 RGB picture.
    """
    cv2 = _opencv()
    pictures = [_as_rgb(true), _as_rgb(predicted)]
    body = max(picture.shape[0] for picture in pictures)
    size = _font_size(np.array([picture.shape[:2] for picture in pictures]).max(axis=0)) * 1.2
    head = int(_line_height(cv2, size) * 1.8)
    gap = max(4, head // 4)
    width = sum(picture.shape[1] for picture in pictures) + gap
    whole = np.full((head + body, width, 3), 255, np.uint8)
    left = 0
    for picture, title in zip(pictures, titles, strict=True):
        height, width = picture.shape[:2]
        whole[head : head + height, left : left + width] = picture
        panel = whole[:head, left : left + width]
        _put_text(cv2, panel, title, (gap, int(head * 0.68)), size, (0, 0, 0))
        left += width + gap
    return whole


def colour(index):
    """The colour of the n-th object, (red, green, blue) 0..255; neighbours in the list differ most."""
    hue = (0.58 + index * _GOLDEN_RATIO) % 1.0
    saturation = (0.9, 0.65, 1.0)[index // 8 % 3]
    value = (1.0, 0.9, 0.8)[index // 5 % 3]
    rgb = np.array(colorsys.hsv_to_rgb(hue, saturation, value))
    # pure blue and violet are lightened: they would be lost on a dark ground
    white = max(0.0, (_DARKEST - _LUMINANCE @ rgb) / (1.0 - _LUMINANCE @ rgb))
    return tuple(round(255 * part) for part in (rgb + white * (1.0 - rgb)).tolist())


def write_image(path, picture):
    """Writes a uint8 RGB picture; the ending of `path` gives the format.

    Raises:
        ValueError: OpenCV knows no such format.
        OSError: the file cannot be written.
    """
    cv2 = _opencv()
    path = pathlib.Path(path)
    if not cv2.haveImageWriter("picture" + path.suffix):
        raise ValueError(f"`path` must end as a picture does (.png, .jpg, ...). Received: path={str(path)!r}")
    _, encoded = cv2.imencode(path.suffix.lower(), np.ascontiguousarray(picture[..., ::-1]))
    path.write_bytes(encoded.tobytes())


def _opencv():
    try:
        import cv2
    except ImportError as error:
        raise ImportError('Drawing needs OpenCV: pip install "keras_mrcnn[viz]"') from error
    return cv2


def _as_rgb(image):
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (3,)):
        raise ValueError(
            "`image` must be uint8 of shape [H, W, 3] (RGB), [H, W, 1] or [H, W]. "
            f"Received: dtype={image.dtype}, shape={image.shape}"
        )
    image = image[..., None] if image.ndim == 2 else image
    return np.array(np.broadcast_to(image, (*image.shape[:2], 3)))


def _scaled(mask, scale, size):
    if mask is None:
        return None
    mask = np.repeat(np.repeat(np.asarray(mask, bool), scale, 0), scale, 1)
    if mask.shape != size:
        raise ValueError(
            "`masks` must have the size of the image. "
            f"Received: a mask of {mask.shape[0] // scale}x{mask.shape[1] // scale}, "
            f"an image of {size[0] // scale}x{size[1] // scale}"
        )
    return mask


def _tint(picture, mask, rgb, opacity):
    picture[mask] = ((1 - opacity) * picture[mask] + opacity * np.array(rgb)).astype(np.uint8)


def _outline(cv2, picture, mask, rgb, line):
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, rgb, line, cv2.LINE_8)


def _box(cv2, picture, box, rgb, line):
    height, width = picture.shape[:2]
    x1, y1 = np.clip(np.floor(box[:2]), 0, [width - 1, height - 1]).astype(int).tolist()
    x2, y2 = np.clip(np.ceil(box[2:]) - 1, 0, [width - 1, height - 1]).astype(int).tolist()
    cv2.rectangle(picture, (x1, y1), (x2, y2), rgb, line, cv2.LINE_8)


def _skeleton(cv2, picture, points, sure, skeleton, rgb, line):
    """Lines with a dark rim, so that they are seen on the tint of their own mask, and light points."""
    places = [tuple(place) for place in np.floor(points).astype(int).tolist()]
    lines = [(places[a], places[b]) for a, b in skeleton if sure[a] and sure[b]]
    for width, ink in ((3 * line, (0, 0, 0)), (line, rgb)):
        for start, end in lines:
            cv2.line(picture, start, end, ink, width, cv2.LINE_AA)
    for place in (places[index] for index in np.flatnonzero(sure)):
        cv2.circle(picture, place, 2 * line, rgb, -1, cv2.LINE_AA)
        cv2.circle(picture, place, line, (255, 255, 255), -1, cv2.LINE_AA)


def _text(labels, scores, index):
    parts = [] if labels is None else [str(labels[index])]
    parts += [] if scores is None else [f"{float(scores[index]):.2f}"]
    return " ".join(parts)


def _write_labels(cv2, picture, boxes, texts, colours):
    """Each label above its box, or inside where there is no room; never on top of another label."""
    height, width = picture.shape[:2]
    size = _font_size((height, width))
    row = _line_height(cv2, size)
    taken = []
    for box, text, rgb in zip(boxes, texts, colours, strict=True):
        if not text:
            continue
        length = _text_width(cv2, text, size) + row // 2
        left = int(np.clip(box[0], 0, max(width - length, 0)))
        for top in (box[1] - row, box[1], box[3] - row, box[3]):
            top = int(np.clip(top, 0, max(height - row, 0)))
            area = (left, top, left + length, top + row)
            if not any(_touch(area, other) for other in taken):
                break
        else:
            continue
        taken.append(area)
        picture[top : top + row, left : left + length] = rgb
        ink = (0, 0, 0) if _LUMINANCE @ np.array(rgb) > 140 else (255, 255, 255)
        _put_text(cv2, picture, text, (left + row // 4, top + int(row * 0.75)), size, ink)


def _touch(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _font_size(shape):
    """OpenCV's font scale, at which a line of text is about a thirtieth of the short side high."""
    return max(min(shape) / 1000, 0.33)


def _thickness(size):
    return max(1, round(1.5 * size))


def _line_height(cv2, size):
    (_, height), baseline = cv2.getTextSize("Ag", cv2.FONT_HERSHEY_SIMPLEX, size, _thickness(size))
    return height + baseline + 1


def _text_width(cv2, text, size):
    (width, _), _ = cv2.getTextSize(_ascii(text), cv2.FONT_HERSHEY_SIMPLEX, size, _thickness(size))
    return width


def _ascii(text):
    return text.encode("ascii", "replace").decode()


def _put_text(cv2, picture, text, origin, size, rgb):
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(picture, _ascii(text), origin, font, size, rgb, _thickness(size), cv2.LINE_AA)
