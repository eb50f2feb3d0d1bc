"""ONNX graphs: the canonical form, one class to read and edit them, graph forms, and what TensorRT refuses."""
