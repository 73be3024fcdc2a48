"""An engine whose backbone runs on a vLLM server: token ids go there, hidden states come back.

For models that one accelerator cannot hold. Rendering, tokenising and heads stay here; of the backbone's weights only
its last norm is known here, by which every state that comes back is checked.
"""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from karat import types
from karat.engine._pooling import EngineLost, Pooling, Served
from karat.engine.base import EngineError, States, check
from karat.engine.probe import TOLERANCE
from karat.models.backbone import vocabulary
from karat.types import Refused

ROWS, TOKENS = 16, 8192  # of a request; what is said of more rows would not fit into a proxy's header
BYTES = 1 << 25  # of an answer, as far as rows can be parted
CONNECTIONS = 8  # requests under way
KEY = "VLLM_API_KEY"
_OFF = 0.03  # by which the last norm's size may be off: half precision rounds each of its numbers
_PROBED, _SHARED = 24, 9  # tokens of the rows that a server is tried with, and how many of them two rows share

Ids = tuple[int, ...]


class LastNorm:
    """What the last norm of a backbone leaves on every state: numbers of size 1, times its weight, plus its bias.

    A state that was scaled to length 1, averaged with others, projected, or taken before the norm does not have it;
    nor has one of a model with another norm.
    """

    def __init__(self, norm: nn.Module, width: int) -> None:
        """`norm`: with its weights, on the CPU."""
        signs_D = torch.ones(width)
        signs_D[1::2] = -1  # of mean 0 and size 1: whatever norm it is leaves it as it is
        with torch.no_grad():
            up_D, down_D = norm(signs_D[None])[0], norm(-signs_D[None])[0]
        self.weight_D, self.bias_D = signs_D * (up_D - down_D) / 2, (up_D + down_D) / 2

    def size(self, states_ND: Tensor) -> Tensor:
        """The root mean square that the norm's own numbers have in each state, [N]; 1 where it is as it should be."""
        real_D = self.weight_D.abs() > 1e-6
        numbers_ND = (states_ND - self.bias_D)[:, real_D] / self.weight_D[real_D]
        size_N: Tensor = numbers_ND.square().mean(-1).sqrt()
        return size_N


class RemoteEngine:
    """The backbone of one checkpoint on a server; see `Engine`. Many threads may call it."""

    causal = True

    def __init__(
        self, url: str, backbone: nn.Module, norm: LastNorm, path: str | Path, known: bool = False, dtype: str = "auto"
    ) -> None:
        """`backbone` has no weights; `path` is the checkpoint's folder or hub id.

        `url` may name one of the server's models behind a #. `known` says that the caller has scores to compare with,
        so that the model's name decides nothing. `dtype` is what the server has to compute in; "auto" takes any.

        Raises:
            BadInput: the URL is none.
            Refused: the server does not answer, or has another model, or gives something else than hidden states.
        """
        self.backbone, self._norm = backbone, norm
        base, _, name = url.partition("#")
        self._pooling = Pooling(base, os.environ.get(KEY), CONNECTIONS)
        try:
            served = _chosen(self._pooling, name, str(path), known)
            self.longest, self._pooling.model = served.longest, served.name
            self.served = f"{base}#{served.name}"  # whose weights they are
            self._begin(dtype)
        except (EngineLost, EngineError) as error:
            raise Refused(str(error)) from None

    def _begin(self, dtype: str) -> None:
        """Find out what the server gives, and refuse what is not this backbone's hidden states."""
        whole, other = _probes(vocabulary(self.backbone))
        ids = [whole, whole[:_SHARED], other]
        arrays = self._pooling.arrays(ids)
        self.every = arrays[0].dim() == 2  # token_embed: a state for each token; else of the last one alone
        for row, array in zip(ids, arrays, strict=True):
            self._check_shape(row, array)
        whole_ND, short_ND, other_ND = (array.reshape(-1, array.shape[-1]) for array in arrays)
        self._check_norm(torch.cat([whole_ND, short_ND, other_ND]))
        self.dtype = _precision(torch.cat([whole_ND, short_ND, other_ND]))
        close = TOLERANCE[self.dtype] * (1 + float(whole_ND.abs().max()))
        if self.every and not float((whole_ND[:_SHARED] - short_ND).abs().max()) <= close:
            raise Refused(f"{self._is} computes a token by what follows it; karat needs a causal model there")
        if float((whole_ND[-1] - other_ND[-1]).abs().max()) <= close:
            raise Refused(f"{self._is} gives one state to rows that end otherwise; start it with {_how('embed')}")
        said = str(self.dtype).removeprefix("torch.")
        if dtype not in ("auto", said):
            raise Refused(f"{self._is} computes in {said}, not {dtype}; start it with --dtype {dtype}, or give dtype")

    def run(self, sequences: list[types.Sequence]) -> list[States]:
        """See `Engine.run`. What vLLM had in its prefix cache is not said, so `cached_tokens` stays 0.

        Raises:
            EngineLost: the server does not answer any more, or gives something else than at first.
        """
        check(sequences, vocabulary(self.backbone))
        self._check_reads(sequences)
        wanted: dict[Ids, set[int]] = {}
        for sequence in sequences:
            for at in _positions(sequence):
                ids, place = (sequence.ids, at) if self.every else (sequence.ids[: at + 1], at)
                wanted.setdefault(ids, set()).add(place)
        states = self._asked(wanted)
        return [self._read(sequence, states) for sequence in sequences]

    def _read(self, sequence: types.Sequence, states: dict[tuple[Ids, int], Tensor]) -> States:
        found = States()
        for name, read in sequence.reads.items():
            own_RD = torch.stack([states[self._key(sequence.ids, at)] for at in _places(read)])
            found[name] = own_RD.mean(0, keepdim=True) if isinstance(read, types.Span) else own_RD
        return found

    def _key(self, ids: Ids, at: int) -> tuple[Ids, int]:
        return (ids if self.every else ids[: at + 1]), at

    def _asked(self, wanted: dict[Ids, set[int]]) -> dict[tuple[Ids, int], Tensor]:
        """The state of each row of ids at each place, asked for in a few requests at a time."""
        states: dict[tuple[Ids, int], Tensor] = {}
        width = self._norm.weight_D.numel() if self.every else 0
        # Sorted, rows that begin alike are neighbours, the shorter first: what the server's prefix cache wants.
        batches = list(_batches(sorted(wanted), width))
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            try:
                for found in threads.map(lambda rows: self._fetched(rows, wanted), batches):
                    states |= found
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        return states

    def _fetched(self, rows: list[Ids], wanted: dict[Ids, set[int]]) -> dict[tuple[Ids, int], Tensor]:
        """The states that are read of some rows; all others are dropped where they arrive."""
        found: dict[tuple[Ids, int], Tensor] = {}
        for ids, array in zip(rows, self._pooling.arrays(rows), strict=True):
            found |= self._kept(ids, array, sorted(wanted[ids]))
        return found

    def _kept(self, ids: Ids, array: Tensor, places: list[int]) -> dict[tuple[Ids, int], Tensor]:
        """Of what came back for a row, the states that are read, checked."""
        self._check_shape(ids, array)
        states_RD = array[places] if self.every else array[None]
        self._check_norm(states_RD)
        return {(ids, place): state_D.clone() for place, state_D in zip(places, states_RD, strict=True)}

    # What is refused

    @property
    def _is(self) -> str:
        return f"the engine at {self._pooling.url}"

    def _check_reads(self, sequences: Iterable[types.Sequence]) -> None:
        for sequence in sequences:
            if sequence.type_ids is not None:
                raise EngineError("segments cannot be told to a remote engine; load the model here")
            if not self.every and any(isinstance(read, types.Span) for read in sequence.reads.values()):
                raise EngineError(
                    f"a mean over tokens needs the states of all of them; start the engine with {_how('token_embed')}"
                )

    def _check_shape(self, ids: Ids, array: Tensor) -> None:
        width = self._norm.weight_D.numel()
        if tuple(array.shape) == ((len(ids), width) if self.every else (width,)):
            return
        raise EngineLost(
            f"{self._is} gives an array of {[*array.shape]} for {len(ids)} tokens, where this model's states have"
            f" {width} numbers; see that it runs this model, with {_how('embed')}"
        )

    def _check_norm(self, states_ND: Tensor) -> None:
        size_N = self._norm.size(states_ND)
        size_N = size_N[size_N.isfinite()]  # of what is no number there is no reward, as with every engine
        if bool(((size_N - 1).abs() <= _OFF).all()):
            return
        raise EngineLost(
            f"{self._is} gives no hidden states of this model: without its last norm they have size"
            f" {float(size_N[(size_N - 1).abs().argmax()]):.3g} and not 1; see that it runs this model, with"
            f" {_how('embed')}, and nothing that scales, projects or averages them"
        )


def _how(task: str) -> str:
    """Options of vLLM's that make an engine."""
    chosen = "" if task == "embed" else f' --pooler-config \'{{"task": "{task}"}}\''
    return f"--runner pooling --convert embed{chosen}"


def _chosen(pooling: Pooling, name: str, path: str, known: bool) -> Served:
    """The model of a server that has this name, else the path's."""
    served = pooling.served()
    names = ", ".join(own.name for own in served)
    if name:
        found = [own for own in served if own.name == name]
        if not found:
            raise Refused(f"{pooling.url} has no model {name!r}, but {names}; write one of them behind the #")
        return found[0]
    last = Path(path).name
    alike = [own for own in served if last and last in (Path(own.name).name, Path(own.root).name)]
    if len(alike) == 1 or (known and len(served) == 1):
        return (alike or served)[0]
    raise Refused(
        f"{pooling.url} has {names or 'no model'}, of which karat cannot tell that it is {path}; if it is, write its"
        f" name behind the URL, as in {pooling.url}#{served[0].name if served else 'NAME'}"
    )


def _probes(known: int) -> tuple[Ids, Ids]:
    """Two rows of ids below `known`, the last among them, that begin alike."""
    chance = torch.Generator().manual_seed(0)
    whole, other = (torch.randint(known, (_PROBED,), generator=chance).tolist() for _ in range(2))
    whole[_SHARED] = known - 1
    return tuple(whole), (*whole[:_SHARED], *other[_SHARED:])


def _precision(states_ND: Tensor) -> torch.dtype:
    """What states were computed in, of which float32 is a copy."""
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(states_ND.to(dtype).float(), states_ND):
            return dtype
    return torch.float32


def _places(read: types.Read) -> Sequence[int]:
    return range(read.start, read.stop) if isinstance(read, types.Span) else read


def _positions(sequence: types.Sequence) -> set[int]:
    return {at for read in sequence.reads.values() for at in _places(read)}


def _batches(rows: Iterable[Ids], width: int) -> Iterable[list[Ids]]:
    """Rows by request; `width` are the numbers that come back for each token, 0 where only one state does."""
    most = min(TOKENS, BYTES // (4 * width)) if width else TOKENS
    batch: list[Ids] = []
    for ids in rows:
        if batch and (len(batch) == ROWS or sum(map(len, batch)) + len(ids) > most):
            yield batch
            batch = []
        batch.append(ids)
    if batch:
        yield batch
