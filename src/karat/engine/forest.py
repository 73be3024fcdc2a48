"""The engine that computes every distinct prefix once, keeps it across calls, and fills forwards without padding."""

import copy
import threading
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from karat import types
from karat.engine import _compiled, _patches, fused, linear
from karat.engine.attention import RUNNING, Captured, Running, Store
from karat.engine.base import EngineError, States, check, out_of_memory
from karat.engine.padded import PaddedEngine, PaddedForward
from karat.engine.plan import Piece, Wanted, batches, build, pieces, places, positions_of
from karat.engine.tiles import GRAIN
from karat.engine.tree import Node, Rows, Separate, Tree, order, packed
from karat.models.backbone import alike_up_to, position_offset, vocabulary

SAMPLED = 16  # numbers of each weight that tell whether it was changed
_LOCKS: WeakKeyDictionary[nn.Module, threading.Lock] = WeakKeyDictionary()  # a backbone runs once at a time
SMALLEST = 64  # tokens to a forward below which running out of memory is final


class ForestEngine:
    """Sequences → a tree of their prefixes → forwards over what of it is not known yet."""

    def __init__(
        self,
        backbone: nn.Module,
        budget: int = 2048,
        cache: int = 16384,
        causal: bool = True,
        trim: bool = True,
        deterministic: bool = False,
        widen: bool = False,
        compiled: bool = False,
    ) -> None:
        """`budget`: tokens to a forward. `cache`: tokens whose keys and values are kept across calls.

        `causal`: a token's state is blind to what follows. `trim`: the last layer is computed only where it is read.
        `deterministic`: the same bits whatever shares the call or was cached. `widen`: compute in float32, from a copy
        of the weights, where the CPU is slow in their own type. `compiled`: by torch's compiler, layer by layer.
        """
        self.backbone: Any = backbone
        self.budget, self.cache = budget, cache
        self.causal, self.trim, self.deterministic = causal, trim, deterministic
        self.computed = 0  # tokens, over all calls
        self.widen, self.compiled = widen, compiled
        self._lock = _LOCKS.setdefault(backbone, threading.Lock())
        with self._lock, _patches.evaluating(backbone):
            self._adopt()

    def _adopt(self) -> None:
        """Take the backbone's weights as they are now."""
        self._drop()
        self._work: Any = copy.deepcopy(self.backbone).float() if self.widen else self.backbone
        self._offset = position_offset(self._work)
        self._configs = _patches.configs_of(self._work)
        config = self._work.config.get_text_config()
        heads = config.num_attention_heads
        self._group = max(1, heads // (getattr(config, "num_key_value_heads", None) or heads))
        self._alike = alike_up_to(self._work)
        layers = _patches.layers(self._work)
        self._last = layers[-1] if self.trim and len(layers) else None
        self._linears = [m for m in self._work.modules() if linear.takes(m)]
        self._forwards = _patches.tiled(self._work) if self.deterministic else {}
        self._forwards |= _compiled.forwards(layers) if self.compiled else fused.forwards(self._work)
        self._version = self._versions()
        # Fused optimisers and `.data` change weights without counting it: some numbers of each are compared as well.
        self._samples = [_some(weight.detach()) for weight in self.backbone.parameters()]
        self._sampled = self._numbers()

    def _versions(self) -> list[Any]:
        """What changes where what the backbone computes does."""
        kind = self.backbone.device.type
        found: list[Any] = [torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)]
        for part in self.backbone.modules():  # asked before every call, and `parameters()` spells out a name for each
            own = part.__dict__
            found.append(id(part))
            found += (*own["_forward_hooks"], *own["_forward_pre_hooks"])  # their numbers, which no other hook gets
            if "_active_adapter" in own:  # PEFT's, which are switched without a weight that changes
                found.append((str(own["_active_adapter"]), own.get("_disable_adapters")))
            for weight in (*own["_parameters"].values(), *own["_buffers"].values()):
                if weight is not None:
                    found += weight.data_ptr(), weight._version
        return found

    def _numbers(self) -> Tensor:
        """The sampled numbers as bits, since nothing equals what is no number."""
        return torch.cat([sample.reshape(-1).float() for sample in self._samples]).view(torch.int32)

    def _has_new_weights(self) -> bool:
        return self._version != self._versions() or not torch.equal(self._sampled, self._numbers())

    def clear(self) -> None:
        """Forget everything that was computed; the memory that held it is kept for what comes."""
        self.tree: Tree = Tree() if self.causal else Separate()
        self._free: Rows = np.arange(self.store.capacity, dtype=np.int32)
        self._calls = 0

    def _drop(self) -> None:
        """Forget everything that was computed, and its memory."""
        self.store = Store(0)
        self.clear()

    def run(self, sequences: list[types.Sequence]) -> list[States]:
        """See `Engine.run`."""
        check(sequences, vocabulary(self.backbone))
        with self._lock, torch.no_grad(), _patches.evaluating(self.backbone):
            if self._has_new_weights():
                self._adopt()
            alone = [i for i, s in enumerate(sequences) if not self._shares(s)]
            if not alone:
                return self._run_in_memory(sequences)
            shared = [i for i, s in enumerate(sequences) if self._shares(s)]
            forward = PaddedForward(self._work, budget=1) if self.deterministic else PaddedForward(self._work)
            found = dict(zip(alone, PaddedEngine(forward).run([sequences[i] for i in alone]), strict=True))
            found |= zip(shared, self._run_in_memory([sequences[i] for i in shared]), strict=True)
            return [found[i] for i in range(len(sequences))]

    def _shares(self, sequence: types.Sequence) -> bool:
        """Whether a prefix has the same states here as elsewhere: the tree tells tokens apart by their ids alone."""
        return not sequence.type_ids and len(sequence.ids) <= self._alike

    def _run_in_memory(self, sequences: list[types.Sequence]) -> list[States]:
        """With smaller forwards where memory runs out."""
        budget = self.budget
        while True:
            try:
                return self._run(sequences, budget)
            except BaseException as error:
                self._drop()  # half of a call is no cache
                if not out_of_memory(error):
                    raise
            budget //= 2
            if budget < SMALLEST:
                longest = max(len(s.ids) for s in sequences)
                raise EngineError(f"memory ran out on sequences of up to {longest} tokens; set max_length lower")

    def _run(self, sequences: list[types.Sequence], budget: int) -> list[States]:
        self._calls += 1
        tokens = [packed(s.ids) for s in sequences]
        ends = [self.tree.insert(t) for t in tokens]
        by_tokens = sorted(range(len(ends)), key=tokens.__getitem__)
        longest = max((len(s.ids) for s in sequences), default=0)
        self._reserve(longest, budget)
        if len(ends) > 1 and _kept(ends) > self.store.capacity - budget - longest:
            half = len(ends) // 2
            return self._in_turn(sequences, budget, (by_tokens[:half], by_tokens[half:]))
        wanted = Wanted()
        for end, sequence in zip(ends, sequences, strict=True):
            wanted.add(end, positions_of(sequence))
        fresh = _fresh(ends)
        todo = list(pieces(order(ends[i] for i in by_tokens), wanted))
        for piece in todo:
            for node in piece.node.path():
                node.needed += 1
        for end in ends:
            for node in end.path():
                node.used = self._calls
        for batch in batches(todo, budget, split=self.causal):
            self._compute(batch, wanted)
        found = [_states(end, s) for end, s in zip(ends, sequences, strict=True)]
        for states, sequence, count in zip(found, sequences, fresh, strict=True):
            states.cached_tokens = len(sequence.ids) - count
        return found

    def _in_turn(self, sequences: list[types.Sequence], budget: int, parts: tuple[list[int], ...]) -> list[States]:
        """Part after part: what the cache has of all of them leaves no room to compute the rest."""
        found: dict[int, States] = {}
        for part in parts:
            found |= zip(part, self._run([sequences[i] for i in part], budget), strict=True)
        return [found[i] for i in range(len(sequences))]

    def _reserve(self, longest: int, budget: int) -> None:
        """Room for the cache, or where that is more for one forward, the longest path, and as much that is kept."""
        capacity = max(self.cache, 2 * (budget + longest))
        if capacity > self.store.capacity:
            added = np.arange(self.store.capacity, capacity, dtype=np.int32)
            self._free = np.concatenate([self._free, added])
            self.store = self.store.grown(capacity)

    def _allocate(self, count: int) -> Rows:
        if len(self._free) < count:
            freed = self.tree.evict(max(count - len(self._free), self.store.capacity // 8))
            self._free = np.concatenate([self._free, freed])
        taken, self._free = self._free[:count], self._free[count:]
        assert len(taken) == count, "a forward and the paths above it fit into what is reserved"
        return taken

    def _compute(self, batch: list[Piece], wanted: Wanted) -> None:
        for piece in batch:
            if piece.keep:
                piece.node.rows = np.concatenate([piece.node.rows, self._allocate(len(piece))])
        planned = build(batch, wanted, self._group, self.causal, GRAIN if self.deterministic else 1)
        states_RD = self._forward(Running(planned, self.store))
        for (node, position), state in zip(planned.reads.places, states_RD, strict=False):
            node.states[position] = state
        self.computed += sum(map(len, batch))
        for piece in batch:
            if piece.last:
                for node in piece.node.path():
                    node.needed -= 1

    def _forward(self, running: Running) -> Tensor:
        """States at the reads of a planned forward, float32 [R, D]."""
        batch = running.batch.to(self._work.device)
        running.batch = batch
        RUNNING.update(dict.fromkeys(self._work.modules(), running))
        options: dict[str, Any] = {"use_cache": False} if self.causal else {}
        replaced = dict(self._forwards)
        if self._last is not None:
            replaced[self._last] = _patches.trimmed(replaced.get(self._last, self._last.forward), running)
        with _patches.attending(self._configs), _patches.multiplying(self._linears), _patches.forwards(replaced):
            try:
                out = self._work(
                    input_ids=batch.ids[None], position_ids=batch.positions[None] + self._offset, **options
                )
            except Captured:  # nothing is read here
                return torch.empty(0, 1)
            finally:
                running.store = Store(0)  # the modules may be known to attention for longer than the engine lives
        states: Tensor = out.last_hidden_state[0]
        return states[batch.reads.rows].float()


def _some(weight: Tensor) -> Tensor:
    """A view of some of its numbers."""
    if weight.is_contiguous():
        return weight.reshape(-1)[:: max(1, weight.numel() // SAMPLED)]
    return weight[tuple(slice(None, None, max(1, size // 4)) for size in weight.shape)]


def _fresh(ends: list[Node]) -> list[int]:
    """How many tokens of each sequence are computed for it: those that neither the cache nor one before it has."""
    claimed: set[int] = set()
    out = []
    for end in ends:
        mine = []
        for node in end.path():
            if id(node) in claimed:
                break
            mine.append(node)
        claimed.update(map(id, mine))
        out.append(sum(node.stop - node.done for node in mine))
    return out


def _kept(ends: list[Node]) -> int:
    """Rows of the cache that these sequences attend to."""
    return sum(len(node.rows) for node in order(ends))


def _states(end: Node, sequence: types.Sequence) -> States:
    at = {position: node.states[position] for node, position in places(end, positions_of(sequence))}
    out = States()
    for name, read in sequence.reads.items():
        if isinstance(read, types.Span):
            out[name] = torch.stack([at[p] for p in range(read.start, read.stop)]).mean(0, keepdim=True)
        else:
            out[name] = torch.stack([at[p] for p in read])
    return out
