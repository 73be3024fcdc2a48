"""Every distinct prefix once: a radix tree over tokens, whose nodes remember where their keys and values lie.

It lives across calls, so it is the cache as well. It knows nothing of models or tensors' contents.
"""

import itertools
import struct
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

WIDTH = struct.calcsize("i")
Rows = npt.NDArray[np.int32]
_NONE: Rows = np.empty(0, dtype=np.int32)


class Node:
    """A stretch of tokens that no sequence leaves halfway."""

    __slots__ = ("children", "key", "needed", "parent", "rows", "start", "states", "stop", "tokens", "used")

    def __init__(self, tokens: bytes, parent: "Node | None", key: bytes = b"") -> None:
        self.tokens = tokens
        self.key = key  # its own among its parent's children
        self.parent = parent
        self.start: int = parent.stop if parent else 0  # position of its first token
        self.stop: int = self.start + len(tokens) // WIDTH
        self.children: dict[bytes, Node] = {}
        self.rows: Rows = _NONE  # where keys and values of its first tokens are kept
        self.states: dict[int, Tensor] = {}  # what was read, by position
        self.needed = 0  # pieces of the running call that attend to it
        self.used = 0  # the last call that did

    @property
    def done(self) -> int:
        """The position behind its last token that is computed."""
        return self.start + len(self.rows)

    @property
    def ids(self) -> Rows:
        """Its tokens."""
        return np.frombuffer(self.tokens, dtype=np.int32)

    def path(self) -> Iterator["Node"]:
        """Itself and its ancestors, without the root."""
        node: Node | None = self
        while node is not None and node.parent is not None:
            yield node
            node = node.parent

    def path_rows(self, first: int) -> Rows:
        """Rows of all computed positions from `first` up to its own last one."""
        parts = []
        for node in self.path():
            parts.append(node.rows[max(0, first - node.start) :])
            if node.start <= first:
                break
        return np.concatenate(parts[::-1]) if parts else _NONE


class Tree:
    """All nodes, from a root without tokens."""

    def __init__(self) -> None:
        self.root = Node(b"", None)

    def insert(self, tokens: bytes) -> Node:
        """The node at whose end these tokens end; nodes are made and split as needed."""
        node, at = self.root, 0
        while at < len(tokens):
            child = node.children.get(tokens[at : at + WIDTH])
            if child is None:
                return self._grow(node, tokens[at:], tokens[at : at + WIDTH])
            if not tokens.startswith(child.tokens, at):
                child = _split(child, _common(child.tokens, tokens[at : at + len(child.tokens)]))
            node, at = child, at + len(child.tokens)
        return node

    def _grow(self, parent: Node, tokens: bytes, key: bytes) -> Node:
        node = parent.children[key] = Node(tokens, parent, key)
        return node

    def nodes(self) -> Iterator[Node]:
        """Every node, children before their parent, without the root."""
        stack = [(self.root, iter(self.root.children.values()))]
        while stack:
            node, children = stack[-1]
            child = next(children, None)
            if child is not None:
                stack.append((child, iter(child.children.values())))
            else:
                stack.pop()
                if node is not self.root:
                    yield node

    def evict(self, count: int) -> Rows:
        """Forget least recently used nodes that nothing running needs until `count` rows are free."""
        freed: list[Rows] = []
        total = 0
        leaves = sorted((n for n in self.nodes() if not n.children and not n.needed), key=lambda n: n.used)
        for leaf in leaves:
            node: Node | None = leaf
            while total < count and node is not None and node.parent and not node.children and not node.needed:
                if node.used > leaf.used:
                    break  # its turn comes later
                freed.append(node.rows)
                total += len(node.rows)
                parent = node.parent
                del parent.children[node.key]
                node = parent
        if total < count and leaves:
            return np.concatenate([*freed, self.evict(count - total)])
        return np.concatenate(freed) if freed else _NONE


class Separate(Tree):
    """Whole sequences side by side, for models in which a token's state depends on what follows it."""

    def insert(self, tokens: bytes) -> Node:
        """The node of exactly these tokens."""
        return self.root.children.get(tokens) or self._grow(self.root, tokens, tokens)


def packed(ids: Sequence[int]) -> bytes:
    """Tokens as bytes, `WIDTH` to a token."""
    return struct.pack(f"{len(ids)}i", *ids)  # a third of the time of array or NumPy


def _split(node: Node, count: int) -> Node:
    """Cut a node behind `count` of its tokens; returns the new upper part, and keeps the object as the lower one."""
    assert node.parent is not None
    top = Node(node.tokens[: count * WIDTH], node.parent, node.key)
    node.parent.children[node.key] = top
    top.rows, node.rows = node.rows[:count], node.rows[count:]
    top.states = {p: s for p, s in node.states.items() if p < top.stop}
    node.states = {p: s for p, s in node.states.items() if p >= top.stop}
    top.used, top.needed = node.used, node.needed
    node.tokens, node.parent, node.start = node.tokens[count * WIDTH :], top, top.stop
    node.key = node.tokens[:WIDTH]
    top.children[node.key] = node
    return top


def _common(a: bytes, b: bytes) -> int:
    """How many tokens two runs share at their beginning."""
    shared = min(len(a), len(b)) // WIDTH
    different = np.frombuffer(a, np.int32, shared) != np.frombuffer(b, np.int32, shared)
    first = int(different.argmax()) if shared else 0
    return first if shared and different[first] else shared


def order(nodes: Iterable[Node]) -> list[Node]:
    """Those nodes and their ancestors, parents first, each once; nodes that come sorted by tokens give depth first."""
    seen: dict[int, Node] = {}
    for leaf in nodes:
        new = list(itertools.takewhile(lambda n: id(n) not in seen, leaf.path()))
        for node in reversed(new):
            seen[id(node)] = node
    return list(seen.values())
