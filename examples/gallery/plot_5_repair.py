"""
Repair a detected gap
=====================

Methods compete on images that no audit has read; the chosen one is judged on sealed images, line by line. What is shown
is certified, what is not shown is said to be so.
"""

# %%
# A model that learnt to call lighter faces smiling, and audited faces of which some are held back: a part for the
# repair, and a sealed part that is opened once, for the certificate.
import tempfile
from pathlib import Path

import timm
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

import vit_audit as va

folder = Path(tempfile.mkdtemp())
train = va.rendered_faces(folder / "train", 800, association=0.5, seed=1)
frame = va.rendered_faces(folder / "audit", 1600, seed=3)

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
# The audit, with its repair planned: what a repaired model must keep is fixed before anything is measured.
net = va.wrap(module, classes=["neutral", "smiling"])
data = va.Data.from_frame(
    frame,
    images="path",
    label="expression",
    groups={"skin_tone": "skin_tone"},
    root=folder / "audit",
    shares={"discovery": 0.1, "confirmation": 0.1, "repair": 0.2, "sealed": 0.6},
)
settings = {
    "name": "Own module, to be repaired",
    "controls": {
        "train_images": 400,
        "eval_images": 96,
        "base_epochs": 12,
        "condition_epochs": 6,
        "learning_rate": 1e-3,
    },
    "audit": {"outcomes": ["smiling"]},
    "repair": {
        "methods": ["untouched", "global_threshold", "dfr", "oxonfair"],
        "gap_margin": 0.15,
        "accuracy_margin": 0.1,
        "error_margin": 0.1,
    },
}
result = va.audit(va.plan(settings, net, data), out=folder / "run", report=False)
result.gaps.plot()

# %%
# The repair. The audited model competes as well, and stays as it is. By default a repaired model whose lines are all
# shown is audited again as a whole, controls included; that is left out here, so nothing is certified yet.
repaired = va.repair(result, folder / "repair", net=net, data=data, reaudit=False, report=False)
print(repaired.state)

# %%
# What each method leaves of the gap, on the images that it was chosen on.
for row in repaired.methods:
    gap = row.fitted.gap if row.fitted else None
    print(row.method, gap)

# %%
# The certificate, on sealed images.
repaired.lines.to_frame()

# %%
# The weights are a file like any other.
print(repaired.weights and repaired.weights.name)
