"""Specs by name, for published models whose files do not say how they are read; and specs in files of one's own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from karat.spec import RewardSpec, one_line, option_names
from karat.types import BadInput

_SHIPPED = Path(__file__).parent / "families" / "specs"


def names() -> list[str]:
    """The words that `spec` takes beside a file's path."""
    return sorted(file.stem for file in _SHIPPED.glob("*.json"))


def spelled_out(options: Mapping[str, Any]) -> dict[str, Any]:
    """Spec options in which `spec`, a name or a file's path, is replaced by what it says; others win over it.

    Raises:
        BadInput: there is no such name or file, or it is no spec, or says what is a checkpoint's own.
    """
    given = dict(options)
    return {**_said(str(given.pop("spec"))), **given} if "spec" in given else given


def _said(word: str) -> dict[str, Any]:
    """The options of a spec, by the flat names that users type."""
    path = _SHIPPED / f"{word}.json" if word in names() else Path(word)
    if not path.is_file():
        raise BadInput(f"spec={word!r} is no file, and none of the names that there are: {', '.join(names())}")
    try:
        told = RewardSpec.model_validate_json(path.read_bytes()).model_dump(exclude_unset=True)
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); check its rights") from None
    except ValidationError as error:
        raise BadInput(f"{path} is not a valid reward spec: {one_line(error)}") from None
    found = {**told.pop("render", {}), **_head(told.pop("head", {})), **told}
    if own := sorted(found.keys() - option_names()):
        raise BadInput(
            f"{path} says {', '.join(own)}, which is a checkpoint's own: take it out, or put the file into the model's"
            " folder as reward_spec.json"
        )
    return found


def _head(told: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of a head, as `head` and the options beside it; of logits, there is an output for each token."""
    dropped = {"type", "tokens", *(["outputs"] if told.get("tokens") else [])}
    others = {name: value for name, value in told.items() if name not in dropped}
    if "type" not in told:
        return others
    return {**others, "head": ":".join([told["type"], *([",".join(told["tokens"])] if told.get("tokens") else [])])}
