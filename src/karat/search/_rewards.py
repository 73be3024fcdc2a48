"""Reward models by the word that a user types: a folder or hub id, the URL of a `karat serve`, or `replay:FILE`."""

from collections.abc import Collection
from typing import Any

from karat.rewards.base import RewardModel
from karat.search.base import Options, method
from karat.types import BadInput


def check_given(name: str, options: Options, word: str | None, given: Collection[str]) -> None:
    """Raise BadInput for a reward model that a method would not ask, and for settings of one that there is not.

    Args:
        name: of the method.
        options: the method's.
        word: the reward model's; None where there is none.
        given: the names of the reward model's settings that a user gave.
    """
    if word is not None and not method(name).rewarded(options):
        raise BadInput(f"{name} chooses without rewards here; leave --reward out, or take another method")
    if word is None and given and not method(name).rewarded(options):
        raise BadInput(f"--{min(given).replace('_', '-')} is for a reward model, and there is none; leave it out")


def open_reward(word: str, device: str = "auto", dtype: str = "auto", **options: Any) -> RewardModel:
    """The reward model that a word stands for; `options` are as `karat.load` and `karat.connect` take them.

    Raises:
        BadInput: an option that it cannot use.
        Refused: there is no reward model that can be opened.
    """
    if word.startswith("replay:"):
        from karat.search._replay import RecordedRewards, read_recording

        if options:
            raise BadInput(f"recorded rewards are read as they are; leave out {sorted(options)[0]}")
        return RecordedRewards(read_recording(word.partition(":")[2]))
    import karat

    if word.startswith(("http://", "https://")):
        if told := sorted({"deterministic", "compiled"} & set(options)):
            raise BadInput(f"a served model computes as its server was told; give --{told[0]} to karat serve")
        return karat.connect(word, **options)
    return karat.load(word, device=device, dtype=dtype, **options)
