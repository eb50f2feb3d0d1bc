"""Facts on hardware and vendor libraries.

targets      the devices that edgeres builds for
libraries    the vendor's packages tensorrt and tensorrt_rtx: versions, loading, log
jetpack      why Python does not find the system's TensorRT
messages     the vendor's error messages in plain words
gpu, cpu     the GPU and the CPU of this machine
environment  versions of packages and the machine, for manifests and reports
"""
