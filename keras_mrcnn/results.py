"""What a model found in one image, in the pixels of that image.

In come the detections of one image in the network frame; out go boxes, masks, keypoints, COCO results and
pictures in the source frame (the file as decoded). Letters: N detections, M mask side, K keypoints, H and W
the source image.
"""

import dataclasses
import json
import pathlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from keras_mrcnn.geometry import masks as mask_geometry

_SCORES_IN_REPR = 5


@dataclass(eq=False, repr=False)
class Results:
    """Detections of one image in its source frame, best first.

    Attributes:
        boxes: float32 `[N, 4]`, (x1, y1, x2, y2), source pixels, inside the image, of positive area.
        scores: float32 `[N]`, 0..1.
        classes: int32 `[N]`, index into `categories`.
        mask_probabilities: float32 `[N, M, M]` over the boxes, or None of a model without masks.
        height, width: size of the source image, pixels.
        categories: objects with `.id` (the dataset's own) and `.name`.
        image: uint8 `[H, W, 3]` RGB source image, or None; needed by `plot` and by `save` of a picture.
        image_id: the dataset's own, or None.
        paste: how masks come from their boxes to pixels, see `config.MaskHead`.
        keypoints: float32 `[N, K, 3]`, (x, y, score), source pixels where pixel i covers [i, i + 1], or None
            of a model without. A category with fewer than K keypoints has its own first; the rest is 0.

    Example:

    >>> results = Results.from_detections(detections, (800, 1067), (480, 640), categories, image)
    >>> results.names, results.scores, results.masks.shape
    >>> results.save("found.png")
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    mask_probabilities: np.ndarray | None
    height: int
    width: int
    categories: list
    image: np.ndarray | None = None
    image_id: Any = None
    paste: str = "centres"
    keypoints: np.ndarray | None = None

    @classmethod
    def from_detections(
        cls,
        detections,
        network_size,
        source_size,
        categories,
        image=None,
        image_id=None,
        paste="centres",
    ) -> "Results":
        """Brings one image's output of the model into the source frame.

        Boxes are scaled (x and y separately, as the image was), clipped to the image, and those that
        have no area then are dropped, together with their scores, classes, masks and keypoints.

        Args:
            detections: dict of arrays of ONE image: `boxes` `[D, 4]` network pixels, `scores` `[D]`,
                `classes` `[D]`, `num_detections` (an integer; the rows behind it are padding) and, of a
                model with masks, `masks` `[D, M, M]`, of one with keypoints, `keypoints` `[D, K, 3]`,
                (x, y, score), network pixels.
            network_size: (height, width) of the resized image in the network frame, without padding.
            source_size: (height, width) of the source image.
            categories: objects with `.id` and `.name`, in the order of the class indices.
            image: uint8 `[H, W, 3]` RGB source image, to draw on.
            image_id: the dataset's own id.
            paste: "centres" or "widened", see `config.MaskHead`.

        Returns:
            `Results`, in the order of the detections.

        Raises:
            ValueError: a class index has no category, or the image is not of the source size.
        """
        height, width = (int(size) for size in source_size)
        count = int(np.asarray(detections["num_detections"]).reshape(()))
        boxes = np.array(detections["boxes"][:count], np.float32).reshape(-1, 4)
        classes = np.asarray(detections["classes"][:count]).astype(np.int32)
        if len(classes) and not 0 <= classes.min() <= classes.max() < len(categories):
            raise ValueError(
                f"`classes` must be indices into the {len(categories)} categories. "
                f"Received: classes from {classes.min()} to {classes.max()}, image_id={image_id!r}"
            )
        if image is not None and tuple(image.shape[:2]) != (height, width):
            raise ValueError(
                "`image` must be the source image, of `source_size` (height, width). "
                f"Received: image.shape={image.shape}, source_size={(height, width)}, image_id={image_id!r}"
            )
        scale = width / float(network_size[1]), height / float(network_size[0])
        boxes[:, 0::2] = np.clip(boxes[:, 0::2] * scale[0], 0, width)
        boxes[:, 1::2] = np.clip(boxes[:, 1::2] * scale[1], 0, height)
        keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        masks = detections.get("masks")
        if masks is not None:
            masks = np.asarray(masks[:count]).astype(np.float32)[keep]
        keypoints = detections.get("keypoints")
        if keypoints is not None:
            keypoints = np.array(keypoints[:count], np.float32)[keep]
            keypoints[..., :2] *= scale
        return cls(
            boxes=boxes[keep],
            scores=np.asarray(detections["scores"][:count]).astype(np.float32)[keep],
            classes=classes[keep],
            mask_probabilities=masks,
            height=height,
            width=width,
            categories=list(categories),
            image=None if image is None else np.asarray(image),
            image_id=image_id,
            paste=paste,
            keypoints=keypoints,
        )

    def __len__(self):
        return len(self.boxes)

    def __repr__(self):
        """For example `3 detections in 480x640: 2 nucleus 0.99 0.87, 1 cell 0.51` (height x width)."""
        noun = "detection" if len(self) == 1 else "detections"
        text = f"{len(self) or 'no'} {noun} in {self.height}x{self.width}"
        parts = []
        for index in dict.fromkeys(self.classes.tolist()):
            scores = self.scores[self.classes == index]
            shown = " ".join(f"{score:.2f}" for score in scores[:_SCORES_IN_REPR])
            more = " ..." if len(scores) > _SCORES_IN_REPR else ""
            parts.append(f"{len(scores)} {self.categories[index].name} {shown}{more}")
        return text + (": " + ", ".join(parts) if parts else "")

    def above(self, threshold):
        """The `Results` of those detections whose score is at least `threshold`."""
        keep = self.scores >= threshold
        masks, keypoints = self.mask_probabilities, self.keypoints
        return dataclasses.replace(
            self,
            boxes=self.boxes[keep],
            scores=self.scores[keep],
            classes=self.classes[keep],
            mask_probabilities=None if masks is None else masks[keep],
            keypoints=None if keypoints is None else keypoints[keep],
        )

    @property
    def names(self):
        """list of str `[N]`: the name of each detection's category."""
        return [self.categories[index].name for index in self.classes]

    @property
    def category_ids(self):
        """list `[N]`: the dataset's own id of each detection's category."""
        return [self.categories[index].id for index in self.classes]

    @property
    def keypoint_names(self):
        """list of tuple of str `[N]`: the names of each detection's keypoints; None of a model without."""
        if self.keypoints is None:
            return None
        return [tuple(self.categories[index].keypoints) for index in self.classes]

    @cached_property
    def masks(self):
        """bool `[N, H, W]` in source pixels, made when first asked for; None of a model without masks."""
        if self.mask_probabilities is None:
            return None
        masks = np.zeros((len(self), self.height, self.width), bool)
        for mask, (top, left, patch) in zip(masks, self._patches(), strict=True):
            mask[top : top + patch.shape[0], left : left + patch.shape[1]] = patch
        return masks

    def rles(self):
        """list of dict `[N]`: COCO's compressed run lengths, `size` and `counts` (str)."""
        if self.mask_probabilities is None:
            raise ValueError("These results have no masks: the model has no mask head.")
        rles = []
        for top, left, patch in self._patches():
            counts = mask_geometry.run_lengths(patch, top, left, self.height, self.width)
            size = [self.height, self.width]
            rle = coco_mask.frPyObjects({"size": size, "counts": counts}, self.height, self.width)
            rles.append({"size": size, "counts": rle["counts"].decode("ascii")})
        return rles

    def to_coco(self, segmentations=True):
        """The detections in COCO's result format, ready for `json.dump`.

        Args:
            segmentations: False leaves the masks out, and with them most of the work.

        Returns:
            list of dict `[N]`: `image_id`, `category_id`, `bbox` (x, y, width, height), `score` and, of a
            model with masks, `segmentation`, of one with keypoints and a category that has any, `keypoints`
            (x, y, 1, ..., pixel indices).
        """
        image_id = _plain(self.image_id)
        found = []
        rows = zip(self.boxes.tolist(), self.scores.tolist(), self.category_ids, strict=True)
        for (x1, y1, x2, y2), score, category_id in rows:
            bbox = [x1, y1, x2 - x1, y2 - y1]
            category_id = _plain(category_id)
            found.append({"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score})
        if self.keypoints is not None:
            for result, points, names in zip(found, self.keypoints, self.keypoint_names, strict=True):
                if names:
                    indices = points[: len(names), :2].astype(np.float64) - 0.5
                    flat = np.concatenate([indices, np.ones((len(names), 1))], axis=1)
                    result["keypoints"] = flat.ravel().tolist()
        if segmentations and self.mask_probabilities is not None:
            for result, rle in zip(found, self.rles(), strict=True):
                result["segmentation"] = rle
        return found

    def plot(self, **options):
        """The image with the detections drawn on it.

        Args:
            **options: of `keras_mrcnn.visualize.draw`.

        Returns:
            uint8 RGB picture.

        Raises:
            ValueError: the results carry no image.
        """
        if self.image is None:
            raise ValueError(
                "These results carry no image to draw on. Pass `image=` (uint8 [H, W, 3], RGB) when making "
                "them, or set `results.image`."
            )
        from keras_mrcnn import visualize

        if self.keypoints is not None:
            skeletons = [self.categories[index].skeleton for index in self.classes]
            options = {"keypoints": self.keypoints, "skeletons": skeletons, **options}
        return visualize.draw(self.image, self.boxes, self.masks, self.names, self.scores, **options)

    def save(self, path):
        """Writes the drawn picture (.png, .jpg, .jpeg) or the COCO results (.json).

        Raises:
            ValueError: another file ending, or a picture is wanted and there is no image.
            OSError: the file cannot be written.
        """
        path = pathlib.Path(path)
        ending = path.suffix.lower()
        if ending == ".json":
            path.write_text(json.dumps(self.to_coco()), encoding="utf-8")
        elif ending in (".png", ".jpg", ".jpeg"):
            picture = self.plot()
            from keras_mrcnn import visualize

            visualize.write_image(path, picture)
        else:
            raise ValueError(
                f"`path` must end in .png, .jpg, .jpeg (the drawn picture) or .json (COCO results). "
                f"Received: path={str(path)!r}"
            )

    def _patches(self):
        for probabilities, box in zip(self.mask_probabilities, self.boxes, strict=True):
            if self.paste == "widened":
                box = mask_geometry.widened(box, probabilities.shape[0])
            yield mask_geometry.paste_patch(probabilities, box, self.height, self.width)


def _plain(value):
    """A numpy scalar as the Python number that `json` takes."""
    return value.item() if isinstance(value, np.generic) else value
