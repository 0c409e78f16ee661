"""What the fork server of tests/starts.py imports and reads, once for all starts, and what they leave out."""

import sys

sys.dont_write_bytecode = False  # as tests/conftest.py has it; multiprocessing hands on what the shell said

import torch  # noqa: E402

torch.set_num_threads(1)

import phd.megatron  # noqa: E402, F401 (before Megatron)

# isort: split

import megatron.core.tokenizers.text.text_tokenizer  # noqa: E402, F401 (transformers: four seconds)
import wandb  # noqa: E402, F401
from megatron.training import training  # noqa: E402
from megatron.training.argument_utils import ArgumentGroupFactory  # noqa: E402

import pretrain_phd  # noqa: E402, F401

_read_docstrings = ArgumentGroupFactory._get_field_docstrings
_docstrings: dict[type, dict[str, str]] = {}


def _field_docstrings(factory: ArgumentGroupFactory, source: type) -> dict[str, str]:
    """The help of Megatron's flags, for which every start would parse its source."""
    if source not in _docstrings:
        _docstrings[source] = _read_docstrings(factory, source)
    return _docstrings[source]


setattr(ArgumentGroupFactory, "_get_field_docstrings", _field_docstrings)  # noqa: B010

# Eight hundred texts in each event file; TensorBoard takes their checksums in Python, and so does a reader.
setattr(training, "write_args_to_tensorboard", lambda: None)  # noqa: B010
