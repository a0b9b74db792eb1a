"""Whole training runs beside the published algorithm: `python bench/train.py`."""
