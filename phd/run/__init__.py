"""The folder of a run: who holds it, how its last start ended, and the record of its metrics.
Neither torch nor Megatron.
"""
