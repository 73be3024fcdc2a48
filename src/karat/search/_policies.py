"""Policies by the word that a user types: `arithmetic`, a causal model's folder or hub id, a URL, or `replay:FILE`."""

from collections.abc import Collection
from dataclasses import dataclass

from karat.search.base import Policy, Sampling
from karat.types import BadInput

_SAMPLING = ("temperature", "top_p", "max_tokens")
# The settings that not every policy uses, and which one uses them.
_USED = {
    "an endpoint": (*_SAMPLING, "policy_model", "api", "concurrency"),
    "a local policy": (*_SAMPLING, "batch_size", "device", "dtype", "chat_template"),
    "the arithmetic policy": (),
    "a recording": (),
}


@dataclass(frozen=True, slots=True)
class Wiring:
    """What only some policies need."""

    model: str | None = None  # of an endpoint: its name there; None is the only one that it has
    api: str = "chat"  # of an endpoint: "chat" or "completions"
    concurrency: int = 16  # of an endpoint: requests at a time
    batch_size: int = 32  # of a local model: sequences at a time
    device: str = "auto"
    dtype: str = "auto"
    chat_template: str = ""  # of a local model, in place of its own


def check_given(word: str, given: Collection[str]) -> None:
    """Raise BadInput for a setting that the policy would not use; `given` are the names of those that a user gave."""
    own = _sort(word)
    for name in given:
        users = [sort for sort, used in _USED.items() if name in used]
        if users and own not in users:
            told = name if name == "chat_template" else f"--{name.replace('_', '-')}"  # that one is the task's
            raise BadInput(f"{told} is for {' or '.join(users)}, and {own} does not use it; leave it out")


def _sort(word: str) -> str:
    if word.partition(":")[0] == "arithmetic":
        return "the arithmetic policy"
    if word.startswith("replay:"):
        return "a recording"
    return "an endpoint" if word.startswith(("http://", "https://")) else "a local policy"


def open_policy(word: str, sampling: Sampling, wiring: Wiring | None = None) -> Policy:
    """The policy that a word stands for; what it needs is imported now.

    Raises:
        BadInput: an option that the policy cannot use, or a temperature of 0.
        Refused: no causal model can be loaded from there.
        PolicyError: the endpoint does not answer, or does not say which model.
    """
    wiring = wiring or Wiring()
    if not sampling.temperature > 0:
        raise BadInput("temperature is 0, but samples that differ need one above 0")
    sort = _sort(word)
    if sort == "the arithmetic policy":
        from karat.search._arithmetic import open_arithmetic

        return open_arithmetic(word)
    if sort == "a recording":
        from karat.search._replay import Replay, read_recording

        return Replay(read_recording(word.partition(":")[2]))
    if sort == "an endpoint":
        from karat.rewards._endpoint import Endpoint

        return Endpoint(word, sampling, wiring.model, wiring.api, wiring.concurrency)
    from karat.rewards._endpoint import check_scheme
    from karat.rewards._generating import load

    check_scheme(word)
    return load(word, sampling, wiring.batch_size, wiring.device, wiring.dtype, wiring.chat_template)
