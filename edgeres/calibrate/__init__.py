"""Ranges of activations: histograms over calibration images, the ranges chosen from them, and the files of both."""
