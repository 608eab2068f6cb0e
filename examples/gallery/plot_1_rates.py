"""
Rates and intervals from predictions alone
==========================================

Where only a classifier's answers are at hand, an audit covers its rates: how often each group is called an outcome, the
gaps between groups whose labels are the same, and how wrong labels or groups would have to be for a gap to vanish.
"""

# %%
# A classifier of drawn faces. In its training sample smiles go with lighter skin; in the audited sample they do not.
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import vit_audit as va

folder = Path(tempfile.mkdtemp())
train = va.rendered_faces(folder / "train", 600, association=0.6, seed=1)
faces = va.rendered_faces(folder / "audit", 800, seed=2)


def pixels(place, table):
    """Return one row of pixels for each image, 16 px a side."""
    images = [Image.open(place / path).resize((16, 16)) for path in table["path"]]
    return np.stack([np.asarray(image, float).ravel() for image in images])


classifier = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=1000))
classifier.fit(pixels(folder / "train", train), train["expression"])

# %%
# From here on the classifier is a box. Its answers are a table: a column for the image's name, one for each class.
answers = faces[["path"]].copy()
answers[list(classifier.classes_)] = classifier.predict_proba(pixels(folder / "audit", faces))
answers.head()

# %%
# The audit needs these answers, labels and groups. ``plan.power()`` says before anything is looked at which gaps so
# many images can show.
net = va.predictions(answers, classes=["neutral", "smiling"], image="path")
data = va.Data.from_frame(
    faces,
    images="path",
    label="expression",
    groups={"skin_tone": {"column": "skin_tone", "reference": "lighter"}},
    root=folder / "audit",
)
plan = va.plan({"name": "Smiles by skin tone", "audit": {"outcomes": ["smiling"]}}, net, data)
plan.power()

# %%
# Three gaps: at equal labels, among those who smile, among those who do not.
result = va.audit(plan, out=folder / "run", report=False)
result.gaps.to_frame()[["group", "reference", "metric", "estimate", "estimate_low", "estimate_high", "state"]]

# %%
# Rates with 95% intervals.
result.rates.plot(rate="true_positive_rate")

# %%
result.gaps.plot()

# %%
# How wrong the annotations may be: ``tipping`` is the share of wrong ones, in each group and label, at which the gap
# may be 0.
result.sensitivity.to_frame()[["metric", "kind", "tipping", "tipping_of_interval"]]

# %%
# What is carried by which heads cannot be asked of answers alone: :doc:`plot_2_own_module` has the model's inside.
print(result.outcome)
