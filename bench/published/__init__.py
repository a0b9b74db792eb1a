"""The plain forms of the published step: the rivals of the benches, and the truth of the tests."""
