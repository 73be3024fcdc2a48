"""The one pipeline from text to reward: render → engine → head → activation → output. Training uses its first half."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from karat import types
from karat.engine._native import release_threads
from karat.engine.base import Engine, EngineError, States, TrainingForward
from karat.engine.padded import PaddedEngine, PaddedForward
from karat.engine.probe import choose, is_causal
from karat.engine.remote import RemoteEngine
from karat.engine.tiles import in_tiles
from karat.models import checkpoint
from karat.models._quantised import precision
from karat.models.backbone import sums
from karat.models.checkpoint import Parts
from karat.models.heads import (
    Head,
    aggregated,
    log_probabilities,
    rewards_of,
)
from karat.models.render import Rendered, Renderer
from karat.rewards._among import Meeting, Worth, among, in_order
from karat.rewards._examples import as_one, as_texts, as_two, other_alone, preferred, turned
from karat.rewards._results import Scored, as_result, averaged, by_step, flagged, joined, named
from karat.rewards.base import Output, Ranked, defaults, kind
from karat.spec import ids_hash
from karat.types import BadInput, Example, Prompt, Refused, Result, Reward, Unscored, as_messages

# Examples rendered and sent to the engine together: enough to sort by length, few enough to show progress.
CHUNK = 512


class RewardModule(nn.Module):
    """The engine's forward and the head on top, as one module that trains, shards and wraps."""

    def __init__(self, forward: TrainingForward, head: Head) -> None:
        super().__init__()
        self.engine_forward = forward
        self.head = head

    @property
    def _no_split_modules(self) -> list[str]:
        """The classes of the backbone's layers: what accelerate and DeepSpeed shard one by one."""
        named: Any = getattr(self.engine_forward.backbone, "_no_split_modules", None) or ()
        return sorted({type(module).__name__ for module in self.modules()} & set(named))

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """What transformers' Trainer calls to save memory: the backbone's own."""
        backbone: Any = self.engine_forward.backbone
        backbone.gradient_checkpointing_enable(self.engine_forward.again(gradient_checkpointing_kwargs), **kwargs)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """The newer name of the same."""
        backbone: Any = self.engine_forward.backbone
        backbone.activation_checkpointing_enable(self.engine_forward.again(activation_checkpointing_kwargs), **kwargs)

    def forward(self, **batch: Tensor) -> Tensor:
        """Numbers of the head at every read, float32 [R, k]."""
        numbers_Rk: Tensor = self.head(self.head.beside(self.engine_forward(**batch)))
        return numbers_Rk

    def states(self, **batch: Tensor) -> Tensor:
        """Hidden states at every read, float32 [R, D]."""
        return self.engine_forward(**batch)


class LocalModel:
    """A reward model on this machine; see `RewardModel` for its methods."""

    def __init__(
        self, parts: Parts, engine: Engine | None = None, deterministic: bool = False, compiled: bool = False
    ) -> None:
        self.parts = parts
        self.spec = parts.spec
        self.renderer = Renderer(parts.tokenizer, parts.spec, parts.positions)
        self.engine = engine or choose(parts.backbone, deterministic, compiled)
        if self.spec.head.type == "gated" and not self._is_causal():
            raise Refused(
                "the weights of objectives are read from the prompt, which in this model sees the answer; choose a"
                " causal language model"
            )
        self._kind = kind(self.spec.kind, dict(self.spec.options))
        self._reference = choose(parts.reference.backbone, deterministic, compiled) if parts.reference else None

    def _is_causal(self) -> bool:
        return isinstance(self.engine, RemoteEngine) or is_causal(PaddedEngine(PaddedForward(self.parts.backbone)))

    @property
    def output(self) -> Output:
        """What its rewards are: logits, probabilities, or ratings in the unit of the labels."""
        if self.compares or self.spec.weights or self.spec.head.type == "gated":
            return "rating" if self.spec.weights else "logit"  # utilities, of a model that compares
        if self.spec.at_steps:  # weights below 0 make a difference, which has its middle at 0
            weights = () if isinstance(self.spec.output, int) else self.spec.output
            return "logit" if self.spec.activation == "identity" or min(weights, default=0) < 0 else self._kind.output
        squashed = self.spec.activation != "identity" and isinstance(self.spec.output, int)
        return "probability" if squashed and self._kind.output == "logit" else self._kind.output

    @property
    def at_steps(self) -> bool:
        """Whether its rewards come with those of an answer's steps."""
        return self.spec.at_steps or self.spec.of_tokens

    @property
    def compares(self) -> bool:
        """Whether it has no reward for one answer, only for one beside another."""
        return self.spec.compares

    def with_options(self, **options: Any) -> "LocalModel":
        """The same model read by other spec options (`weights`, `at_least`, `activation`, `aggregate`, `max_length`…).

        Of a checkpoint that does not say how it is read, `pooling`, `step_token` and the tokens of `head` may be others
        as well. It shares weights and cache with this one. Raises Refused or BadInput for options that make another
        model.
        """
        other = copy(self)
        other.parts = checkpoint.reread(self.parts, self.spec.with_options(**options))
        other.spec = other.parts.spec
        if "aggregate" in options and not other.at_steps:
            raise Refused("this model gives no rewards of steps, so there is nothing to aggregate; leave aggregate out")
        other.renderer = Renderer(self.parts.tokenizer, other.spec, self.parts.positions)
        return other

    @property
    def fingerprint(self) -> str:
        """What decides a score beside the text: spec, weights and precision, or whose weights they are."""
        said = [self.spec.model_dump_json(), precision(self.parts.backbone), getattr(self.engine, "served", "")]
        models = [self.parts] if self.parts.reference is None else [self.parts, self.parts.reference]
        said += [f"{m.head.sha256()} {sums(m.backbone)}" for m in models]
        return ids_hash("\n".join(said).encode())

    def score(self, prompt: Prompt, responses: Sequence[str], *, strict: bool = False) -> list[Result]:
        """One result per response, in order."""
        responses = as_texts(responses)
        self._check_one_answer()
        messages = as_messages(prompt)
        return list(self.score_many([Example(messages, r) for r in responses], strict=strict))

    def _check_one_answer(self) -> None:
        if self.compares:
            raise Refused("this model compares two answers and has no reward for one; use compare or rank")

    def score_many(self, examples: Iterable[Any], *, strict: bool = False) -> Iterator[Result]:
        """One result per example, in order. An example is an `Example` or a row as `karat score` reads it.

        What is neither is unscored, like an answer that cannot be scored: the others keep their places.

        Raises:
            BadInput: it is one row, and no list of them.
        """
        if isinstance(examples, str | Mapping | Example) or not isinstance(examples, Iterable):
            raise BadInput(f"give a list of rows; this is {examples!r:.80}, so put it into a list if it is a row")
        self._check_one_answer()
        return _by_chunks(self._score, iter(examples), strict)

    def compare_many(self, examples: Iterable[Any], *, strict: bool = False) -> Iterator[Result]:
        """For each example with an `other` answer, the probability that its own is preferred, as the value.

        A model that reads two answers reads them in both orders; `orders` has the value of each, and the value is their
        mean. Raises Refused where `strict`, for the first that cannot be compared.
        """
        if self.spec.activation != "identity" and not (self.compares or self.spec.at_steps):
            raise Refused(
                "compare needs raw rewards, whose leads are log-odds; load the model with activation='identity'"
            )
        return _by_chunks(self._compare if self.compares else self._lead, iter(examples), strict)

    def _compare(self, rows: Sequence[Any]) -> list[Result]:
        """Both orders of each row."""
        read = [as_two(row) for row in rows]
        both = [e for own in read if isinstance(own, Example) for e in (own, turned(own))]
        found = iter(self._score(both))
        return [averaged(next(found), next(found)) if isinstance(own, Example) else own for own in read]

    def _lead(self, rows: Sequence[Any]) -> list[Result]:
        """What the kind makes of two rewards of their own."""
        read = [as_two(row) for row in rows]
        one = [e for own in read if isinstance(own, Example) for e in (replace(own, other=None), other_alone(own))]
        found = iter(self._score(one))
        return [self._preferred(next(found), next(found)) if isinstance(own, Example) else own for own in read]

    def _preferred(self, a: Result, b: Result) -> Result:
        if isinstance(a, Unscored) or isinstance(b, Unscored):
            return a if isinstance(a, Unscored) else b
        higher = float(a.value > b.value) + 0.5 * (a.value == b.value)
        return joined(a, b, higher if self.output == "rating" else self._kind.compare(a, b))

    def score_steps(self, prompt: Prompt, steps: Sequence[str]) -> Result:
        """The reward of one answer that is given in steps, with a reward for each of them in `steps`.

        Raises:
            Refused: the model has no rewards of steps.
            BadInput: `steps` is no list of texts.
        """
        if not self.at_steps:
            raise Refused(f"a {self.spec.kind} model has one reward for a whole answer; use score, or a process model")
        if isinstance(steps, str) or not isinstance(steps, Iterable):
            raise BadInput("steps has to be a list of texts; put a single step into a list")
        return self._score([{"prompt": prompt, "steps": list(steps)}])[0]

    def embed(self, texts: Iterable[str]) -> "npt.NDArray[np.float32]":
        """Vectors of texts, float32 [B, D].

        Raises:
            Refused: the model has rewards and no vectors.
            BadInput: `texts` is no list of texts, or one of them cannot be read; says which.
        """
        if self.spec.head.type != "hidden":
            raise Refused(f"a {self.spec.kind} model has no embeddings; load it with kind='embedding'")
        texts = texts if isinstance(texts, str) else list(texts)
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise BadInput("texts has to be a list of texts; put a single text into a list")
        rendered = self.renderer(Example((), text) for text in texts)
        for number, result in enumerate(rendered, 1):
            if isinstance(result, Unscored):
                raise BadInput(f"text {number}: {result.reason}")
        return self.vectors([r.sequence for r in rendered if isinstance(r, Rendered)])

    def vectors(self, sequences: Sequence[types.Sequence]) -> "npt.NDArray[np.float32]":
        """The head's numbers of sequences that are read once each, float32 [B, D]."""
        chunks = [sequences[i : i + CHUNK] for i in range(0, len(sequences), CHUNK)]
        found = [self.numbers(chunk)[0].cpu() for chunk in chunks]
        vectors: npt.NDArray[np.float32] = (torch.cat(found) if found else torch.empty(0, self._width)).numpy()
        return vectors

    @property
    def _width(self) -> int:
        return self.spec.head.dimensions or int(self.parts.backbone.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def compare(self, prompt: Prompt, a: str, b: str) -> float:
        """Probability that `a` is preferred to `b`."""
        return preferred(self.compare_many, prompt, a, b)

    def rank(
        self,
        prompt: Prompt,
        responses: Sequence[str],
        *,
        meeting: Meeting | None = None,
        worth: Worth = "bradley_terry",
    ) -> list[Ranked]:
        """The responses, best first; below a floor of `at_least` come behind, and unscored ones last.

        Of a model that compares, the values are utilities, in logits that sum to 0 over the different responses, and
        `meeting` says which pairs are read: "round_robin" (all; the default up to 8 responses), "active" (n log n of
        them, where the order is in doubt; the default beyond) or "tournament" (n - 1, which find the best alone).
        With `worth` "borda" the values are mean probabilities of winning instead.

        Raises:
            Refused: `meeting` is given, and the model scores each response by itself.
        """
        if self.compares:
            examples = [Example(as_messages(prompt), r) for r in as_texts(responses)]
            return in_order(among(self, examples, meeting, worth))
        if meeting is not None:
            raise Refused("this model scores each response by itself, so none have to meet; leave meeting out")
        return in_order(self.score(prompt, responses))

    def score_text(self, text: str) -> Result:
        """Score a finished, templated text."""
        if not isinstance(text, str):
            raise BadInput(f"a finished text has to be a str, but got {text!r:.80}")
        if self.spec.head.type == "hidden":
            raise Refused("this model gives embeddings and no rewards; use embed, or load it as another kind")
        return self._score_rendered([self.renderer.finished(text)])[0]

    def _score(self, rows: Sequence[Any]) -> list[Result]:
        if self.spec.head.type == "hidden":
            raise Refused("this model gives embeddings and no rewards; use embed, or load it as another kind")
        read = [as_one(row) for row in rows]
        rendered = iter(self.renderer(e for e in read if isinstance(e, Example)))
        return self._score_rendered([next(rendered) if isinstance(e, Example) else e for e in read])

    def _score_rendered(self, rendered: Sequence[Rendered | Unscored]) -> list[Result]:
        good = [r for r in rendered if isinstance(r, Rendered)]
        scored = iter(self._scored([r.sequence for r in good]))
        results = [as_result(r, next(scored)) if isinstance(r, Rendered) else r for r in rendered]
        return [flagged(r, self.spec) if self.spec.at_least else r for r in results]

    def _scored(self, sequences: Sequence[types.Sequence]) -> Sequence[Scored | Unscored]:
        """The rewards; where the engine refuses a sequence, those of all others still."""
        try:
            return self.scored(sequences)
        except EngineError as error:
            if len(sequences) == 1:
                return [Unscored(str(error), failed=True)]
            half = len(sequences) // 2
            return [*self._scored(sequences[:half]), *self._scored(sequences[half:])]

    def values(self, sequences: Sequence[types.Sequence]) -> list[float]:
        """The reward of each sequence."""
        return [scored.value for scored in self.scored(sequences)]

    def numbers(self, sequences: Sequence[types.Sequence]) -> tuple[Tensor, list[States]]:
        """The head's numbers at every read, float32 [R, k], and the states of each sequence; equal ones get equal bits.

        Where steps are read, a sequence has a read per step, else one.
        """
        found = self.engine.run(list(sequences))
        return self.numbers_of(sequences, found), found

    @torch.no_grad()
    def numbers_of(self, sequences: Sequence[types.Sequence], found: Sequence[States]) -> Tensor:
        """The head's numbers at every read, float32 [R, k], from the states of each sequence."""
        own = [torch.cat([states[name] for name in self.spec.reads], dim=-1) for states in found]
        states_RD = torch.cat(own).to(self.parts.device)
        if self.spec.of_tokens:
            return self._log_ratios(sequences, states_RD)[:, None]
        return in_tiles(self.parts.head, states_RD)

    def _log_ratios(self, sequences: Sequence[types.Sequence], states_RD: Tensor) -> Tensor:
        """Beta * log(P / P of the reference) of each token of the answers, [R], in nats."""
        name, beta = self.spec.pooling, self.spec.head.beta
        places = [(s, read) for s in sequences if isinstance(read := s.reads[name], tuple)]
        ids_R = torch.tensor([s.ids[at + 1] for s, read in places for at in read], device=states_RD.device)
        found_R = log_probabilities(self.parts.head, states_RD, ids_R)
        return beta * (found_R - self.reference_log_probabilities(sequences))

    @torch.no_grad()
    def reference_log_probabilities(self, sequences: Sequence[types.Sequence]) -> Tensor:
        """What the reference says of each token of the answers, [R], in nats; zeros where there is none."""
        name = self.spec.pooling
        places = [(s, read) for s in sequences if isinstance(read := s.reads[name], tuple)]
        ids_R = torch.tensor([s.ids[at + 1] for s, read in places for at in read], device=self.parts.device)
        if self._reference is None or self.parts.reference is None:
            return torch.zeros(len(ids_R), device=self.parts.device)
        states_RD = torch.cat([states[name] for states in self._reference.run(list(sequences))])
        return log_probabilities(self.parts.reference.head, states_RD.to(self.parts.device), ids_R)

    def scored(self, sequences: Sequence[types.Sequence]) -> list[Scored]:
        """The reward of each sequence, and what of it was not computed for it."""
        if not sequences:
            return []
        numbers_Rk, found = self.numbers(sequences)
        return self.rewards(numbers_Rk, sequences, found)

    def rewards(self, numbers_Rk: Tensor, sequences: Sequence[types.Sequence], found: Sequence[States]) -> list[Scored]:
        """What `numbers` gave as rewards: activation, output and, where steps are read, their aggregate."""
        values, out = iter(rewards_of(self.spec, numbers_Rk).tolist()), []
        by_name = named(self.spec, numbers_Rk)
        for sequence, states in zip(sequences, found, strict=True):
            own = tuple(islice(values, len(states[self.spec.pooling])))
            if self.spec.of_tokens:
                steps = own if self.spec.pooling == "token" else by_step(own, sequence)
                out.append(Scored(aggregated(self.spec, steps), states.cached_tokens, steps))
            elif self.spec.at_steps:
                out.append(Scored(aggregated(self.spec, own), states.cached_tokens, own))
            else:
                out.append(Scored(own[0], states.cached_tokens, None, *(by_name[len(out)] if by_name else ())))
        finite_R = torch.isfinite(numbers_Rk).all(-1)
        if finite_R.all():
            return out
        of_each = torch.split(finite_R, [len(states[self.spec.pooling]) for states in found])
        return [own._replace(sound=bool(finite.all())) for own, finite in zip(out, of_each, strict=True)]

    def as_rewards(self, scored: Sequence[Scored]) -> list[Reward]:
        """Rewards without an account of tokens."""
        return [Reward(s.value, s.steps, s.objectives, s.gate) for s in scored]


def _by_chunks(score: Callable[[Sequence[Any]], list[Result]], rows: Iterator[Any], strict: bool) -> Iterator[Result]:
    while chunk := list(islice(rows, CHUNK)):
        for result in score(chunk):
            if strict and isinstance(result, Unscored):
                raise Refused(result.reason)
            yield result


def load(
    path: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    deterministic: bool = False,
    compiled: bool = False,
    **options: Any,
) -> LocalModel:
    """A reward model from a folder or hub id; see `karat.load`."""
    if not isinstance(path, str | Path):
        raise BadInput(f"a model is the path of a folder or a hub id, but got {path!r:.80}")
    parts = checkpoint.load(path, device, dtype, of_kind, **options)
    model = LocalModel(parts, deterministic=deterministic, compiled=compiled)
    release_threads()  # a server's model is loaded in one thread, and computes in another
    return model


def of_kind(options: Mapping[str, Any]) -> dict[str, Any]:
    """What the kind that options name says beside them."""
    return defaults(str(options["kind"]), options) if "kind" in options else {}


def golden_values(parts: Parts, examples: Sequence[Example], engine: Engine | None = None) -> list[float | None]:
    """The scoring function that checkpoints are verified with."""
    results = LocalModel(parts, engine)._score(examples)
    return [r.value if isinstance(r, Reward) else None for r in results]
