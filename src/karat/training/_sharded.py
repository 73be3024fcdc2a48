"""Weights that are shared out over processes (FSDP2, ZeRO-3): who computes what, and all of them in one place again."""

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, gather
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainingArguments

from karat.engine.packed import PackedForward
from karat.engine.padded import PaddedEngine, PaddedForward
from karat.engine.probe import choose_forward
from karat.rewards._local import RewardModule
from karat.types import BadInput


def chosen_forward(backbone: nn.Module) -> PaddedForward | PackedForward:
    """The fastest forward that trains a backbone, the same in all processes, of which each may measure another time."""
    found = choose_forward(backbone)
    packed = torch.tensor([isinstance(found, PackedForward)], device=PartialState().device)
    return found if bool(gather(packed).all()) else PaddedForward(backbone)


def is_sharded(trainer: Trainer) -> bool:
    """Whether no process has all weights."""
    if trainer.is_fsdp_enabled:
        return True
    plugin = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    return plugin is not None and plugin.zero_stage == 3


def heed_fsdp() -> None:
    """Make accelerate heed an FSDP configuration without GPUs too, where it would drop it in silence.

    To be called when Trainer's arguments are made, which set the state anew, and its accelerator is not.
    """
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    state = PartialState()
    if asked and state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU


def in_autocast(given: TrainingArguments) -> None:
    """Let DeepSpeed compute in bf16 by autocast, over weights and a head in float32; its own bf16 rounds both."""
    if given.deepspeed_plugin is not None and given.bf16:
        autocast = {
            "enabled": True,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        }  # or it sends rounded heads
        given.deepspeed_plugin.deepspeed_config.update({"bf16": {"enabled": False}, "torch_autocast": autocast})
        given.bf16 = False


def keep_float32(trainer: Trainer) -> None:
    """Let FSDP2 leave bf16 to `autocast`, before it shares weights out; its own policy rounds the head."""
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.fsdp_version == 2:
        plugin.mixed_precision_policy = MixedPrecisionPolicy()


def autocast(trainer: Trainer) -> torch.autocast:
    """In which FSDP computes as `--bf16` says; everywhere else accelerate and DeepSpeed see to that."""
    return torch.autocast(trainer.args.device.type, torch.bfloat16, enabled=trainer.args.bf16)


class _Gathering(PaddedForward):
    """The forward inside a module whose call gathers the weights; all processes have to call it together."""

    def __init__(self, root: RewardModule) -> None:
        super().__init__(root.engine_forward.backbone)
        self._root = (root,)  # a tuple, so that it is no module inside of this one

    def collate(self, sequences: list[Any]) -> dict[str, Any]:
        """What the module takes."""
        return self._root[0].engine_forward.collate(sequences)

    def forward(self, **batch: Any) -> Tensor:  # type: ignore[override]
        """Hidden states at the reads, float32 [R, D]."""
        (root,) = self._root
        if isinstance(root, FSDPModule) and "states" not in vars(root):
            register_fsdp_forward_method(root, "states")
        return root.states(**batch)


def engine(root: RewardModule) -> PaddedEngine:
    """An engine that all processes run together, on the same sequences."""
    return PaddedEngine(_Gathering(root), together=True)


def check_resumable(trainer: Trainer, checkpoint: Path) -> None:
    """Raise BadInput where the optimizer's state is in a form that this launch does not read, and would begin anew."""
    if trainer.is_deepspeed_enabled:
        shares = len(list(checkpoint.glob("global_step*/*zero_pp_rank_*_optim_states.pt")))
        fits = any(checkpoint.glob("global_step*")) and shares in (0, trainer.args.world_size)  # 0: one file for all
    else:
        fits = any(checkpoint.glob("optimizer[._][b0]*" if trainer.is_fsdp_enabled else "optimizer.pt"))
    if not fits and not trainer.args.save_only_model:
        raise BadInput(
            f"{checkpoint} was saved by a launch of another sort (plain, FSDP, DeepSpeed), or by another number of"
            f" processes of DeepSpeed; launch as before to go on, or remove {checkpoint.parent}"
        )


def whole(trainer: Trainer) -> dict[str, Tensor]:
    """All weights by their names, in the memory of the first process; all processes have to call it together."""
    found: dict[str, Tensor] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return found


def _gathered(weight: Tensor) -> AbstractContextManager[Any]:
    """In which a weight that ZeRO-3 shares out, and that is empty outside, is whole in every process."""
    if not hasattr(weight, "ds_id"):
        return nullcontext()
    from deepspeed import zero

    return zero.GatheredParameters([weight])  # type: ignore[no-any-return]


def all_finite(weight: Tensor) -> bool:
    """Whether every number of a weight is one, in all processes; all of them have to call it together."""
    with _gathered(weight):
        finite = torch.isfinite(weight).all()
    return bool(finite.full_tensor() if isinstance(finite, DTensor) else finite)
