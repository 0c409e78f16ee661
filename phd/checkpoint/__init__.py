"""Checkpoints of Megatron: read, checked, saved, removed."""

import phd.megatron  # noqa: F401 (first: it prepares torch for Megatron on a machine without a GPU)
