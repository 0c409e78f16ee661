"""Megatron meets PHD: config, layer spec, core attention, model and builder."""
