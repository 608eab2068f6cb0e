"""Make two models as a user brings them, and the photographs to audit them on.

    python benchmarks/own_models/make.py resnet50 --data FOLDER --out WORK
    python benchmarks/own_models/make.py vit --data FOLDER --out WORK

FOLDER holds ``expressions/`` and, beside it, ``weights/``. Half of the people train the model, by torchvision or
transformers alone; the photographs of the other half go to WORK/photographs, with their own ``faces.csv``.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet50

LABELS = ("neutral", "happiness")
PAIR = ("weight", "bias")
SIDES = {"resnet50": 64, "vit": 98}
SEED = 3
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
Logits = Callable[[torch.Tensor], torch.Tensor]


def read_people(data: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of those who train and of those who are kept out, half of the people each."""
    faces = pd.read_csv(data / "expressions" / "faces.csv", dtype=str)
    faces = faces[faces["expression"].isin(LABELS)]
    people = np.random.default_rng(SEED).permutation(faces["person"].unique())
    train = faces["person"].isin(people[: len(people) // 2])
    return faces[train], faces[~train]


def keep_photographs(faces: pd.DataFrame, data: Path, out: Path) -> None:
    """Copy the photographs of those who are kept out, with their table."""
    folder = out / "photographs"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name in faces["image"]:
        shutil.copyfile(data / "expressions" / name, folder / name)
    faces.to_csv(folder / "faces.csv", index=False)


def load(faces: pd.DataFrame, data: Path, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return photographs (N, 3, side, side), centred and scaled, and their labels."""
    pixels = np.stack([_pixels(data / "expressions" / name, side) for name in faces["image"]])
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std
    return images, torch.tensor([LABELS.index(label) for label in faces["expression"]])


def _pixels(path: Path, side: int) -> npt.NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))


def batches(n: int, generator: torch.Generator, size: int = 32) -> Iterator[torch.Tensor]:
    """Yield rows in an order drawn at random; the last batch is whole or left out."""
    yield from torch.randperm(n, generator=generator)[: n // size * size].split(size)


def train(
    model: nn.Module, logits: Logits, images: torch.Tensor, targets: torch.Tensor, epochs: int, rate: float
) -> None:
    """Train with AdamW at a cosine rate, on photographs of which half are mirrored."""
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * (len(images) // 32))
    for epoch in range(epochs):
        model.train()
        losses = []
        for rows in batches(len(images), generator):
            flipped = torch.rand(len(rows), generator=generator) < 0.5
            seen = torch.where(flipped.view(-1, 1, 1, 1), images[rows].flip(-1), images[rows])
            loss = F.cross_entropy(logits(seen), targets[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1} of {epochs}: loss {np.mean(losses):.3f}", flush=True)
    model.eval()


@torch.inference_mode()
def accuracy(logits: Logits, images: torch.Tensor, targets: torch.Tensor) -> float:
    """Return the share of photographs that are called what they are labelled."""
    called = torch.cat([logits(part).argmax(1) for part in images.split(64)])
    return float((called == targets).double().mean())


def make_resnet50(data: Path, out: Path, *, side: int, epochs: int = 10) -> nn.Module:
    """Train torchvision's ResNet-50 from random weights, and save its state dict."""
    torch.manual_seed(SEED)
    model: nn.Module = resnet50(weights=None, num_classes=len(LABELS)).to(memory_format=torch.channels_last)
    images, targets = load(read_people(data)[0], data, side)
    train(model, model, images, targets, epochs, 3e-4)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out / "my-resnet50.safetensors")
    return model


def make_vit(data: Path, out: Path, *, side: int, epochs: int = 3, trained: int = 4) -> Any:
    """Train the last blocks of a DINOv2 classifier of transformers, and save it as its own library does."""
    from transformers import Dinov2Config, Dinov2ForImageClassification

    torch.manual_seed(SEED)
    config = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=224, patch_size=14,
        id2label=dict(enumerate(LABELS)), label2id={label: k for k, label in enumerate(LABELS)},
    )  # fmt: skip
    config.save_pretrained(out / "dinov2")
    body = load_file(data.parent / "weights" / "vit_small_patch14_dinov2.fp16.safetensors")
    save_file(renamed(body), out / "dinov2" / "model.safetensors", {"format": "pt"})
    loaded: Any = Dinov2ForImageClassification.from_pretrained(out / "dinov2", output_loading_info=True)
    model, about = loaded
    new = {"classifier.weight", "classifier.bias", "dinov2.embeddings.mask_token"}
    if not set(about["missing_keys"]) <= new or about["unexpected_keys"]:
        raise SystemExit(f"transformers does not read DINOv2 as it is named here: {about}")
    model.requires_grad_(False)
    for part in (*model.dinov2.encoder.layer[-trained:], model.dinov2.layernorm, model.classifier):
        part.requires_grad_(True)
    images, targets = load(read_people(data)[0], data, side)
    train(model, lambda seen: model(pixel_values=seen).logits, images, targets, epochs, 1e-4)
    model.save_pretrained(out / "my-vit")
    seen = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": side, "width": side},
        "resample": int(Image.Resampling.BICUBIC), "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(IMAGENET[0]), "image_std": list(IMAGENET[1]),
    }  # fmt: skip
    (out / "my-vit" / "preprocessor_config.json").write_text(json.dumps(seen), encoding="utf-8")
    return model


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return timm's DINOv2 tensors under the names of transformers; positions for 16 x 16 patches, as configured."""
    made = {
        "dinov2.embeddings.cls_token": state["cls_token"],
        "dinov2.embeddings.position_embeddings": state["pos_embed"],
        "dinov2.embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "dinov2.embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "dinov2.layernorm.weight": state["norm.weight"],
        "dinov2.layernorm.bias": state["norm.bias"],
    }
    same = (
        "norm1.weight",
        "norm1.bias",
        "norm2.weight",
        "norm2.bias",
        *(f"mlp.fc{k}.{p}" for k in (1, 2) for p in PAIR),
    )
    for layer in range(12):
        ours, theirs = f"blocks.{layer}.", f"dinov2.encoder.layer.{layer}."
        made |= {theirs + name: state[ours + name] for name in same}
        for kind in PAIR:
            thirds = state[f"{ours}attn.qkv.{kind}"].chunk(3)
            for part, third in zip(("query", "key", "value"), thirds, strict=True):
                made[f"{theirs}attention.attention.{part}.{kind}"] = third
            made[f"{theirs}attention.output.dense.{kind}"] = state[f"{ours}attn.proj.{kind}"]
        for k in (1, 2):
            made[f"{theirs}layer_scale{k}.lambda1"] = state[f"{ours}ls{k}.gamma"]
    return {name: tensor.float().contiguous() for name, tensor in made.items()}


def main() -> None:
    """Make what is asked for, and say how often it is right about people it has not seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["resnet50", "vit"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    others = read_people(asked.data)[1]
    keep_photographs(others, asked.data, asked.out)
    side = SIDES[asked.model]
    model: Any = (make_resnet50 if asked.model == "resnet50" else make_vit)(asked.data, asked.out, side=side)
    images, targets = load(others, asked.data, side)

    def logits(seen: torch.Tensor) -> torch.Tensor:
        given: Any = model(seen)
        return given if isinstance(given, torch.Tensor) else given.logits

    print(f"right about {accuracy(logits, images, targets):.1%} of {len(others)} photographs of other people")


if __name__ == "__main__":
    main()
