"""A training around the model: its command line, its data, what it records, and how it ends."""

import phd.megatron  # noqa: F401 (first: it prepares torch for Megatron on a machine without a GPU)
