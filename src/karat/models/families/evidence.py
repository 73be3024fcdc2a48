"""What a model's folder says without its weights being loaded: config, names and shapes of tensors, files, tokens.

The folder's name is no evidence, and no code of it is run.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModel, PreTrainedTokenizerBase

from karat.models import backbone as backbones
from karat.models._parts import ADAPTER_FILE, base_of_adapter
from karat.models.families.stand_ins import STAND_INS, StandIn
from karat.models.render import chat_template
from karat.types import CheckpointError, Refused

VALUE_HEAD_FILE = "value_head.safetensors"  # LLaMA-Factory's, beside a language model or an adapter
# What other tasks left beside a backbone, and buffers that are computed.
_NOT_OURS = re.compile(
    r"(^|\.)(lm_head|embed_out|cls\.predictions|cls\.seq_relationship|lm_predictions|mask_predictions"
    r"|generator_predictions|discriminator_predictions|vocab_transform|vocab_layer_norm|vocab_projector|output\.weight$|position_ids$|inv_freq$|masked_bias$)"
)
_WRAPPERS = ("pretrained_model.",)  # TRL's, and LLM-Blender's, which stand before every name


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    file: Path
    name: str
    shape: tuple[int, ...]


class Evidence:
    """What a folder holds, read as far as it is asked for."""

    def __init__(self, folder: Path) -> None:
        """Raises Refused or CheckpointError where the folder's files are not those of a model."""
        self._folder = folder
        self.adapter = (folder / "adapter_config.json").is_file()
        self._base = base_of_adapter(folder) if self.adapter else folder
        self.files = frozenset(file.name for file in folder.iterdir())
        self.config: Mapping[str, Any] = backbones.read_json(self._base / "config.json")
        self.stand_in: StandIn | None = STAND_INS.get(str(self.config.get("model_type")))
        self.stored = self._stored()
        self._only: Collection[str] | None = None

    def of(self, names: Collection[str]) -> "Evidence":
        """The same folder, if these were all that it holds beside its backbone."""
        other = copy(self)
        other._only = names
        return other

    @property
    def architecture(self) -> str:
        """The class that config.json names; tensors say more."""
        return str((self.config.get("architectures") or [""])[0])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors."""
        return {name: stored.shape for name, stored in self.stored.items()}

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Some tensors, in their own precision."""
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.stored[name].file, []).append(name)
        found: dict[str, Tensor] = {}
        for file, own in by_file.items():
            with safe_open(file, framework="pt") as opened:
                found |= {name: opened.get_tensor(self.stored[name].name) for name in own}
        return found

    # The backbone

    @cached_property
    def settings(self) -> Any:
        """The backbone's config as transformers takes it."""
        if self.stand_in is None:
            return backbones.load_config(self._base)
        made = self.stand_in.config(self.config)
        backbones.check_sizes(made, self._base)
        return made

    @cached_property
    def skeleton(self) -> Any:
        """The backbone without weights.

        Raises:
            Refused: it is of a shape that karat has no use for.
        """
        backbones.check_states(self.settings, self._folder)
        try:
            with torch.device("meta"), backbones.quiet():
                return AutoModel.from_config(self.settings)
        except Exception as error:  # each architecture checks its own config
            raise Refused(f"the config in {self._folder} cannot be used: {backbones.first_line(error)}") from None

    @cached_property
    def prefix(self) -> str:
        """What stands before the names of the backbone's tensors."""
        anchors = [n for n in self.skeleton.state_dict() if not any(part.isdigit() for part in n.split("."))]
        votes: dict[str, int] = {}
        for name in self.stored:
            for anchor in anchors:
                if name == anchor or name.endswith("." + anchor):
                    votes[name.removesuffix(anchor)] = votes.get(name.removesuffix(anchor), 0) + 1
        if votes:
            return max(votes, key=lambda prefix: (votes[prefix], -len(prefix)))
        return f"{self.skeleton.base_model_prefix}."

    @property
    def backbone(self) -> dict[str, str]:
        """Names of the backbone's tensors, without and with what stands before them."""
        own = {name.split(".")[0] for name in self.skeleton.state_dict()}
        found = {}
        for name in self.stored:
            bare = name.removeprefix(self.prefix)
            if name.startswith(self.prefix) and bare.split(".")[0] in own:
                found[bare] = name
        return found

    @cached_property
    def beside(self) -> frozenset[str]:
        """Names of the tensors that are neither the backbone's nor a language model's."""
        backbone = {*self.backbone.values()}
        return frozenset(n for n in self.stored if n not in backbone and not _NOT_OURS.search(n))

    @property
    def width(self) -> int:
        """Numbers in a hidden state."""
        return int(self.settings.get_text_config().hidden_size)

    @property
    def is_plain(self) -> bool:
        """Whether transformers finds the backbone's tensors by itself."""
        usual = ("", f"{self.skeleton.base_model_prefix}.")
        wrapped = any(stored.name != name for name, stored in self.stored.items())
        return self.stand_in is None and self.prefix in usual and not wrapped

    # The tokenizer

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The folder's tokenizer."""
        return backbones.load_tokenizer(self._folder)

    def has_token(self, text: str) -> bool:
        """Whether a text is one token of the vocabulary."""
        return text in self.tokenizer.get_vocab()

    @property
    def chat_template(self) -> str | None:
        """The tokenizer's chat template."""
        return chat_template(self.tokenizer)

    # Files

    def _stored(self) -> dict[str, Stored]:
        """All tensors by their names, without wrappers and by a stand-in's names."""
        found: dict[str, Stored] = {}
        for file in self._weight_files():
            found |= {self._renamed(name): Stored(file, name, shape) for name, shape in _shapes(file).items()}
        return found

    def _weight_files(self) -> list[Path]:
        if self.adapter:
            known = [self._folder / ADAPTER_FILE]
        elif (self._folder / "model.safetensors").is_file():
            known = [self._folder / "model.safetensors"]
        elif (self._folder / backbones.INDEX).is_file():
            known = backbones.shards(self._folder)
        else:
            backbones.check_weights(self._folder)
            known = sorted(self._folder.glob("*.safetensors"))
        head = self._folder / VALUE_HEAD_FILE
        return [*known, head] if head.is_file() and head not in known else known

    def _renamed(self, name: str) -> str:
        if self.adapter:
            name = name.removeprefix("base_model.model.")
        for wrapper in _WRAPPERS:
            name = name.removeprefix(wrapper)
        return self.stand_in.renamed(name) if self.stand_in else name

    @property
    def trained(self) -> frozenset[str]:
        """Of an adapter, what is stored whole: its head."""
        return frozenset(n for n in self.beside if "lora_" not in n and (self._only is None or n in self._only))


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a file's tensors, from its header.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        with safe_open(file, framework="pt") as held:
            return {name: tuple(held.get_slice(name).get_shape()) for name in held.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); download or save it again") from None
