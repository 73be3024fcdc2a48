"""A reward model whose backbone a server runs: everything but the hidden states is computed here."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from karat.engine.remote import LastNorm, RemoteEngine
from karat.models import checkpoint
from karat.rewards._local import LocalModel, golden_values, of_kind
from karat.types import CheckpointError, Refused


def load(
    path: str | Path,
    url: str,
    device: str = "auto",
    dtype: str = "auto",
    deterministic: bool = False,
    compiled: bool = False,
    **options: Any,
) -> LocalModel:
    """A reward model from a folder or hub id, of which the server at `url` has the backbone; see `RemoteEngine`.

    Raises:
        Refused: the model cannot run so, or the server is none for it.
        CheckpointError: the folder's golden inputs do not score there as they did when it was saved.
    """
    given = {"device": device not in ("auto", "cpu"), "deterministic": deterministic, "compiled": compiled}
    if what := ", ".join(name for name, asked in given.items() if asked):
        raise Refused(f"the server decides how its engine runs; leave {what} out")
    outline = checkpoint.outline(path, of_kind, **options)
    parts, saved = outline.parts, outline.saved
    golden = saved is not None and bool(saved.golden) and math.isfinite(checkpoint.golden_tolerance(parts))
    engine = RemoteEngine(url, parts.backbone, LastNorm(outline.norm, outline.width), path, golden, dtype)
    parts.backbone.to(engine.dtype)
    model = LocalModel(replace(parts, longest=engine.longest), engine)
    if saved is not None and golden:
        as_saved = replace(model.parts, spec=saved.model_copy(update={"head": parts.spec.head}))
        score, tolerance = partial(golden_values, engine=engine), checkpoint.golden_tolerance(model.parts)
        if drift := checkpoint.golden_drift(as_saved, saved, score, tolerance):
            raise CheckpointError(f"the engine at {url} runs another model, or in other numbers: {drift}")
    return model
