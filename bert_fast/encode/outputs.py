"""The three kinds of output file, each written so that the rows never have to be in memory.

`.npy` and `.safetensors` are a header followed by the rows, so rows are appended after room left for the header, and
the finished file is the same file, renamed. A Parquet file is written from the rows at the end.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from bert_fast.io import fsync
from bert_fast.rows.errors import InputError
from bert_fast.rows.tables import pyarrow

OUTPUTS = (".npy", ".safetensors", ".parquet")
_NPY_HEADER = 128
_SAFETENSORS_HEADER = 512
_PARQUET_BYTES = 1 << 24  # of rows held in memory for one row group


def output_kind(path: Path) -> str:
    """The suffix that decides the format; InputError if it is none of OUTPUTS, or pyarrow is missing for Parquet."""
    suffix = path.suffix.lower()
    if suffix not in OUTPUTS:
        raise InputError(f"{path}: an output file ends in {', '.join(OUTPUTS)}, which decides its format")
    if suffix == ".parquet":
        pyarrow("writing Parquet")
    return suffix


def header_size(kind: str) -> int:
    """Bytes left free before the first row."""
    return {".npy": _NPY_HEADER, ".safetensors": _SAFETENSORS_HEADER, ".parquet": 0}[kind]


def header(kind: str, rows: int, hidden: int, about: dict[str, Any]) -> bytes:
    """The header of a file of float32 [rows, hidden]; `about` goes into a safetensors file's metadata."""
    if kind == ".npy":
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {hidden}), }}"
        start = np.lib.format.magic(1, 0) + (_NPY_HEADER - 10).to_bytes(2, "little")
        return start + text.ljust(_NPY_HEADER - 11).encode("latin1") + b"\n"
    if kind == ".safetensors":
        tensor = {"dtype": "F32", "shape": [rows, hidden], "data_offsets": [0, rows * hidden * 4]}
        metadata = {name: str(about[name]) for name in ("pooling", "normalize", "max_length", "dtype") if name in about}
        text = json.dumps({"__metadata__": metadata, "embeddings": tensor}, separators=(",", ":"))
        return (_SAFETENSORS_HEADER - 8).to_bytes(8, "little") + text.ljust(_SAFETENSORS_HEADER - 8).encode()
    return b""


def write_parquet(rows_file: Path, target: Path, rows: int, hidden: int) -> None:
    """Writes `target` with one column, `embedding`: a fixed-size list of `hidden` float32 for each row."""
    pa, pq = pyarrow("writing Parquet")
    schema = pa.schema([pa.field("embedding", pa.list_(pa.float32(), hidden))])
    per_group = max(1, _PARQUET_BYTES // (4 * hidden))
    how = {"compression": "NONE", "use_dictionary": False}  # random mantissas do not compress
    with open(rows_file, "rb") as source, pq.ParquetWriter(target, schema, **how) as out:
        for start in range(0, rows, per_group):
            values = np.frombuffer(source.read(min(per_group, rows - start) * hidden * 4), dtype="<f4")
            column = pa.FixedSizeListArray.from_arrays(pa.array(values), hidden)
            out.write_batch(pa.record_batch([column], schema=schema))
    fsync(target)
