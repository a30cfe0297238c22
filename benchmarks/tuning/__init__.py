"""What `python -m benchmarks.tune` is made of: what is tried, on which work, and how the table is rewritten."""
