"""`python -m keras_mrcnn`, the same as `mrcnn`."""

from keras_mrcnn.cli import main

main()
