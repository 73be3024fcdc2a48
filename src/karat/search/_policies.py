"""Policies by the word that a user types: `arithmetic`, a causal model's folder or hub id, or an endpoint's URL."""

from dataclasses import dataclass

from karat.search.base import Policy, Sampling


@dataclass(frozen=True, slots=True)
class Wiring:
    """What only some policies need."""

    model: str | None = None  # of an endpoint: its name there; None is the only one that it has
    api: str = "chat"  # of an endpoint: "chat" or "completions"
    concurrency: int = 16  # of an endpoint: requests at a time
    batch_size: int = 32  # of a local model: sequences at a time
    device: str = "auto"
    dtype: str = "auto"


def open_policy(word: str, sampling: Sampling, wiring: Wiring | None = None) -> Policy:
    """The policy that a word stands for; what it needs is imported now.

    Raises:
        BadInput: an option that the policy cannot use.
        Refused: no causal model can be loaded from there.
        PolicyError: the endpoint does not answer, or does not say which model.
    """
    wiring = wiring or Wiring()
    if word.partition(":")[0] == "arithmetic":
        from karat.search._arithmetic import open_arithmetic

        return open_arithmetic(word)
    if word.startswith(("http://", "https://")):
        from karat.search._endpoint import Endpoint

        return Endpoint(word, sampling, wiring.model, wiring.api, wiring.concurrency)
    from karat.search._transformers import load

    return load(word, sampling, wiring.batch_size, wiring.device, wiring.dtype)
