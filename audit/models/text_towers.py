"""Embeddings of a card's prompts, by the text tower of a checkpoint and the code of its own library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from audit.errors import ModelError
from audit.extras import needs, quiet_transformers
from audit.models.checkpoint import hash_state, listed, save_weights
from audit.models.converters import HUGGING_FACE, OPEN_CLIP
from audit.models.converters.conversion import Conversion
from audit.models.converters.open_clip import read_configuration

State = Mapping[str, torch.Tensor]
Embed = Callable[[list[str]], torch.Tensor]
DESCRIBES = (".json", ".txt", ".model")  # files beside the weights that say how text becomes tokens
OF_HUGGING_FACE = ("hf_tokenizer_name", "hf_model_name")  # of open_clip's text towers: what transformers makes
COUNTS = "position_ids"  # numbers from 0 up, which older files hold


def embed_prompts(
    name: str, prompts: Mapping[str, list[str]], weights: Path, tensors: State, conversion: Conversion
) -> list[torch.Tensor]:
    """Return for each class the embeddings (texts, width) of its prompts, each of length 1.

    They are computed once, and kept in the cache under the hash of the text tower, the files that describe it, the
    prompts and the library's version.

    Parameters
    ----------
    name : str
        Of the card's model.
    prompts : mapping of str to list of str
    weights : pathlib.Path
        The card's file or folder.
    tensors : mapping of str to torch.Tensor
        Of the whole checkpoint.
    conversion : Conversion
        Tells which of them are the image tower's.

    Raises
    ------
    ModelError
        If the library is not installed, or cannot open the text tower.
    """
    from audit.store import open_cache  # takes pandas along, which reading needs not

    folder = weights if weights.is_dir() else weights.parent
    own = {key: tensor for key, tensor in tensors.items() if not conversion.takes(key)}
    version = _library(name).__version__
    made_of = [name, version, torch.__version__, prompts, hash_state(own), _described(folder)]
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=False).encode()).hexdigest()
    path = open_cache() / f"texts-{digest[:24]}.safetensors"
    if not path.is_file():
        every = [text for texts in prompts.values() for text in texts]
        save_weights({"texts": _embed(name, folder, weights, own, every)}, path)
    return list(load_file(path)["texts"].split([len(texts) for texts in prompts.values()]))


def _described(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.iterdir() if path.suffix in DESCRIBES and path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _library(name: str) -> Any:
    """Return the module of a model's library."""
    return needs("transformers" if name == HUGGING_FACE else "open_clip", "model.prompts", error=ModelError)


def _embed(name: str, folder: Path, weights: Path, own: State, texts: list[str]) -> torch.Tensor:
    """Return the embeddings (texts, width), of length 1."""
    try:
        if name == HUGGING_FACE:
            embed = _of_transformers(folder)
        else:
            embed = _of_open_clip(name.removeprefix(OPEN_CLIP), folder, weights, own)
        with torch.inference_mode():
            made = F.normalize(embed(texts).float(), dim=-1)
    except ModelError:
        raise
    except Exception as error:  # whatever odd files make of a tower or its tokenizer
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        fix = "restore the files of its tokenizer and text tower"
        raise ModelError(str(folder), f"texts cannot be embedded ({said})", fix) from error
    if not made.isfinite().all():
        raise ModelError(str(folder), "embeddings of texts are not finite", "name weights that are finite")
    return made.cpu().clone()


def _of_transformers(folder: Path) -> Embed:
    from transformers import AutoModel, AutoTokenizer

    with quiet_transformers(), torch.random.fork_rng([]):  # before version 5 weights are drawn, then replaced
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model, said = AutoModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    if missing := sorted(key for key in said["missing_keys"] if COUNTS not in key):
        raise ModelError(str(folder), f"the text tower lacks {listed(missing)}", "name the whole model")
    longest = int(model.config.text_config.max_position_embeddings)
    model = model.float().eval()

    def embed(texts: list[str]) -> torch.Tensor:
        # Full length, as SigLIP was trained; CLIP reads no further than the end of a text.
        tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=longest, return_tensors="pt")
        if model.config.model_type != "clip":
            tokens = {"input_ids": tokens["input_ids"]}
        answer = model.get_text_features(**tokens)
        made: torch.Tensor = getattr(answer, "pooler_output", answer)  # late versions wrap the tensor
        return made

    return embed


def _of_open_clip(name: str, folder: Path, weights: Path, own: State) -> Embed:
    import open_clip
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    config = dict(read_configuration(name, weights)["model_cfg"])
    if any(config["text_cfg"].get(key) for key in OF_HUGGING_FACE):
        needs("transformers", f"model.prompts of {OPEN_CLIP}{name}", error=ModelError)
    whole = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    config["vision_cfg"] = {**config["vision_cfg"], "timm_model_pretrained": False}
    text = config["text_cfg"]
    model = whole(**config)
    lacking = sorted(
        key for key in model.load_state_dict(dict(own), strict=False).missing_keys if not key.startswith("visual.")
    )
    if lacking := [key for key in lacking if COUNTS not in key and key not in ("logit_scale", "logit_bias")]:
        raise ModelError(str(weights), f"the text tower lacks {listed(lacking)}", "name the whole model")
    length = int(text.get("context_length", 77))
    options = dict(text.get("tokenizer_kwargs") or {})
    named = text.get("hf_tokenizer_name")
    if named:
        mode = {"tokenizer_mode": text["tokenizer_mode"]} if text.get("tokenizer_mode") else {}
        place = str(folder) if (folder / "tokenizer_config.json").is_file() else named
        tokenizer: Any = HFTokenizer(place, context_length=length, **mode, **options)
    else:
        tokenizer = SimpleTokenizer(context_length=length, **options)
    model = model.float().eval()
    return lambda texts: model.encode_text(tokenizer(texts))
