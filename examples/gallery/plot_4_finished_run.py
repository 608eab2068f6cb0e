"""
Read a finished run
===================

A run directory is whole by itself: it is opened without the model, the images, or torch. This one is the shareable
copy of the demonstration, which comes with the sources.
"""

# %%
# The same type as :func:`vit_audit.audit` returns. ``verify`` derives every figure again from the stored effects.
from pathlib import Path

import vit_audit as va

sample = next(
    folder / "reports" / "sample"
    for folder in (Path.cwd(), *Path.cwd().parents)
    if (folder / "reports/sample").is_dir()
)
result = va.open_run(sample)
print(result.outcome, f"exit code {int(result.exit_code)}", sep=", ")

# %%
# First the controls. A run in which one failed says nothing about groups.
controls = result.controls.to_frame()
print(f"{controls['passed'].sum()} of {len(controls)} controls passed")

# %%
# Rates and gaps, with intervals. A gap that was not detected is given with the smallest that could have been.
result.rates.plot(rate="true_positive_rate")

# %%
result.gaps.plot()

# %%
columns = ["group", "metric", "estimate", "estimate_low", "estimate_high", "smallest_detectable", "state"]
result.gaps.to_frame()[columns]

# %%
# Heads on images that were not used for the search, beside placebo donors.
result.heads.plot()

# %%
# Three ledgers of the largest gap: what carries it, who writes it into the log-odds, which trained weights put it
# there.
axes = result.plot_ledgers()

# %%
# Who writes it, layer by layer. These rows sum to the gap in log-odds.
result.ledger.plot()

# %%
# One answer for each gap, at the finest level that the data support.
for answer in result.answers:
    share = (
        f"{answer.share.value:.0%} [{answer.share.low:.0%}, {answer.share.high:.0%}]" if answer.share else "not given"
    )
    print(f"{answer.contrast}, {answer.outcome}: {answer.level}; share of the gap: {share}")

# %%
# The whole record is there as well: :doc:`every field </docs/record-fields>`.
print(result.record.provenance.command, result.record.provenance.versions["torch"])
