"""Small CLIP and SigLIP models of both libraries, as they are saved: every parameter drawn at random."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import nn

from tests.models.test_preprocessing import drawn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers as hf

SIDE, WIDTH = 32, 32
PIXELS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
LOGIT_SCALE = 3.0  # about 20
VISION: dict[str, Any] = {
    "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": SIDE, "patch_size": 8,
}  # fmt: skip


def scaled(model: nn.Module) -> Any:
    """Return a model with every parameter drawn, and a temperature as trained ones have."""
    masks = {name: mask.clone() for name, mask in model.named_buffers() if name.endswith("attn_mask")}
    made = drawn(model)
    with torch.no_grad():
        for name, mask in masks.items():
            made.get_buffer(name).copy_(mask)
        made.logit_scale.fill_(LOGIT_SCALE)
    return made


def write_tokenizer(folder: Path) -> int:
    """Write the files of a tokenizer that reads letters one by one; return how many tokens it knows."""
    letters = [chr(c) for c in range(33, 127)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    hf.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    return len(words)


def write_hf(folder: Path, kind: str, *, side: int = SIDE, patch: int = 8, width: int = WIDTH) -> Any:
    """Write a Hugging Face folder of a whole CLIP or SigLIP; return the model."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = write_tokenizer(folder)
    pictures = VISION | {"image_size": side, "patch_size": patch, "hidden_size": width, "intermediate_size": 2 * width}
    text = {k: v for k, v in VISION.items() if k not in ("image_size", "patch_size")}
    text |= {
        "vocab_size": tokens,
        "max_position_embeddings": 40,
        "bos_token_id": tokens - 2,
        "eos_token_id": tokens - 1,
    }
    text |= {"pad_token_id": tokens - 1}
    if kind == "clip":
        vision = pictures | {"projection_dim": 24}
        config = hf.CLIPConfig(vision_config=vision, text_config=text | {"projection_dim": 24}, projection_dim=24)
        model = scaled(hf.CLIPModel(config))
        processor: Any = hf.CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    else:
        model = scaled(hf.SiglipModel(hf.SiglipConfig(vision_config=pictures, text_config=text)))
        processor = hf.SiglipImageProcessor(size={"height": side, "width": side}, resample=3, **PIXELS)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


OPEN_CLIP: dict[str, dict[str, Any]] = {
    "own tower": {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {"image_size": SIDE, "layers": 2, "width": WIDTH, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
    "mean of patches, LayerScale": {
        "embed_dim": 24,
        "vision_cfg": {
            "image_size": SIDE, "layers": 2, "width": WIDTH, "head_width": 8, "patch_size": 8, "pool_type": "avg",
            "ls_init_value": 0.1, "norm_kwargs": {"eps": 1e-3}, "act_kwargs": {"approximate": "tanh"},
        },
        "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
    "trunk of timm's, sigmoid": {
        "embed_dim": 192,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token",
                       "timm_proj": "none"},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 192, "heads": 2, "layers": 1},
    },
    "trunk of timm's, projected": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {"image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "avg",
                       "timm_proj": "linear"},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
}  # fmt: skip


def make_open_clip(config: dict[str, Any]) -> Any:
    """Return a model of a configuration."""
    given = dict(config)
    made = open_clip.CustomTextCLIP if given.pop("custom_text", False) else open_clip.CLIP
    return scaled(made(**given))


def write_open_clip(folder: Path, config: dict[str, Any], preprocess: dict[str, Any] | None = None) -> Any:
    """Write a folder as open_clip lays it on the Hub; return the model."""
    folder.mkdir(parents=True, exist_ok=True)
    model = make_open_clip(config)
    content = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return model
