"""Weights from elsewhere: published, converted, loaded strictly."""
