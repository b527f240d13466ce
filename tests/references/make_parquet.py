"""Writes the tables that `crates/quant-data` is tested with, in the layout of the Hugging Face hub: nested lists, snappy and zstd; and
the same records as packed JSON lines. The records are made up."""
import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq

OUT = os.path.join(os.path.dirname(__file__), "../../crates/quant-data/tests/data")
RECORDS = [
    {"id": "q0", "question": "Which of these melts in the sun?", "choices": {"text": ["stone", "ice", "glass"], "label": ["A", "B", "C"]}, "answerKey": "B"},
    {"id": "q1", "question": "What does a seed grow into?", "choices": {"text": ["a plant", "a cloud"], "label": ["1", "2"]}, "answerKey": "1"},
    {"id": "q2", "question": "Was tr\u00e4gt ein Kamel?", "choices": {"text": ["w", "x", "y", "z"], "label": ["A", "B", "C", "D"]}, "answerKey": "D"},
]

table = pa.Table.from_pylist(RECORDS)
for codec in ("snappy", "zstd"):
    pq.write_table(table, os.path.join(OUT, f"arc.{codec}.parquet"), compression=codec)
with gzip.GzipFile(os.path.join(OUT, "arc.jsonl.gz"), "wb", mtime=0) as out:
    for record in RECORDS:
        out.write((json.dumps(record) + "\n").encode())
