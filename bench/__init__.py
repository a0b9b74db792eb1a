"""Benches of deepres: run them as `python bench/NAME.py`; no part of the installed package."""
