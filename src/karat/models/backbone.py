"""Loading Hugging Face models and tokenizers from a folder or hub id: safetensors only, never remote code."""

import contextlib
import json
import math
import re
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from karat.types import CheckpointError, Refused

# What a model folder may hold that karat reads. Nothing that is code or a pickle.
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
INDEX = "model.safetensors.index.json"  # which file holds which weights, where there are several
_MOST_TEXT = 1 << 29  # bytes of a file that is read whole
# Settings of a config by which layers and tensors grow, and how far they may be from what is stored: so many numbers to
# a byte, as packed ones may have, beside what small models leave unused.
_SIZE = re.compile(r"(_size|_dim|embd|inner|positions?|embeddings|layers?|blocks|heads|experts|labels)$")
# What is stored beside packed weights, by their methods.
SCALES = re.compile(
    r"\.((weight|input|k|v)_scale(_inv)?|SCB|weight_format|(nested_)?absmax|scales|qzeros|qweight|(nested_)?quant_map"
    r"|quant_state\..*)$"
)
_MOST_LAYERS, _SPARE, _SMALL = 4096, 16, 1 << 26
_SUMS: WeakKeyDictionary[nn.Module, tuple[int, list[int]]] = WeakKeyDictionary()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the bars, reports and warnings of transformers and PEFT: what matters comes as karat's own errors."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def locate(path: str | Path) -> Path:
    """The folder of a model: the path itself, or the snapshot of a hub id.

    Raises:
        Refused: there is no such folder, and no such hub id can be reached.
    """
    folder = Path(path)
    if folder.is_dir():
        _check_files(folder)
        for name in ("config.json", "adapter_config.json"):
            if (folder / name).is_file() and not isinstance(read_json(folder / name), dict):
                raise Refused(f"{folder / name} is no JSON object; download or save it again")
        names = {f.name for f in folder.iterdir()}
        if "reward_spec.json" in names and not names & {"config.json", "adapter_config.json"}:
            raise Refused(
                f"{folder} has a reward_spec.json and no config.json; restore it, or, where it is made of other models,"
                " give one of those that reward_spec.json names"
            )
        if not names & {"config.json", "adapter_config.json"}:
            raise Refused(f"{folder} holds no model (no config.json); give the folder that a model was saved to")
        return folder
    if folder.exists() or folder.is_absolute() or str(path).count("/") > 1:
        raise Refused(f"{path} is no folder; give a model's folder or a hub id such as 'owner/name'")
    return _snapshot(str(path))


def _check_files(folder: Path) -> None:
    """Raise Refused for what is no file that can be read to its end, wherever a link leads."""
    for file in {file for pattern in _FILES for file in folder.glob(pattern)}:
        try:
            found = file.stat()
        except OSError as error:
            raise Refused(f"{file} cannot be read ({error.strerror}); download it again") from None
        if not stat.S_ISREG(found.st_mode):
            raise Refused(f"{file} is no regular file, so it is not read; download the model again")
        if file.suffix != ".safetensors" and found.st_size > _MOST_TEXT:
            raise Refused(f"{file} has {found.st_size} bytes, more than any such file needs; download it again")


def _snapshot(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_FILES))
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise Refused(
            f"there is no folder {hub_id!r}, and no hub model of that name could be fetched"
            f" ({type(error).__name__}); check the path, or the name and the network"
        ) from None


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder.

    Raises:
        Refused: the folder has none that can be loaded.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        raise Refused(f"{folder} has no tokenizer; save one there with tokenizer.save_pretrained()")
    try:
        with quiet():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers passes on whatever the tokenizer's parser raised
        raise Refused(f"the tokenizer in {folder} cannot be loaded: {first_line(error)}") from None
    return tokenizer


def load_config(folder: Path) -> PreTrainedConfig:
    """The config of a model folder.

    Raises:
        Refused: transformers does not know its architecture, or its sizes are none.
    """
    named = read_json(folder / "config.json").get("model_type") if (folder / "config.json").is_file() else None
    if isinstance(named, str) and named not in CONFIG_MAPPING:
        raise Refused(
            f"the config in {folder} cannot be used: transformers does not know the architecture {named!r:.60} here;"
            " upgrade it, or take another model, as no code of the folder is run"
        )
    try:
        with quiet():
            config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # unknown model types, remote code and broken JSON all differ in type
        raise Refused(f"the config in {folder} cannot be used: {first_line(error)}") from None
    check_sizes(config, folder)
    return config


def check_states(config: PreTrainedConfig, folder: Path) -> None:
    """Raise Refused where a reward cannot be a state of the model that is read."""
    if getattr(config, "is_encoder_decoder", False):
        raise Refused(
            f"{folder} is an encoder-decoder, which cannot be used: its reward is a word that it writes and no state of"
            " it; choose a decoder or an encoder"
        )


def from_pretrained(auto_class: Any, folder: Path, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """A model by one of transformers' Auto classes, and its loading report.

    Tensors of another shape than the model's are left out and named in the report.

    Raises:
        Refused: the weights are missing, half downloaded or pickled.
        CheckpointError: the config leaves layers out.
    """
    check_weights(folder)
    try:
        with quiet():
            model, report = auto_class.from_pretrained(
                folder,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **kwargs,
            )
    except Exception as error:  # safetensors, torch and transformers each raise their own
        if method := _packed_by(folder):
            raise Refused(
                f"{folder} is stored in fewer bits by {method}, which cannot be read here ({first_line(error)}); get"
                " what it needs, or take the model as it was before"
            ) from None
        raise Refused(f"the model in {folder} cannot be loaded: {first_line(error)}") from None
    check_layers(folder, model, report)
    return model, report


def check_sizes(config: PreTrainedConfig, folder: Path) -> None:
    """Raise Refused for a config of a model that its folder cannot hold, before time and memory are taken for it."""
    held = sum(f.stat().st_size for f in folder.iterdir() if f.suffix in (".safetensors", ".bin", ".pt", ".pth"))
    said = vars(config.get_text_config())
    width = max(1, *(n for name in ("hidden_size", "n_embd", "d_model") if isinstance(n := said.get(name, 1), int)))
    for name, value in said.items():
        if isinstance(value, bool) or not isinstance(value, int) or not _SIZE.search(name):
            continue
        layers = "layer" in name or "block" in name
        if value > _MOST_LAYERS if layers else value * width > _SPARE * held + _SMALL:
            raise Refused(
                f"config.json in {folder} says {name}={value}, and its {held} bytes of weights are of no such model;"
                " download both again"
            )


def _packed_by(folder: Path) -> str:
    """The method by which a folder says that its weights are quantised, or the empty string."""
    said = read_json(folder / "config.json").get("quantization_config")
    return str(said.get("quant_method", "")) if isinstance(said, dict) else ""


def check_layers(folder: Path, model: Any, report: dict[str, Any]) -> None:
    """Raise CheckpointError for tensors left over that are scales of packed weights, or whole further layers."""
    if packed := sorted(filter(SCALES.search, report["unexpected_keys"])):
        raise CheckpointError(
            f"{folder} holds {packed[0]}, a scale of weights in fewer bits that would not be applied; take the model as"
            " it was before"
        )
    own = {_numberless(name) for name in model.state_dict()}
    spare = sorted(n for n in report["unexpected_keys"] if re.search(r"\.\d+\.", n) and _ends(_numberless(n), own))
    if spare:
        raise CheckpointError(
            f"{folder} holds {spare[0]}, for which config.json has no layer, so part of the model would be left out;"
            " download both again"
        )


def _numberless(name: str) -> str:
    return re.sub(r"\.\d+\.", ".#.", name)


def _ends(name: str, own: set[str]) -> bool:
    """Whether a name is one of the model's, whatever prefix either has."""
    return any(name == one or name.endswith("." + one) or one.endswith("." + name) for one in own)


def check_weights(folder: Path) -> None:
    """Raise Refused where a folder has no weights, only pickled ones, or an index that names others than its own."""
    if any(folder.glob("*.safetensors")):
        if (folder / INDEX).is_file() and not (folder / "model.safetensors").is_file():
            shards(folder)
        return
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        raise Refused(
            f"{folder} has only pickled weights, which can run code when read; `karat convert` writes them as"
            " safetensors, without running any"
        )
    raise Refused(f"{folder} has no weights (*.safetensors); save the model with safetensors")


def shards(folder: Path) -> list[Path]:
    """The files that an index names.

    Raises:
        Refused: some are missing, or are not files of the folder itself.
    """
    index = read_json(folder / INDEX)
    named = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise Refused(f"the index of weights in {folder} names no files; download it again")
    shards = sorted({*named.values()})
    if strange := [name for name in shards if Path(name).name != name or not name.endswith(".safetensors")]:
        raise Refused(f"the index of weights in {folder} names {strange[0]!r}, which is no safetensors file of it")
    if lost := [name for name in shards if not (folder / name).is_file()]:
        raise Refused(
            f"{folder} lacks {len(lost)} of its {len(shards)} files of weights, such as {lost[0]}; download it"
        )
    return [folder / name for name in shards]


def positions(config: PreTrainedConfig) -> int | None:
    """How many tokens the model can take, or None where its architecture sets no limit."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length"):
        if isinstance(limit := getattr(text, name, None), int) and limit > 0:
            return limit
    return None


def alike_up_to(backbone: nn.Module) -> float:
    """Tokens up to which a text's length does not change its rotary frequencies; infinity where it never does.

    transformers takes the frequencies of the longest text of a forward for all of it (`longrope`, of Phi 3; `dynamic`).
    """
    config: Any = getattr(backbone, "config", None)
    text = config.get_text_config() if isinstance(config, PreTrainedConfig) else None
    told = getattr(text, "rope_parameters", None) or {}
    found = []
    for own in (told, *told.values()):  # of the model, or of each sort of its layers
        kind = own.get("rope_type", "") if isinstance(own, dict) else ""
        if kind == "longrope":
            found.append(int(own.get("original_max_position_embeddings") or positions(config) or 0))
        elif "dynamic" in kind:
            found.append(positions(config) or 0)
    return min(found, default=math.inf)


def vocabulary(backbone: Any) -> int:
    """How many tokens have a row in the embedding, PEFT's around it or not."""
    weight = backbone.get_input_embeddings().weight
    return int(getattr(weight, "ds_shape", weight.shape)[0])  # of DeepSpeed's, where each process has a share


def position_offset(backbone: nn.Module) -> int:
    """The position of a sequence's first token: 0, or behind the padding index where the embedding has one."""
    for name, module in backbone.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0


def choose_device(device: str) -> torch.device:
    """`auto` is the first CUDA device, or the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise Refused(f"there is no device {device!r} here; use auto or cpu") from None
    return torch.device(device)


def choose_dtype(dtype: str, device: torch.device, config: PreTrainedConfig) -> torch.dtype:
    """`auto` is float32 on a CPU and the checkpoint's own type on a GPU."""
    if dtype == "auto":
        own = getattr(config, "dtype", None) or torch.float32
        return own if device.type == "cuda" and isinstance(own, torch.dtype) else torch.float32
    chosen = getattr(torch, dtype, None)
    if not (isinstance(chosen, torch.dtype) and chosen.is_floating_point):
        raise Refused(
            f"dtype {dtype!r} is no floating-point type; use auto, float32, bfloat16 or float16,"
            " or int8 or nf4 with bitsandbytes"
        )
    return chosen


def read_json(path: Path) -> Any:
    """A JSON file of a model folder."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise Refused(f"{path} is no valid JSON; download or save it again") from None


def first_line(error: Exception) -> str:
    """What an error of another library says, short enough for a sentence."""
    first, *rest = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join([first, *(line.strip() for line in rest[: first.endswith(":")])])[:300]


def sums(module: nn.Module) -> list[int]:
    """The bits of each weight added up, which tell models apart: the same on every device, in whatever order.

    Weights that are not here (on torch's meta device) say nothing. Added up anew only where one has been changed.
    """
    changes = sum(weight._version for weight in module.parameters())
    if _SUMS.get(module, (-1, []))[0] != changes:
        _SUMS[module] = changes, [_sum_of_bits(w.detach()) for w in module.parameters() if not w.is_meta]
    return _SUMS[module][1]


def _sum_of_bits(weight: torch.Tensor) -> int:
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
    return int(weight.contiguous().view(whole).sum(dtype=torch.int64))
