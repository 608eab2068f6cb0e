"""
Patch heads on tensors
======================

Patching, attribution and the sum of log-odds are functions on tensors; they need no card and no data set. Here a small
vision transformer learns to tell smiles from neutral faces, and for each head it is measured what its output carries.
"""

# %%
# A model and images as it reads them.
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import timm
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

import vit_audit as va

folder = Path(tempfile.mkdtemp())
faces = va.rendered_faces(folder, 600, association=0.6, seed=1)
images = torch.stack([pil_to_tensor(Image.open(folder / path)) for path in faces["path"]]) / 127.5 - 1
smiling = torch.tensor((faces["expression"] == "smiling").to_numpy())

torch.manual_seed(0)
model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, embed_dim=64, num_heads=4, num_classes=2)
optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
for order in [torch.randperm(len(images)) for _ in range(12)]:
    for batch in order.split(32):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(images[batch]), smiling[batch].long()).backward()
        optimiser.step()
model = model.eval()

# %%
# Each neutral face receives what one head writes for a smiling face of the same skin tone; all that follows is
# computed again. The result is the change of the log-odds of "smiling", in nats: images x heads x classes, exact.
recipients, donors = [], []
for tone in ("lighter", "darker"):
    own = torch.tensor((faces["skin_tone"] == tone).to_numpy())
    pairs = min(64, int((own & smiling).sum()), int((own & ~smiling).sum()))
    recipients.append(images[own & ~smiling][:pairs])
    donors.append(images[own & smiling][:pairs])
recipients, donors = torch.cat(recipients), torch.cat(donors)
effects = va.patch_heads(model, recipients, donors)[:, :, 1]
effects.shape

# %%
grid = effects.mean(0).reshape(3, 4)
fig, ax = plt.subplots(figsize=(5, 3), layout="constrained")
shown = ax.imshow(grid, cmap="RdBu_r", vmin=-grid.abs().max(), vmax=grid.abs().max())
ax.set(
    xlabel="head", ylabel="layer", xticks=range(4), yticks=range(3), title="log-odds of 'smiling' moved by each head"
)
fig.colorbar(shown, label="nats")

# %%
# An image that donates to itself changes nothing, exactly. A patch that silently did nothing would show here, too:
# effects between different images are not 0.
print(float(va.patch_heads(model, recipients, recipients).abs().max()), float(effects.abs().max()))

# %%
# Attribution patching estimates the same to first order, from one backward pass. It errs where the model is curved
# between recipient and donor.
estimates = va.attribution(model, recipients, donors)[:, :, 1]
fig, ax = plt.subplots(figsize=(4, 4), layout="constrained")
ax.plot(effects.flatten(), estimates.flatten(), ".", alpha=0.3, color="#1f4e79")
ax.axline((0, 0), slope=1, color="0.6", linewidth=0.8)
ax.set(xlabel="exact, nats", ylabel="first order, nats", title="every head, every pair")

# %%
# Several parts at once: effects of single parts need not add up to that of all. In a model that reads its class token
# all attention carries as much as all layers: what MLPs write there follows from it.
for parts in (["L0 attention"], ["L0 MLP"], ["L1"], ["L2"], ["all attention"], ["all layers"]):
    joint = va.patch_parts(model, recipients, donors, parts)[:, 1]
    print(f"{parts[0]:14} {float(joint.mean()):+.2f} nats")

# %%
# Who writes the log-odds at the end is another question, and a sum answers it: what the parts write adds up to the
# log-odds of every image. Drawn is the difference between smiling and neutral faces.
written = va.written(model, images, {"smiling": 1})
table = written.to_frame("smiling")
difference = table[smiling.numpy()].mean() - table[~smiling.numpy()].mean()
names = [
    component.kind if component.layer is None else f"L{component.layer} {component.kind}"
    for component in written.components
]
by_part = difference.groupby(names, sort=False).sum()
print(f"largest distance of the sum from the log-odds: {written.closure:.1e}")

# %%
fig, ax = plt.subplots(figsize=(6.4, 3.5), layout="constrained")
ax.barh(by_part.index, by_part, color="#b5561c")
ax.axvline(0, color="0.6", linewidth=0.8)
ax.invert_yaxis()
ax.set_xlabel("written into the log-odds of 'smiling', smiling minus neutral, nats")
