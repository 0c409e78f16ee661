"""PHD-Transformers: pretraining length scaling on stock Megatron-Core."""
