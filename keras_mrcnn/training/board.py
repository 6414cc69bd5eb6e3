"""What TensorBoard shows of a run."""

import math
import time

import keras

_EVERY = 20  # steps between points of the curves within an epoch


class Board(keras.callbacks.Callback):
    """Losses, learning rate, speed, waiting for data, scores and pictures, for TensorBoard; x is the step.

    Stands after the callbacks that add to the logs. After a resume the steps that are done again are there
    twice, once from each process.

    Args:
        folder: where the event files go; made if need be.
        pictures: function of the model that gives {tag: bytes of a PNG}, called after each scoring; or None.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, folder, pictures=None):
        super().__init__()
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise ImportError(
                "training.tensorboard=true needs TensorBoard, which TensorFlow does not bring: "
                "pip install 'keras_mrcnn[tensorboard]'. log.csv has the same numbers."
            ) from error
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._writer = EventFileWriter(str(folder))
        self.pictures = pictures
        self._shown = None  # step

    def on_train_batch_end(self, batch, logs=None):
        step = int(self.model.optimizer.iterations.numpy())
        if step % _EVERY == 0 and step != self._shown:  # a resumed epoch begins with batches that are done
            self._shown = step
            rate = {"learning_rate": float(self.model.optimizer.learning_rate)}
            self._write(step, {f"step/{name}": value for name, value in {**logs, **rate}.items()})

    def on_epoch_end(self, epoch, logs=None):
        step = int(self.model.optimizer.iterations.numpy())
        self._write(step, {f"epoch/{name}": value for name, value in logs.items()})
        if self.pictures and any(name.startswith("val_") and name.endswith("_AP") for name in logs):
            pictures, image = self.pictures(self.model), self._summary.Image
            self._add(
                step, [(tag, {"image": image(encoded_image_string=png)}) for tag, png in pictures.items()]
            )
        self._writer.flush()

    def on_train_end(self, logs=None):
        self._writer.close()

    def _write(self, step, numbers):
        finite = {tag: float(value) for tag, value in numbers.items() if math.isfinite(value)}
        self._add(step, [(tag, {"simple_value": value}) for tag, value in finite.items()])

    def _add(self, step, values):
        summary = self._summary(value=[self._summary.Value(tag=tag, **value) for tag, value in values])
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))
