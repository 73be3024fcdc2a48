"""What a person sees of a running training, and how Ctrl-C ends it: at the next step, with a checkpoint."""

import signal
import sys
import threading
import time
from collections.abc import Generator, Iterable
from types import FrameType
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from karat import progress

T = TypeVar("T")
LINES = 20  # of losses, where there is no terminal to draw on


def shown(items: Iterable[T], total: int, what: str) -> Generator[T, None, None]:
    """Pass items on; of several processes, the first one shows how many of `total` have passed.

    Close it where an error may come: a bar that is left open draws over the message.
    """
    yield from progress.track(items, total, what) if PartialState().is_main_process else items


class Progress(TrainerCallback):
    """A bar with rate and time left on a terminal, some twenty plain lines elsewhere, on stderr."""

    def __init__(self, rows_per_step: int) -> None:
        self.rows = rows_per_step
        self.bar: Any = None
        self.task: Any = None
        self.losses: list[float] = []  # since one was shown
        self.start, self.first = time.monotonic(), 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar."""
        self.start, self.first = time.monotonic(), state.global_step
        if state.is_world_process_zero and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self.bar = Progress(*columns, console=Console(stderr=True))
            self.task = self.bar.add_task("", total=state.max_steps, completed=state.global_step)
            self.bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Show the newest figures; losses as their mean since the last ones shown."""
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            self.losses.append(logs["loss"])
            if self._due(state):
                self._show(state, f"loss {sum(self.losses) / len(self.losses):.4f}")
                self.losses = []
        elif held_out := {n.removeprefix("eval_"): v for n, v in logs.items() if n.startswith("eval_")}:
            self._show(state, "  ".join(f"held-out {name} {value:.4f}" for name, value in held_out.items()))

    def _due(self, state: TrainerState) -> bool:
        if self.bar is not None or state.global_step in (1, state.max_steps):
            return True
        return state.global_step % max(1, state.max_steps // LINES) == 0

    def _show(self, state: TrainerState, figures: str) -> None:
        if self.bar is not None:
            self.bar.update(self.task, description=f"{figures}  {self._rate(state):.1f} rows/s")
        else:
            print(f"step {state.global_step}/{state.max_steps}  {figures}  {self._pace(state)}", file=sys.stderr)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Close the bar, which an error may have left open."""
        if self.bar is not None:
            self.bar.stop()

    def _rate(self, state: TrainerState) -> float:
        seconds = max(time.monotonic() - self.start, 1e-9)
        return (state.global_step - self.first) * self.rows / seconds

    def _pace(self, state: TrainerState) -> str:
        rate = self._rate(state)
        left = (state.max_steps - state.global_step) * self.rows / rate if rate else 0.0
        return f"{rate:.1f} rows/s  {left:.0f} s left"


class StopOnSignal(TrainerCallback):
    """The first Ctrl-C or SIGTERM ends training after the step with a checkpoint; the second one kills."""

    def __init__(self) -> None:
        self.asked = False
        self._speaks = True
        self._before: dict[int, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Catch the signals, where Python lets us: in the main thread."""
        self._speaks = state.is_world_process_zero
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if self._speaks:
            print("stopping after this step with a checkpoint; press Ctrl-C again to stop at once", file=sys.stderr)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop if asked to: all processes at the same step, whichever of them was asked."""
        if args.world_size > 1:
            self.asked = bool(gather(torch.tensor([self.asked], device=args.device)).any())
        if self.asked and state.global_step < state.max_steps:
            control.should_log = control.should_save = control.should_training_stop = True

    def release(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
