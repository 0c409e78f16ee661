"""A cache of tensors that the layers of a step share: made once, and reused in later steps.

A plain ``lru_cache`` would hand them on to where they cannot be used. Fake tensors (``phd plan``) belong to
the mode that made them: they are kept with it, and go with it. Those of an evaluation could not be saved for
a backward: none are made in inference mode. And a device is the one where a tensor lands, whatever it is
called: "cuda" is the current GPU, and for ``phd.megatron`` on a machine without one it is the CPU.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")  # exported models are read by older Pythons too


class MadeOnce(Generic[Made]):  # noqa: UP046
    """``make`` with a cache. Its last argument is the device; all arguments are hashed, as a dict's keys
    are."""

    def __init__(self, make: Callable[..., Made], maxsize: int) -> None:
        self.make, self.maxsize = make, maxsize
        self.cache_clear()

    def __call__(self, *arguments: Any) -> Made:
        if torch.compiler.is_compiling():
            return self.make(*arguments)  # while tracing: the graph itself holds what it makes
        probe = torch.empty(0, device=arguments[-1])  # the kind of tensor that would be made now
        arguments = *arguments[:-1], probe.device
        if type(probe) is Tensor:
            return self._real(*arguments)
        mode = getattr(probe, "fake_mode", None)
        if mode is None:
            return self.make(*arguments)  # a tracer's own tensors
        memories = vars(mode).setdefault("_phd_made_once", {})
        if self not in memories:
            memories[self] = self._memory()
        return memories[self](*arguments)

    def cache_clear(self) -> None:
        """Empty the cache, except for what fake modes hold."""
        self._real = self._memory()

    def _memory(self) -> Callable[..., Made]:
        return lru_cache(self.maxsize)(torch.inference_mode(False)(self.make))


def made_once(maxsize: int) -> Callable[[Callable[..., Made]], MadeOnce[Made]]:
    """Decorator: keep the last ``maxsize`` things made, in each fake mode too. See ``MadeOnce``."""
    return lambda make: MadeOnce(make, maxsize)
