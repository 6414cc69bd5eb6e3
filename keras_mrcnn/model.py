"""Mask R-CNN, assembled (He et al., *Mask R-CNN*, Figures 1 and 4).

Letters: B images, A anchors, P proposals, R sampled regions, D detections, G true objects, C classes without
background, M mask side.
"""

import functools
import io
import pathlib
import tempfile
import zipfile

import h5py
import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_mrcnn import assembly, losses, replicas, tta
from keras_mrcnn import config as configs
from keras_mrcnn.data.images import load_image, network_frame, path_of
from keras_mrcnn.data.records import Category
from keras_mrcnn.results import Results
from keras_mrcnn.roi.mask_head import of_class
from keras_mrcnn.roi.targets import box_targets, keypoint_targets, mask_targets


@keras.saving.register_keras_serializable(package="keras_mrcnn")
class MaskRCNN(keras.Model):
    """Mask R-CNN, with every backbone and head of the paper's tables.

    Inputs, a dictionary:
        images: uint8 or float `[B, H, W, 3]`, RGB 0-255, in the network frame (resized, padded right and
            bottom); normalisation is inside the model. As many channels as `config.input.mean` has.
        image_sizes: int32 `[B, 2]`, valid height and width of each, pixels.

    Outputs, a dictionary, in the network frame, best first, padded with zeros:
        boxes: float32 `[B, D, 4]`, (x1, y1, x2, y2), pixels.
        scores: float32 `[B, D]`.
        classes: int32 `[B, D]`, index into `categories`.
        num_detections: int32 `[B]`, valid rows.
        masks: float32 `[B, D, M, M]`, probabilities of the detected class over its box; absent when
            `config.mask_head.enabled` is False.
        keypoints: float32 `[B, D, K, 3]`, (x, y, score); only when `config.keypoint_head.enabled`.

    Targets of `fit` and `evaluate`, a dictionary (`data.pipeline` makes it):
        boxes: float32 `[B, G, 4]`; classes: int32 `[B, G]`; valid: bool `[B, G]`, False for padding.
        masks: `[B, G, S, S]`, 0 or 1, each cut to its own box; has_mask: bool `[B, G]`.
        keypoints: float32 `[B, G, K, 3]`, (x, y, v), v 0: not labelled; for a model with that head.

    Args:
        config: a `config.Model`, or the dictionary that `get_config` made of one.
        categories: for each class its `Category` (or a dictionary as in a COCO json, or just a name).
        seed: int or None, of the random sampling in training.
        epochs_done: int, epochs trained so far; `training.checkpoints.Checkpoints` counts them.
        backbone: a layer or functional Keras model that gives C2..C5 (strides 4, 8, 16, 32) of normalised
            images, instead of the one that the config names; it is saved with the model.

    Attributes:
        micro_batches: int, 1; parts in which a batch of `fit` goes through, so that it takes less memory.

    Example:
        >>> model = MaskRCNN(config.load("nuclei_r18_fpn").model, ["nucleus"])
        >>> model.compile(keras.optimizers.SGD(0.01, momentum=0.9))
        >>> model.fit(dataset)
    """

    def __init__(
        self, config, categories, seed=None, epochs_done=0, dtype=None, backbone=None, name="mask_rcnn"
    ):
        config = configs.model_from_dict(config) if isinstance(config, dict) else config
        categories = [_category(index, given) for index, given in enumerate(categories)]
        if not categories:
            raise ValueError("`categories` names at least one class. Received: an empty list.")
        stations = assembly.stations(config, categories, seed, dtype, backbone)
        inputs = {
            "images": keras.Input((None, None, len(config.input.mean)), name="images", dtype="float32"),
            "image_sizes": keras.Input((2,), name="image_sizes", dtype="int32"),
        }
        super().__init__(inputs, assembly.detect(stations, inputs), name=name)
        self.config = config
        self.categories = categories
        self.seed = seed
        self.epochs_done = epochs_done
        self.own_backbone = backbone
        self.micro_batches = 1
        for station, layer in vars(stations).items():
            setattr(self, station, layer)
        self.loss_names = ["rpn_objectness", "rpn_box", "class", "box"]
        self.loss_names += ["mask"] * bool(self.mask_head) + ["keypoint"] * bool(self.keypoint_head)
        self.iou_types = ["bbox"]  # what COCO scores of it
        self.iou_types += ["segm"] * bool(self.mask_head) + ["keypoints"] * bool(self.keypoint_head)
        self._trackers = [Mean(name=loss) for loss in ("loss", *self.loss_names)]

    @property
    def metrics(self):
        """One running mean for each named loss, and of their sum."""
        return self._trackers

    def compute_losses(self, inputs, targets, training=True):
        """The named losses of a batch, float32 scalars; see `losses` for each."""
        images = self.normalize(inputs["images"], inputs["image_sizes"])
        maps, rpn_maps = assembly.feature_maps(self, images, training)
        logits, deltas = self.rpn_head(rpn_maps)
        anchors = self.anchors(rpn_maps)
        true = targets["boxes"], targets["valid"]
        sampled = self.rpn_targets(ops.concatenate(anchors), *true)
        proposals = self.proposals(logits, deltas, anchors, inputs["image_sizes"], training=True)
        regions = self.roi_sampling(proposals[0], proposals[2], *true)
        boxes, _, foreground, background = regions

        features = assembly.box_features(self, maps, boxes, foreground | background, training)
        class_logits, box_deltas = self.box_head(features, training=training)
        config = self.config
        classes, true_deltas, is_foreground = box_targets(
            regions, targets, len(self.categories), config.box_head.box_weights
        )
        named = {
            "rpn_objectness": losses.rpn_objectness(logits, *sampled, config.rpn.samples),
            "rpn_box": losses.rpn_box(deltas, *sampled, config.rpn.samples, config.rpn.smooth_l1_beta),
            "class": losses.classification(class_logits, classes),
            "box": losses.box(
                box_deltas, true_deltas, classes, is_foreground, config.box_head.smooth_l1_beta
            ),
        }
        if self.mask_head:
            if self.stage5:  # the features of the same regions
                features = ops.take(features, ops.nonzero(is_foreground)[0], axis=0)
            else:
                features = self.mask_pooling(maps, boxes, foreground)
            mask_logits = self.mask_head(features, training=training)
            named["mask"] = self._mask_loss(mask_logits, regions, targets)
        if self.keypoint_head:
            named["keypoint"] = self._keypoint_loss(maps, regions, targets, training)
        return named

    def _mask_loss(self, logits, regions, targets):
        head = self.config.mask_head
        classes, masks, has_mask = mask_targets(regions, targets, logits.shape[1], head.soft_targets)
        if head.activation == "sigmoid":
            return losses.mask(of_class(logits, classes), masks, has_mask)
        return losses.softmax_mask(logits, classes, masks, has_mask)

    def _keypoint_loss(self, maps, regions, targets, training):
        if "keypoints" not in targets:
            raise ValueError(
                "The model has a keypoint head, and the targets have no `keypoints`: the categories of the "
                f"data set need some. Received targets: {', '.join(targets)}"
            )
        size = 4 * self.config.keypoint_head.pool_size
        chosen, indices, valid = keypoint_targets(regions, targets, size)
        logits = self.keypoint_head(self.keypoint_pooling(maps, regions[0], chosen), training=training)
        return losses.keypoint(logits, indices, valid)

    def build_optimizer(self):
        """Makes the optimizer's variables, which `fit` does otherwise. Batch statistics are averaged as the
        weights are, if the optimizer is one of `training.optimizers` with `use_ema`.
        """
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        with self.distribute_strategy.scope():
            if not self.optimizer.built:
                self.optimizer.build(self.trainable_variables)
            if hasattr(optimizer, "average_also") and not optimizer.also_averaged():
                layers = [x for x in self._flatten_layers() if isinstance(x, keras.layers.BatchNormalization)]
                optimizer.average_also([s for x in layers for s in (x.moving_mean, x.moving_variance)])

    def make_train_function(self, force=False):
        """Keras's, with the optimizer's variables made before: or the whole step is traced twice for them."""
        self.build_optimizer()
        return super().make_train_function(force)

    def compile_from_config(self, config):
        """Keras's, when a file is loaded."""
        super().compile_from_config(config)
        self.build_optimizer()

    def train_step(self, data):
        """One step of `fit`: forward, losses, gradients, update.

        The batch goes through in `micro_batches` parts, one after the other, and through several replicas at
        once. The gradient is that of the mean over all of them, weighted by images; it is clipped as a whole.
        (Within each, class, box, mask and keypoint losses are means over its own regions or keypoints.)
        """
        inputs, targets, _ = keras.utils.unpack_x_y_sample_weight(data)
        variables, gradients = self.trainable_variables, None
        for part, share in replicas.parts((inputs, targets), self.micro_batches):
            part = replicas.after(gradients, part)
            with tf.GradientTape() as tape:
                named = self.compute_losses(*part, training=True)
                loss = share * (sum(named.values()) + sum(self.losses))
                scaled = self.optimizer.scale_loss(loss)
            gradients = replicas.add(gradients, tape.gradient(scaled, variables))
            logs = self._track(named, share)
        self.optimizer.apply(replicas.reduced(gradients, self.optimizer), variables)
        return logs

    def test_step(self, data):
        """One step of `evaluate`: the losses of `train_step` without learning."""
        inputs, targets, _ = keras.utils.unpack_x_y_sample_weight(data)
        [(part, share)] = replicas.parts((inputs, targets), 1)
        return self._track(self.compute_losses(*part, training=False), share)

    def predict_on_batch(self, x):
        """The outputs for a batch, of one device, also where several train."""
        if not self._distribute_strategy:
            return super().predict_on_batch(x)
        return {name: value.numpy() for name, value in self._predict_here((x,)).items()}

    @functools.cached_property
    def _predict_here(self):
        return tf.function(self.predict_step, reduce_retracing=True)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Nothing: all is built. Keras's own fails under several workers (keras#20585), and takes a batch."""

    @functools.cached_property
    def maps_of_boxes(self):
        """A Keras model of the same layers: what is in given boxes, see `assembly.maps_of_boxes`."""
        inputs = {
            **self.input,
            "boxes": keras.Input((None, 4), name="boxes", dtype="float32"),
            "classes": keras.Input((None,), name="classes", dtype="int32"),
        }
        return keras.Model(inputs, assembly.maps_of_boxes(self, inputs))

    def detect(self, images, batch_size=1, short_edges=None, flip=False):
        """What is in some images.

        Args:
            images: one image or a list of them: paths, arrays `[H, W]` or `[H, W, 1 | 3 | 4]`, PIL images.
            batch_size: int, images that go through the network together, padded to a common size.
            short_edges: list of int, pixels; every image is seen at each of these scales, see `tta`.
            flip: bool, every image is seen mirrored, too; both need `batch_size=1`.

        Returns:
            `Results` in the pixels of the image as given, or a list of them when a list was given.
        """
        if not isinstance(images, list | tuple):
            return self.detect([images], 1, short_edges, flip)[0]
        if short_edges or flip:
            edges = short_edges or [self.config.input.short_edge]
            return [tta.detect(self, image, edges, flip) for image in images]
        results = []
        for start in range(0, len(images), batch_size):
            channels = len(self.config.input.mean)
            sources = [load_image(image, channels) for image in images[start : start + batch_size]]
            inputs = network_frame(sources, self.config.input)
            outputs = self.predict_on_batch(inputs)
            for row, (given, source) in enumerate(zip(images[start:], sources, strict=False)):
                results.append(
                    Results.from_detections(
                        {name: value[row] for name, value in outputs.items()},
                        inputs["image_sizes"][row],
                        source.shape[:2],
                        self.categories,
                        image=source,
                        paste=self.config.mask_head.paste,
                        image_id=path_of(given),
                    )
                )
        return results

    @classmethod
    def from_preset(cls, source, num_classes=None, categories=None, like=None, overrides=(), **options):
        """A model with weights from elsewhere and the rules that they were trained with.

        Args:
            source: the name of published weights (`mrcnn presets` lists them), which are downloaded once; a
                file of such weights, with `like`; a `.keras` file; a folder of `save_to_preset`;
                `hf://owner/repository[/file]`; `kaggle://owner/model/framework/variation`.
            num_classes: int, classes of the new model, without background; the layers that know classes
                are then initialised anew and named.
            categories: their names (or `Category`s) instead.
            like: the name of the published weights whose rules and names a file follows.
            overrides: strings `section.key=value` that change `config.Model`, as "backbone.frozen_stages=3".
            **options: of `MaskRCNN`: seed, dtype, name.

        Returns:
            `MaskRCNN`. What was loaded is printed: `loaded 307/307`, and what was not.

        Raises:
            ValueError: an unknown name (with the nearest ones), or the weights do not fit; all that does not
                is listed.
            ConnectionError: the file could not be fetched; the message says which file to put where.
        """
        from keras_mrcnn.weights import sourced

        model, report = sourced.from_preset(source, num_classes, categories, like, overrides, **options)
        print(f"{source}: {report}")
        return model

    def save_to_preset(self, folder):
        """Write a folder that `from_preset` reads: `config.json` and `model.weights.h5`."""
        from keras_mrcnn.weights import sources

        sources.save_to_preset(self, folder)

    def load_backbone(self, source):
        """Weights of an ImageNet classifier into the backbone: see `weights.sourced.load_backbone`."""
        from keras_mrcnn.weights import sourced

        return sourced.load_backbone(self, source)

    def load_weights(self, filepath, **options):
        """Load a `.weights.h5` or `.keras` file, all of it or nothing.

        Raises:
            ValueError: weights are missing in the file, unexpected, or of another shape; all are listed and
                the model is as before.
        """
        if not options.get("skip_mismatch"):
            self._check_weights(pathlib.Path(filepath))
        super().load_weights(filepath, **options)

    def _check_weights(self, path):
        with tempfile.TemporaryDirectory() as folder:
            own = pathlib.Path(folder, "own.weights.h5")
            self.save_weights(own)
            expected, found = _weight_shapes(own), _weight_shapes(path)
        misfits = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in found]
        misfits += [f"unexpected: {name} {shape}" for name, shape in found.items() if name not in expected]
        misfits += [
            f"wrong shape: {name} is {found[name]}, expected {shape}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ]
        if misfits:
            fitting = len(expected) - sum(not line.startswith("unexpected") for line in misfits)
            raise ValueError(
                f"{path} does not fit this model, and nothing was loaded: {fitting} of {len(expected)} "
                "weights fit.\n  " + "\n  ".join(misfits)
            )

    def _track(self, named, share):
        values = [sum(named.values()), *(named[name] for name in self.loss_names)]
        for tracker, value in zip(self._trackers, values, strict=True):
            tracker.update_state(value, sample_weight=share)
        return {tracker.name: replicas.logged(tracker.result()) for tracker in self._trackers}

    def get_config(self):
        return {
            "config": configs.to_dict(self.config),
            "categories": [category.to_dict() for category in self.categories],
            "seed": self.seed,
            "epochs_done": self.epochs_done,
            "dtype": keras.saving.serialize_keras_object(self.box_head.dtype_policy),
            "backbone": keras.saving.serialize_keras_object(self.own_backbone),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        given = {
            name: keras.saving.deserialize_keras_object(config[name], custom_objects)
            for name in ("dtype", "backbone")
        }
        return cls(**{**config, **given})


class Mean(keras.metrics.Mean):
    """Saved as nothing seen: several workers would have to come together to read it, and only one saves.

    (Its place in a file comes from the name of the class.)
    """

    def save_own_variables(self, store):
        for index, variable in enumerate(self.variables):
            store[str(index)] = np.zeros(variable.shape, variable.dtype)


def _weight_shapes(path):
    """Shape of each of the model's own weights in a `.weights.h5` or `.keras` file, by its place there."""
    if path.suffix == ".keras":
        file = io.BytesIO(zipfile.ZipFile(path).read("model.weights.h5"))
    else:
        file = path
    shapes = {}

    def note(name, item):
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer"):
            shapes[name.replace("/vars/", "/")] = item.shape

    with h5py.File(file, "r") as stored:
        stored.visititems(note)
    return shapes


def _category(index, given):
    if isinstance(given, str):
        return Category(index + 1, given)
    return Category.from_dict(given) if isinstance(given, dict) else given
