"""Speed and memory, measured: `make bench`. Never run by the tests: machines are noisy."""
