"""CPU time of transformers' `Trainer.train`, for both sides alike: it barely moves when others use the machine."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import Trainer


@contextmanager
def cpu_of_training() -> Iterator[list[float]]:
    """A list that gets the CPU seconds, of all threads, of each `Trainer.train` inside."""
    spent: list[float] = []
    train = Trainer.train

    def timed(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return train(self, *args, **kwargs)
        finally:
            spent.append(time.process_time() - start)

    Trainer.train = timed
    try:
        yield spent
    finally:
        Trainer.train = train
