"""What `python -m benchmarks.gpu_check` is made of: a plan of items, a worker that runs them, one that watches it."""
