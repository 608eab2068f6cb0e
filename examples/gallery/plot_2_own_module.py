"""
Audit your own module
=====================

A module and a data frame of your own, from nothing to the report: first the controls, which must find effects that are
known in advance, then gaps between groups, then which heads carry them.
"""

# %%
# A data frame of image files with a label and a group, and a model that was trained where smiles go with lighter
# skin. Put your own in their place.
import tempfile
from pathlib import Path

import timm
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

import vit_audit as va

folder = Path(tempfile.mkdtemp())
train = va.rendered_faces(folder / "train", 600, association=0.8, seed=1)
frame = va.rendered_faces(folder / "audit", 400, seed=2)

torch.manual_seed(0)
module = timm.create_model(
    "vit_tiny_patch16_224", img_size=64, patch_size=16, depth=2, embed_dim=64, num_heads=4, num_classes=2
)
images = torch.stack([pil_to_tensor(Image.open(folder / "train" / path)) for path in train["path"]]) / 127.5 - 1
truth = torch.tensor((train["expression"] == "smiling").to_numpy(int))
optimiser = torch.optim.AdamW(module.parameters(), lr=1e-3)
for order in [torch.randperm(len(truth)) for _ in range(12)]:
    for batch in order.split(32):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(module(images[batch]), truth[batch]).backward()
        optimiser.step()

# %%
# The plan opens everything and trains nothing. The controls train models of the same architecture on drawn faces;
# here they are small, as the model is.
net = va.wrap(module, classes=["neutral", "smiling"])
data = va.Data.from_frame(
    frame,
    images="path",
    label="expression",
    groups={"skin_tone": {"column": "skin_tone", "reference": "lighter"}},
    root=folder / "audit",
)
settings = {
    "name": "Own module",
    "controls": {
        "train_images": 400,
        "eval_images": 96,
        "base_epochs": 12,
        "condition_epochs": 6,
        "learning_rate": 1e-3,
    },
    "audit": {"outcomes": ["smiling"]},
}
plan = va.plan(settings, net, data)
plan.power()

# %%
# The audit. The same call resumes it where it was interrupted.
result = va.audit(plan, out=folder / "run", report=False)
result

# %%
# Had one of these failed, nothing would be said about groups.
controls = result.controls.to_frame()
print(f"{controls['passed'].sum()} of {len(controls)} controls passed")
controls[["id", "relation", "threshold", "passed"]].head(8)

# %%
result.gaps.plot()

# %%
# Which heads carry the gap, on images that were not used for the search.
result.heads.plot()

# %%
# Where the gap runs, from input to output, by each ledger.
axes = result.plot_ledgers()

# %%
# One answer for each gap, at the finest level that the data support.
for answer in result.answers:
    print(f"{answer.outcome}: {answer.level}")

# %%
# The report in one file. ``result.verify()`` checks the whole record again from what is stored.
print(result.report(folder / "own.html").name)
