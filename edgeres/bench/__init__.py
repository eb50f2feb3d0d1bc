"""Latency, throughput and energy of a bundle on this machine, the way trtexec measures.

board       a Jetson's power mode, clocks, temperatures and power rails, from sysfs
contenders  the networks that are measured: engines where they run here, else graphs on the CPU
events      times of engines by CUDA events, under trtexec's names
session     the measurement: FP32, FP16 and INT8 in one interleaved run, then the power of each
"""
