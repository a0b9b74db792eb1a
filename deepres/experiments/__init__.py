"""Many runs, and runs that stand for something: presets, grids, the demo."""
