"""What happens at every iteration, validation and save of Megatron's loop besides what Megatron does."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from megatron.training import get_tensorboard_writer, get_wandb_writer

from phd.config import PHDConfig
from phd.model import compat
from phd.model.metrics import RunMetrics, about_run, count_parameters
from phd.model.samples import continue_prompts
from phd.model.survival import agree_on_checkpoint, clear_place, remove_old
from phd.run.files import write_json
from phd.run.record import Recorder

RUN_FILE = "phd_run.json"


class Observer:
    """Keeps the record of a run (on the rank that logs, the last) and its checkpoints' folder (on rank 0)."""

    def __init__(self, args: Namespace, config: PHDConfig) -> None:
        """``args`` are Megatron's, global already."""
        self.args, self.config = args, config
        self.metrics = RunMetrics(args, config)
        self._recorder: Recorder | None = None
        self._begun = False
        self._wandb = get_wandb_writer()
        if args.run_folder and args.rank == args.world_size - 1:
            self._recorder = Recorder(Path(args.run_folder), get_tensorboard_writer(), self._wandb)
            compat.set_writers(self._recorder)

    def built(self, model_chunks: list[torch.nn.Module]) -> list[torch.nn.Module]:
        """The model is there and its checkpoint not loaded yet. Every rank must call it."""
        agree_on_checkpoint(self.args)
        about = about_run(self.args, self.config, self.metrics, count_parameters(model_chunks))
        if self._recorder is not None:
            write_json(Path(self.args.run_folder, RUN_FILE), about)
        if self._wandb is not None:
            del about["arguments"]  # Megatron has told W&B
            self._wandb.config.update({"phd": about}, allow_val_change=True)
            for axis in ("tokens", "flops"):
                self._wandb.define_metric(axis)
            self._wandb.define_metric("*", step_metric="tokens")
        return model_chunks

    def begin(self, iteration: int) -> None:
        """Training goes on after ``iteration``, which a checkpoint holds; only the first call counts.

        Raises:
            ValueError: the record that is there is damaged.
        """
        if self._recorder is not None and not self._begun:
            self._recorder.resume(iteration)
        self._begun = True

    def log(self, iteration: int, seconds_per_iteration: float) -> str:
        """At a log interval: tokens/s and MFU for the record, and as a piece of Megatron's log line."""
        rates = self.metrics.rates(seconds_per_iteration)
        if self._recorder is not None:
            for name, value in rates.items():
                self._recorder.add_scalar(name, value, iteration)
        text = f" tokens/s: {rates['phd/tokens-per-second']:.0f} |"
        text += f" PHD TFLOP/s/device: {rates['phd/tflops-per-device']:.4g} |"
        return text + (f" MFU: {100 * rates['phd/mfu']:.1f}% |" if "phd/mfu" in rates else "")

    def trained(self, iteration: int) -> None:
        """An iteration is done and logged."""
        self._write("train", iteration)

    def evaluated(self, kind: str, iteration: int, model_chunks: list[torch.nn.Module]) -> None:
        """A validation or test is done and logged. Every rank must call it."""
        self._write(kind, iteration)
        if kind == "validation" and self.args.sample_prompts:
            self._write("samples", iteration, samples=continue_prompts(model_chunks[0], self.args))

    def saving(self, iteration: int) -> bool:
        """Every rank is about to save; False where that would write over what it has just loaded: Megatron
        saves at the end, also when a finished run is started again.
        """
        if not self._begun and self.args.load == self.args.save and iteration == self.args.iteration:
            return False
        if self._recorder is not None:
            self._recorder.sync()
        if self.args.rank == 0:
            clear_place(Path(self.args.save), iteration)
        torch.distributed.barrier()
        return True

    def saved(self) -> None:
        """A save is done, or with --async-save under way."""
        if self.args.keep_last_checkpoints and self.args.rank == 0:
            remove_old(Path(self.args.save), self.args.keep_last_checkpoints)

    def _write(self, kind: str, iteration: int, **more: Any) -> None:
        if self._recorder is not None:
            tokens = self.args.consumed_train_samples * self.args.seq_length
            self._recorder.write(kind, iteration, tokens, tokens * self.metrics.flops_per_token, **more)
