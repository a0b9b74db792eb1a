"""A policy where it is to act: as an ONNX file, a program of torch.export, or compiled for one processor core."""
