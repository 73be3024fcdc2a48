"""karat: one home for reward models.

Describe once how text becomes a reward; the same description trains the model, scores files and evaluates.
Importing karat loads neither torch nor transformers; they come with the first model.
"""

from typing import TYPE_CHECKING, Any

from karat.types import BadInput, CheckpointError, Example, KaratError, Message, Refused, Reward, Unscored

if TYPE_CHECKING:
    from karat.rewards.base import RewardModel

__version__ = "0.1.0.dev0"

__all__ = [
    "BadInput",
    "CheckpointError",
    "Example",
    "KaratError",
    "Message",
    "Refused",
    "Reward",
    "Unscored",
    "connect",
    "load",
]


def load(
    path: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    deterministic: bool = False,
    compiled: bool = False,
    engine: str | None = None,
    **options: Any,
) -> "RewardModel":
    """A reward model from a folder or hub id.

    `device` "auto" is the first GPU, or the CPU. `dtype` "auto" is float32 on a CPU and the checkpoint's own on a GPU;
    heads are float32 always. `deterministic` gives a text the same bits whatever is scored beside or before it, at a
    little less speed; without it they agree to about 1e-6 in float32. `compiled` starts up to half a minute later and
    is for layers that karat has no kernels for (see docs/speed.md). `engine` is the URL of a vLLM server that
    runs the backbone, whose weights are not loaded then (see docs/scale.md). `options` are spec fields by name, as on
    the command line (`kind`, `pooling`, `max_length`, `over_length`, `layout`, …); they complete or override what the
    checkpoint says. `spec` stands for those of a published model, by name (such as "math-shepherd"), or of a file.

    Raises:
        Refused: the folder holds no reward model, or one whose meaning cannot be decided; names what would settle it.
            Or it cannot be compiled.
        CheckpointError: weights, tokenizer or template are not those that the spec was saved with.
    """
    from karat.rewards import _open

    return _open.open_model(path, device, dtype, deterministic, compiled, engine, **options)


def connect(
    url: str,
    *,
    api_key: str | None = None,
    model: str | None = None,
    concurrency: int = 8,
    timeout: float = 120.0,
    **options: Any,
) -> "RewardModel":
    """The reward model that a `karat serve` at this URL has.

    `model` is its name, where the server has several. `concurrency` requests are under way at a time, each for
    `timeout` seconds at most; those that get 429 or 5xx are tried again. `options` are what a request may say of how
    the model is read (`activation`, `weights`, `at_least`, `aggregate`, `max_length`, `over_length`, …).

    Raises:
        Refused: nothing there answers as `karat serve` does, or it wants a key.
    """
    from karat.rewards import _remote

    return _remote.Remote(url, api_key, model, options, concurrency, timeout)
