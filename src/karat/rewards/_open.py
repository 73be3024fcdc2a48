"""Opens whatever a folder holds: a model with weights of its own, or one that is made of others."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from karat import members
from karat.models import backbone
from karat.rewards import _local, _on_server
from karat.rewards.base import RewardModel
from karat.spec import FILE_NAME
from karat.types import BadInput, CheckpointError, Refused


class _How(NamedTuple):
    device: str
    dtype: str
    deterministic: bool
    compiled: bool
    engine: str | None


def open_model(
    path: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    deterministic: bool = False,
    compiled: bool = False,
    engine: str | None = None,
    **options: Any,
) -> RewardModel:
    """A reward model from a folder or hub id; see `karat.load`.

    A kind whose file has a `load(folder, opener, options)` opens its folders itself.
    """
    if not isinstance(path, str | Path):
        raise BadInput(f"a model is the path of a folder or a hub id, but got {path!r:.80}")
    opened = _open(path, _How(device, dtype, deterministic, compiled, engine), (), options)
    if "aggregate" in options and not opened.at_steps:
        raise Refused(f"{path} gives no rewards of steps, so there is nothing to aggregate; leave aggregate out")
    return opened


def _open(path: str | Path, how: _How, around: tuple[Path, ...], options: Mapping[str, Any]) -> RewardModel:
    """`around` are the folders that name this one, so that a folder that names itself is noticed."""
    here = Path(path).is_dir()
    folder = Path(path) if here else backbone.locate(path)
    wrapper = _wrapper(_kind_of(folder))
    if wrapper is None:
        if asked := _wrapper(options.get("kind")):
            raise Refused(asked.KIND.why)
        return _loaded(path, folder, how, options)
    if not here and getattr(wrapper, "SENDS", False):
        raise Refused(
            f"{path} would hand your texts to a program that it names, and comes from a hub; download it, look at its"
            f" {FILE_NAME}, and give the folder"
        )
    if folder.resolve() in around:
        raise CheckpointError(f"{folder} is made of itself; make it anew")

    inside: list[str | Path] = []

    def opener(inner: str | Path, **given: Any) -> RewardModel:
        inside.append(inner)
        if how.engine is not None and len(inside) > 1:
            raise Refused(f"{path} is made of several models, and an engine runs one; leave engine out")
        return _open(inner, how, (*around, folder.resolve()), given)

    opened: RewardModel = wrapper.load(folder, opener, options)
    if how.engine is not None and not inside:
        raise Refused(f"{path} has no weights that an engine could run; leave engine out")
    return opened


def _loaded(path: str | Path, folder: Path, how: _How, options: Mapping[str, Any]) -> RewardModel:
    """A model with weights of its own."""
    here = (how.device, how.dtype, how.deterministic, how.compiled)
    if how.engine is None:
        return _local.load(folder, *here, **options)
    return _on_server.load(path, how.engine, *here, **options)  # the server may call it by its hub id


def _kind_of(folder: Path) -> Any:
    """What the folder's spec calls itself; None where it says nothing that can be read."""
    try:
        said = json.loads((folder / FILE_NAME).read_bytes())
    except (OSError, ValueError):
        return None
    return said.get("kind") if isinstance(said, dict) else None


def _wrapper(kind: Any) -> Any:
    """The module of a kind that opens its own folders, else None."""
    if not isinstance(kind, str) or kind not in members.describe("rewards"):
        return None
    module = members.load("rewards", kind, "kind")
    return module if hasattr(module, "load") else None
