"""Side-by-side measurements: every contender in one run, on the same rows, in its own process."""
