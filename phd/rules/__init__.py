"""What a model's attention is, as values: names, costs and predicates, with the standard library alone.

    Copies, Keys        how tokens are repeated; which earlier tokens a layer keeps
    AttentionRule       both: the attention of one layer
    Variant             the attention of a model, by its name: "PHD-CSWA-2-16-32+longgen-sink"

Kernels, caches, cost formulas, flags and file formats take the rule from here. Numbers in the predicates may
be Python integers or integer tensors that broadcast together.
"""
