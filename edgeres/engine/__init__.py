"""From an ONNX graph to an engine for a device.

targets     what can be built for, and where: data, no vendor package
cpu, gpu    what this machine has
vendor      the one place that imports tensorrt or tensorrt_rtx
words       the vendor's errors in words
refusals    what the vendor's parsers refuse, found in the graph itself, without them
precision   FP32 graph -> FP16 graph
tensorrt    ONNX -> engine; meter: how far it is
stage       the engines of a bundle
"""
