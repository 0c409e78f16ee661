"""Patches of Megatron's internals, each with its reason; for Megatron-Core 0.19.2 only. Those that only a
training needs for its hooks are in phd/megatron/loop.py.

The rest of the project uses what Megatron offers: config subclass, builder, layer spec, flag factory.
"""

import contextlib
import functools
import importlib.metadata
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import multiprocessing.util
import os
import queue
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from megatron.core import optimizer as megatron_optimizer
from megatron.core import pipeline_parallel
from megatron.core.datasets import utils as dataset_utils
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import PersistentAsyncCaller
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import distrib_optimizer
from megatron.core.optimizer import optimizer as optimizers
from megatron.core.tensor_parallel import random as tensor_parallel_random
from megatron.core.transformer.moe import token_dispatcher
from megatron.training import (
    dist_signal_handler,
    get_args,
    global_vars,
    initialize,
    training,
)

from phd.megatron import cpu, saver

MEGATRON_VERSION = "0.19.2"


def initialize_megatron() -> None:
    """Megatron's own, for a program other than its training loop; also where there is no GPU."""
    initialize.initialize_megatron(allow_no_cuda=cpu.needed())


def become(model: GPTModel, model_class: type[GPTModel]) -> None:
    """Turn a built GPTModel into ``model_class``.

    GPTModelBuilder.build_model names GPTModel in the middle of 70 lines; a subclass that adds methods needs
    no constructor of its own, and the builder sets its attributes.
    """
    model.__class__ = model_class


def apply(copies: int) -> None:
    """Fit Megatron to PHD, and to a machine without a GPU where there is none.

    Args:
        copies: K; pipeline stages exchange ``micro_batch_size * K`` rows, and so do tensor-parallel ranks.

    Raises:
        RuntimeError: the installed Megatron-Core is not the version this file was written against.
    """
    version = importlib.metadata.version("megatron-core")
    if version != MEGATRON_VERSION:
        raise RuntimeError(
            f"phd needs megatron-core=={MEGATRON_VERSION}, found {version}: "
            f'pip install "megatron-core[training]=={MEGATRON_VERSION}"'
        )
    _ship_no_makefile()
    _pipeline_rows(copies)
    _tensor_parallel_rows(copies)
    _load_fp32_shards()
    _keep_added_groups_apart()
    _take_rates()
    setattr(FileSystemWriterAsync, "preload_tensors", staticmethod(_stage))  # noqa: B010
    filesystem_async.get_write_results_queue = _results_queue
    _watch_saver()
    if not distrib_optimizer.HAVE_APEX_OR_TE:
        _torch_adam_step()
    if cpu.needed():
        _no_cuda()


def _ship_no_makefile() -> None:
    """The wheel carries the compiled dataset helpers but no Makefile; running make ends the process."""
    if not (Path(dataset_utils.__file__).parent / "Makefile").exists():
        initialize._compile_dependencies = torch.distributed.barrier


def _pipeline_rows(copies: int) -> None:
    """Pipeline stages size their messages from micro_batch_size, which counts samples; ours are b*K rows.

    The argument itself must stay: the batch sampler, the microbatch count and the logs read it.
    """

    def get_forward_backward_func(*args: Any, **kwargs: Any) -> Callable[..., Any]:
        schedule = pipeline_parallel.get_forward_backward_func(*args, **kwargs)

        @functools.wraps(schedule)
        def with_copies(*, micro_batch_size: int, **schedule_kwargs: Any) -> Any:
            return schedule(micro_batch_size=micro_batch_size * copies, **schedule_kwargs)

        return with_copies

    training.get_forward_backward_func = get_forward_backward_func


def _tensor_parallel_rows(copies: int) -> None:
    """--tp-comm-overlap makes Transformer Engine's buffers for micro_batch_size rows of each position; ours
    are b*K. For this one call the argument is set to that.
    """
    current = initialize._initialize_tp_communicators
    make_buffers = getattr(current, "__wrapped__", current)

    @functools.wraps(make_buffers)
    def with_copies() -> None:
        args = initialize.get_args()
        samples = args.micro_batch_size
        args.micro_batch_size = samples * copies
        try:
            make_buffers()
        finally:
            args.micro_batch_size = samples

    initialize._initialize_tp_communicators = with_copies


def stop_on_signals(async_save: bool) -> None:
    """Let the training end with a checkpoint on any of the signals that clusters and terminals send; Megatron
    listens to one.
    """
    global_vars._GLOBAL_SIGNAL_HANDLER = _ExitSignals(async_save)


def stopped_by() -> str | None:
    """The name of the signal that ended the training; "a signal to another rank"; or None."""
    handler = global_vars._GLOBAL_SIGNAL_HANDLER
    return handler.name if isinstance(handler, _ExitSignals) else None


class _ExitSignals(dist_signal_handler.DistributedSignalHandler):
    def __init__(self, async_save: bool) -> None:
        self.name: str | None = None
        self._signal_received = False
        self._pid = os.getpid()  # processes forked for saving inherit the handler, and must live on to save
        signals = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup leaves it
            signals.append(signal.SIGHUP)
        if async_save:
            # It needs these two processes of Python. SLURM signals every process of a job, and they would
            # die of it; what is started while a signal is ignored goes on ignoring it.
            for number in signals:
                signal.signal(number, signal.SIG_IGN)
            multiprocessing.resource_tracker.ensure_running()
            # Its children hold what it has imported. On a CPU they need the stand-ins for CUDA. On a GPU the
            # fork server must not even ask whether there is one: that initialises CUDA, which no child could
            # use then. (Without a list it would import the program itself, which asks.)
            multiprocessing.set_forkserver_preload(["phd.megatron.compat" if cpu.needed() else "torch"])
            multiprocessing.forkserver.ensure_running()
        for number in signals:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        saver.check()
        # A terminal's ^C reaches torchrun's ranks twice, once through torchrun, which kills what lingers.
        if number == signal.SIGINT and self._signal_received and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise KeyboardInterrupt
        if not self._signal_received:
            self.name = signal.Signals(number).name
        if not self._signal_received and os.getpid() == self._pid:
            with contextlib.suppress(OSError):  # the reader of the output is gone
                os.write(1, f"> {self.name}: saving and ending after this iteration\n".encode())
        self._signal_received = True

    def signals_received(self) -> list[int]:
        received = super().signals_received()
        if any(received) and self.name is None:
            self.name = "a signal to another rank"
        return received


def _load_fp32_shards() -> None:
    """In fp32 the optimizer's shards are views of the parameters; loading copies into them without
    no_grad.
    """
    optimizer = distrib_optimizer.DistributedOptimizer
    load = optimizer.load_parameter_state_from_dp_reshardable
    optimizer.load_parameter_state_from_dp_reshardable = torch.no_grad()(load)


ADDED_AT = "lr_born"
"""The key, in optimizers and checkpoints, of the iteration at which a group's parameters were added to the
training (phd/megatron/added_parameters.py); other groups have none. It begins with "lr" so that Megatron
does not log this group's learning rate as the model's."""

GROUP_KEYS = (*optimizers.param_group_identifier_keys, ADDED_AT)


def _keep_added_groups_apart() -> None:
    """Megatron finds the groups of a checkpoint by what it calls their identifiers, in two modules."""
    for module in (optimizers, distrib_optimizer):
        setattr(module, "param_group_identifier_keys", GROUP_KEYS)  # noqa: B010


RATES = ("max_lr", "min_lr", "start_wd", "end_wd")
"""Settings of a group of parameters that flags may change on resume."""


def _take_rates() -> None:
    """Megatron finds the group of a checkpoint that continues as a group of the optimizer by their rates,
    too: after a change of --lr it finds none. And it goes on with the rates of the checkpoint.
    """
    kinds: tuple[Any, ...] = (
        megatron_optimizer.FP32Optimizer,
        megatron_optimizer.Float16OptimizerWithFloat16Params,
        distrib_optimizer.DistributedOptimizer,
    )
    for kind in kinds:
        if not hasattr(kind.load_state_dict, "__wrapped__"):
            kind.load_state_dict = _with_rates_resolved(kind.load_state_dict)


def _with_rates_resolved(load: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(load)
    def load_state_dict(self: Any, state: dict[str, Any]) -> None:
        saved = state.get("optimizer", state)["param_groups"]
        resolve_rates(self.param_groups, saved, get_args())
        load(self, state)

    return load_state_dict


def _kind(group: dict[str, Any]) -> str:
    """A key that a group has in common with its counterpart in a checkpoint, whatever their rates."""
    return str([group.get(key, group.get(f"pre_{key}")) for key in GROUP_KEYS if key not in RATES])


def in_order(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An order in which groups of an optimizer and those of a checkpoint are counterparts: several of one
    kind are told apart by the order of their rates.
    """
    return sorted(groups, key=lambda group: (_kind(group), *(group.get(rate) or 0.0 for rate in RATES)))


def resolve_rates(groups: list[dict[str, Any]], saved: list[dict[str, Any]], args: Any) -> None:
    """Give groups of an optimizer and those of a checkpoint the same RATES: the new ones with
    --override-opt-param-scheduler, the old ones with --use-checkpoint-opt-param-scheduler.

    Raises:
        ValueError: they differ and neither flag is given, or there are other groups.
    """

    ours, theirs = in_order(groups), in_order(saved)
    if [_kind(group) for group in ours] != [_kind(group) for group in theirs]:
        raise ValueError(
            f"the checkpoint has {len(saved)} groups of parameters, this run {len(groups)} others: pass the "
            "flags it was trained with (--optimizer, --decoupled-lr, --apply-wd-to-qk-layernorm, "
            "--num-experts and the like), or begin a new run with --pretrained-checkpoint"
        )
    for group, its in zip(ours, theirs, strict=True):
        new, old = ({rate: one[rate] for rate in RATES if rate in one} for one in (group, its))
        if args.use_checkpoint_opt_param_scheduler:
            group |= old
        elif args.override_opt_param_scheduler or new == old:
            its |= new
        else:
            raise ValueError(
                f"the checkpoint was made for another schedule (of --lr and the like it has {old}, this run "
                f"{new}): pass the same flags, or --override-opt-param-scheduler to change it on purpose"
            )


def _torch_adam_step() -> None:
    """Make a distributed-optimizer checkpoint load with torch's Adam, which counts steps per parameter."""
    optimizer = distrib_optimizer.DistributedOptimizer
    if hasattr(optimizer.state_dict, "__wrapped__"):
        return
    original_state_dict, original_load = optimizer.state_dict, optimizer.load_state_dict

    @functools.wraps(original_state_dict)
    def state_dict(self: Any) -> dict:
        """Before the first update no parameter has a step, and the original asserts that there is one."""
        state = self.optimizer.state
        if state:
            return original_state_dict(self)
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                state[parameter]["step"] = torch.tensor(0.0)
        try:
            return original_state_dict(self)
        finally:
            state.clear()  # load_state_dict() allocates the moments only where it finds no state

    @functools.wraps(original_load)
    def load_state_dict(self: Any, loaded: dict) -> None:
        """The original lets all parameters share one step tensor, then overwrites it with the dummy's 0."""
        original_load(self, loaded)
        (step,) = {group["step"] for group in loaded["optimizer"]["param_groups"]}
        for state in self.optimizer.state.values():
            state["step"] = torch.tensor(float(step))

    set_states = optimizer._set_main_param_and_optimizer_states

    @functools.wraps(set_states)
    def set_all_but_step(self: Any, parameter: Any, tensors: dict) -> None:
        """The original looks for a step, which fully reshardable checkpoints keep elsewhere."""
        set_states(self, parameter, {"step": None} | tensors)

    optimizer.state_dict, optimizer.load_state_dict = state_dict, load_state_dict
    optimizer._set_main_param_and_optimizer_states = set_all_but_step


_preload_tensors = FileSystemWriterAsync.preload_tensors


def _stage(write_buckets: list[Any], non_blocking: bool = True) -> list[Any]:
    """What the writer of a checkpoint keeps for itself. Megatron copies from the GPU, and a tensor that is on
    the host not at all: the process that saves asynchronously gets it in shared memory, where the training
    goes on changing it while it is being written.
    """
    if multiprocessing.parent_process() is not None:  # that process; a synchronous save needs no second copy
        write_buckets = [
            (file, key, (data, [(item, each.clone() if each.is_cpu else each) for item, each in tensors]))
            for file, key, (data, tensors) in write_buckets
        ]
    return _preload_tensors(write_buckets, non_blocking)


_shared_results_queue = filesystem_async.get_write_results_queue
_own_results_queue: queue.Queue[Any] = queue.Queue()


def _results_queue(*args: Any, **kwargs: Any) -> Any:
    """Megatron's lives in a process of its own, which imports the program again: at its first save every rank
    would wait for that. Where the rank writes by itself, threads of one process use the queue.
    """
    return _shared_results_queue(*args, **kwargs) if get_args().async_save else _own_results_queue


def _save_loop(*args: Any) -> None:
    """The main function of the process that saves asynchronously."""
    saver.end_with_parent()
    PersistentAsyncCaller.async_loop(*args)  # there nobody has called apply(): it is Megatron's


def _watch_saver() -> None:
    """Megatron waits for the process that saves asynchronously without asking whether it lives; and that one
    waits for more to save, as does the manager of its results, without asking whether the rank lives.
    """
    caller: Any = PersistentAsyncCaller
    if hasattr(caller.close, "__wrapped__"):
        return
    original_start, original_close = caller._get_process.__func__, caller.close

    @functools.wraps(original_start)
    def start(cls: Any, *args: Any, **kwargs: Any) -> Any:
        before = cls._persistent_process
        process = original_start(cls, *args, **kwargs)
        if process is not before:
            saver.watch(process)
            for asked in (cls._persistent_queue, cls._persistent_preload_q):
                asked.cancel_join_thread()  # or this process could not end while nobody reads them
        return process

    @functools.wraps(original_close)
    def close(self: Any, abort: bool = False) -> None:
        saver.let_go()
        original_close(self, abort or (self.process is not None and not self.process.is_alive()))

    caller._get_process, caller.close = classmethod(start), close
    caller.async_loop = staticmethod(_save_loop)
    # The manager is forked, as the workers of a DataLoader are.
    multiprocessing.util.register_after_fork(caller, lambda _: saver.end_with_parent())


def _no_cuda() -> None:
    """What cpu.install() cannot answer from outside Megatron."""
    tensor_parallel_random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    tensor_parallel_random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    training.initialize_megatron = functools.partial(initialize.initialize_megatron, allow_no_cuda=True)
    # Splits are moved to the host as numpy arrays, which all_to_all needs; already there, they stay tensors.
    token_dispatcher.maybe_move_tensor_to_cpu = _on_host
    # Draws random tensors whose size depends on the layout, from the generator that initialises the weights:
    # TP 1 and TP 2 would start from different models.
    initialize._warmup_jit_function = lambda *args, **kwargs: None


def _on_host(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor
