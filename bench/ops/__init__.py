"""The ops that are timed, each with its contestants; `registry` lists them."""
