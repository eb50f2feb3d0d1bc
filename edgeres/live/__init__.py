"""A local page to try a bundle with photographs and the camera: FP32 beside INT8."""
