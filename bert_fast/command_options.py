"""What several commands take. Nothing heavy is imported with it."""

from __future__ import annotations

import argparse
import os


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add ``--threads`` to a command; :func:`set_threads` obeys it."""
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")


def set_threads(threads: int | None) -> None:
    """PyTorch's threads, and the tokenizer's; None leaves both.

    Raises:
        ValueError: below 1.
    """
    if threads is None:
        return
    if threads < 1:
        raise ValueError(f"--threads {threads}: at least 1")
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))  # the tokenizer's, read when it first runs
    import torch

    torch.set_num_threads(threads)
