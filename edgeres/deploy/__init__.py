"""A bundle in the form that other programs take: Triton, DeepStream, trtexec, ROS 2."""
