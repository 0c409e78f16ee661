"""The PHD model in Megatron: config, layer spec, core attention, model and builder.

Importing this package prepares torch for Megatron where there is no GPU, so it comes before Megatron.
"""

from phd.megatron import cpu

cpu.install()
