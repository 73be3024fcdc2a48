"""`karat train` that leaves its first gradients and what each process holds, and may be stopped after a step.

    python watched.py FOLDER STOP train bradley_terry …

STOP is a step, or 0 for none. FOLDER gets `gradients.safetensors` (whole) and `held-RANK` (numbers of weights there).
"""

import os
import signal
import sys
from pathlib import Path

from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from karat.cli.base import main
from karat.training import loop, run

FOLDER, STOP = (Path(sys.argv[1]), int(sys.argv[2])) if __name__ == "__main__" else (Path(), 0)


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def here(tensor):
    tensor = getattr(tensor, "ds_tensor", tensor)  # DeepSpeed's
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def leave(rank, model, gradients):
    (FOLDER / f"held-{rank}").write_text(str(sum(here(p).numel() for p in model.parameters())))
    if rank == 0:
        save_file(
            {n.removeprefix("module."): g.clone() for n, g in gradients.items()}, FOLDER / "gradients.safetensors"
        )


class Watch(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step or os.environ.get("ACCELERATE_USE_DEEPSPEED"):
            return
        leave(args.process_index, model, {n: whole(p.grad) for n, p in model.named_parameters()})

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == STOP:
            os.kill(os.getpid(), signal.SIGINT)


def watch_deepspeed():
    """It computes gradients and steps in one call, so that Trainer's callback comes after the gradients are gone."""
    from deepspeed import DeepSpeedEngine
    from deepspeed.utils import safe_get_full_grad

    step = DeepSpeedEngine.step

    def watched(engine, *rest, **options):
        if not engine.global_steps:
            learnt = {n: p for n, p in engine.module.named_parameters() if p.requires_grad}
            leave(engine.global_rank, engine.module, {n: safe_get_full_grad(p) for n, p in learnt.items()})
        return step(engine, *rest, **options)

    DeepSpeedEngine.step = watched


class Watched(loop.RewardTrainer):
    def __init__(self, *rest, **options):
        super().__init__(*rest, **options)
        self.callback_handler.callbacks.insert(0, Watch())  # before the one that looks for a signal
        if self.is_deepspeed_enabled:
            # by default it shares out no weight as small as these
            zero = self.accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
            zero["stage3_param_persistence_threshold"] = 0
            watch_deepspeed()


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    run.RewardTrainer = Watched
    sys.argv[1:3] = []
    main()
