"""What a person sees of a running training, and how Ctrl-C ends it: at the next step, with a checkpoint."""

import signal
import sys
import time
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Progress(TrainerCallback):
    """A bar with rate and time left on a terminal, one plain line per log elsewhere, on stderr."""

    def __init__(self, rows_per_step: int) -> None:
        self.rows = rows_per_step
        self.bar: Any = None
        self.task: Any = None
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
        """Show the newest figures."""
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        shown = {"loss": "loss", "eval_accuracy": "held-out accuracy", "eval_auc": "held-out AUC"}
        figures = "  ".join(f"{word} {logs[key]:.4f}" for key, word in shown.items() if key in logs)
        if self.bar is not None:
            self.bar.update(self.task, description=f"{figures}  {self._rate(state):.1f} rows/s")
        elif figures:
            print(f"step {state.global_step}/{state.max_steps}  {figures}  {self._pace(state)}", file=sys.stderr)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
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
        self._before: dict[int, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Catch the signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("stopping after this step with a checkpoint; press Ctrl-C again to stop at once", file=sys.stderr)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop if asked to."""
        if self.asked and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True

    def release(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
