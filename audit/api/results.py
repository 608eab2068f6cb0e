"""A finished audit: the same type whether it has just ended or is opened again."""

from __future__ import annotations

import html
import io
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from audit.api.pictures import plot_ledgers
from audit.api.progress import Callback, as_step
from audit.api.tables import Gaps, Heads, Ledger, Rates, Table, figure_size
from audit.errors import InputError, UnfinishedError, one_line_of
from audit.exit_codes import ExitCode
from audit.given import as_path, check_kind
from audit.records import (
    AdjustedRow,
    Audit,
    CarriedRow,
    ComparedFinding,
    ComparedGap,
    ComparedHead,
    ComparedRate,
    Control,
    Decision,
    Finding,
    GapAnswer,
    JointRow,
    LocalisationStatus,
    Outcome,
    ReadRow,
    RunComparison,
    SensitivityRow,
    SharedCopy,
    SmallestSetRow,
    TrainedRow,
)
from audit.records.earlier import Earlier
from audit.report import render_run
from audit.report.card_section import card_section, with_section
from audit.report.html import render_diff
from audit.report.manifest import check_kept, write_manifest
from audit.report.manifest import sign as sign_manifest
from audit.report.render import Source, page_of, read_run, refuse_earlier
from audit.report.reviewing import CarriedOver, add_review
from audit.report.reviewing import carry_over as carry_over_decisions
from audit.report.reviews import read_review
from audit.report.shareable import share_run
from audit.report.signed_pdf import SignWith
from audit.report.signed_pdf import sign_pdf as sign_report
from audit.store import folder_name, locked, write_bytes, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from audit.api.data import Data
    from audit.api.gating import GateResult
    from audit.api.models import Net, Predictions
    from audit.api.tracking import Tracker
    from audit.pipeline.reproduce import Reproduction
    from audit.pipeline.verify import Verified
    from audit.report.serve import Served

__all__ = ["Result", "diff", "open_run", "verify"]


@dataclass(frozen=True)
class Result:
    """The result of an audit, read from its run directory.

    Parameters
    ----------
    folder : pathlib.Path
        The run directory.

    Examples
    --------
    ``result`` is that of the example of :func:`vit_audit.audit`.

    >>> result.exit_code
    <ExitCode.DISPARITY: 1>
    >>> float(result.gaps.to_frame().set_index("metric").loc["tpr_gap", "estimate"])
    1.0
    >>> result.rates.to_frame()["group"].tolist()
    ['f', 'm']
    >>> [finding.outcome for finding in result.findings]
    ['yes']
    """

    folder: Path

    @cached_property
    def _source(self) -> Source:
        return read_run(self.folder, to_look=True)

    def _to_print(self) -> Source:
        """Return what pages are printed from; refuse a record of an earlier form."""
        refuse_earlier(self._source.earlier, self.folder / "audit.json")
        return self._source

    @property
    def record(self) -> Audit:
        """The whole of ``audit.json``, in the form of this version."""
        return self._source.audit

    @property
    def earlier(self) -> Earlier | None:
        """Which form the record had, and what of it is left out, where an earlier version wrote it; else None.

        Such a run can be looked at. What an earlier form did not hold is missing: an empty list, or None.

        Examples
        --------
        >>> result.earlier is None
        True
        """
        return self._source.earlier

    @property
    def digest(self) -> str:
        """SHA-256 of ``audit.json``, by which reviews, gates and trackers name the run."""
        return self._source.digest

    @property
    def outcome(self) -> Outcome:
        """The answer of the audit."""
        return self.record.outcome

    @property
    def exit_code(self) -> ExitCode:
        """What ``vit-audit run`` exits with."""
        return ExitCode(self.record.exit_code)

    @property
    def rates(self) -> Rates:
        """Rates by attribute, group and outcome."""
        return Rates(self.record.rates)

    @property
    def gaps(self) -> Gaps:
        """Every group against its reference; empty where a control failed."""
        return Gaps([] if self.record.is_invalid else self.record.contrasts)

    @property
    def adjusted(self) -> Table[AdjustedRow]:
        """Gaps before and after groups are made alike in the card's covariates.

        Empty where a control failed, or the card names none.
        """
        return Table([] if self.record.is_invalid else self.record.adjusted, AdjustedRow)

    @property
    def heads(self) -> Heads:
        """Every head of every question; empty where a control failed or nothing was asked."""
        return Heads([] if self.record.is_invalid else self.record.heads)

    @property
    def joint(self) -> Table[JointRow]:
        """Sets of heads patched together."""
        return Table([] if self.record.is_invalid else self.record.joint, JointRow)

    @property
    def ledger(self) -> Ledger:
        """Who writes the gaps into the log-odds; empty where a control failed, no gap was detected, or no sum exists.

        ``record.ledgers`` has the whole gaps, and why one is not given as a sum.
        """
        return Ledger([] if self.record.is_invalid else self.record.ledger)

    @property
    def trained(self) -> Table[TrainedRow]:
        """Which trained weights put the gaps there, from the balanced reference models to the audited one.

        Empty where a control failed, no gap was detected, or the model was not trained by the audit.
        """
        return Table([] if self.record.is_invalid else self.record.trained_parts, TrainedRow)

    @property
    def answers(self) -> Table[GapAnswer]:
        """Where each gap runs: one answer from all ledgers, at the finest level that the data support.

        Empty where a control failed, no gap was detected, or there were too few people to ask.
        """
        return Table([] if self.record.is_invalid else self.record.answers, GapAnswer)

    @property
    def smallest(self) -> Table[SmallestSetRow]:
        """The smallest set of heads that carries each gap, beside random sets."""
        return Table([] if self.record.is_invalid else self.record.smallest, SmallestSetRow)

    @property
    def carried(self) -> Table[CarriedRow]:
        """What attention, MLPs, single layers and tokens carry of each gap, in both directions."""
        return Table([] if self.record.is_invalid else self.record.carried, CarriedRow)

    @property
    def sensitivity(self) -> Table[SensitivityRow]:
        """How wrong labels, groups or sampling may be before a detected gap vanishes; empty where a control failed."""
        return Table([] if self.record.is_invalid else self.record.sensitivity, SensitivityRow)

    @property
    def read(self) -> Table[ReadRow]:
        """What the largest writers of each gap read, one step back; empty unless ``audit.ledger.depth`` asks for it.

        ``record.read_writers`` has the writers, and why one is not given so; ``record.read_maps`` where in the image.
        """
        return Table([] if self.record.is_invalid else self.record.read, ReadRow)

    @property
    def controls(self) -> Table[Control]:
        """Every check of the instrument."""
        return Table(self.record.controls.controls, Control)

    @property
    def findings(self) -> list[Finding]:
        """What a reviewer can accept or reject; empty where a control failed."""
        return [] if self.record.is_invalid else list(self.record.findings)

    @property
    def decisions(self) -> list[Decision]:
        """What reviewers made of findings and sections."""
        return list(self._source.decisions)

    def report(self, path: str | Path) -> Path:
        """Write the report to one file.

        Parameters
        ----------
        path : str or pathlib.Path
            ``.html`` or ``.pdf``.

        Returns
        -------
        pathlib.Path
            The file; whole, or not there.

        Raises
        ------
        InputError
            If the name has another ending.

        Examples
        --------
        >>> result.report("smiles.html").name
        'smiles.html'
        """
        target, source = as_path("path", path), self._to_print()
        if target.suffix.lower() == ".html":
            content = page_of(source).encode()
        elif target.suffix.lower() == ".pdf":
            from audit.report.pdf import render_pdf  # needs system libraries

            page = page_of(source, for_print=True)
            content = render_pdf(page, source.content, source.digest, source.audit.provenance.started)
        else:
            raise InputError(str(target), "is neither .html nor .pdf", "name the report with one of these endings")
        write_bytes(target, content)
        return target

    def save(self, folder: str | Path) -> Result:
        """Copy the run directory, models included.

        Parameters
        ----------
        folder : str or pathlib.Path
            Not there yet.

        Returns
        -------
        Result
            The copy.

        Raises
        ------
        InputError
            If the folder is there.
        UnfinishedError
            If it cannot be written; nothing is left of it.

        Examples
        --------
        >>> result.save("runs/copy").outcome == result.outcome
        True
        """
        target = as_path("folder", folder)
        if target.exists():
            raise InputError(str(target), "exists already", "name a new folder")
        try:
            shutil.copytree(self.folder, target)
        except OSError as error:
            shutil.rmtree(target, ignore_errors=True)
            raise UnfinishedError(str(target), f"cannot be written ({error})", "make room or name another") from error
        return Result(target)

    def render(self) -> list[Path]:
        """Write every page, table and export of the run directory again; returns the files.

        Examples
        --------
        >>> written = result.save("runs/printed").render()
        >>> "report.html" in {path.name for path in written}
        True
        """
        with locked(self.folder):
            check_kept(self.folder)
            written = render_run(self.folder)
            write_manifest(self.folder, only=[path.relative_to(self.folder).as_posix() for path in written])
        return written

    def review(self, path: str | Path) -> list[Decision]:
        """Add the decisions of a ``review.json`` that the report's page saved, and write the pages again.

        Returns
        -------
        list of Decision
            What is new.

        Raises
        ------
        InputError
            If the review is of another audit.

        Examples
        --------
        What the page saves, here written by hand:

        >>> import hashlib, json
        >>> copy = result.save("runs/reviewed")
        >>> decision = {"finding": copy.findings[0].id, "decision": "accept", "name": "R. Viewer", "role": "auditor",
        ...             "reason": "seen", "decided": "2026-01-31T12:00:00Z"}
        >>> digest = hashlib.sha256((copy.folder / "audit.json").read_bytes()).hexdigest()
        >>> with open("review.json", "w") as file:
        ...     json.dump({"audit_sha256": digest, "decisions": [decision]}, file)
        >>> [added.decision for added in copy.review("review.json")]
        ['accept']
        """
        new = add_review(self.folder, read_review(as_path("path", path)))
        self.__dict__.pop("_source", None)
        return new

    def carry_over(self, earlier: Result | str | Path) -> CarriedOver:
        """Take over what was decided of an earlier run about findings that this one has, too; writes the pages again.

        Whoever decided stays, and each decision is marked with the hash of the record that it was made of. It counts
        until somebody decides of this run.

        Parameters
        ----------
        earlier : Result, str or pathlib.Path

        Returns
        -------
        CarriedOver
            ``added``, and what was ``left``: about findings that this run has not, sections, and the whole report.

        Raises
        ------
        InputError
            If the earlier run has the record of this one, or one of them was changed.

        Examples
        --------
        >>> import vit_audit as va
        >>> try:
        ...     result.carry_over(result)
        ... except va.InputError as error:
        ...     print(str(error).split(": ")[1])
        has the same record as this run; name the run of an earlier audit
        """
        taken = carry_over_decisions(self.folder, earlier.folder if isinstance(earlier, Result) else find_run(earlier))
        self.__dict__.pop("_source", None)
        return taken

    def serve(self, port: int = 0) -> Served:
        """Serve the report to a browser on this machine: decisions made in the page go straight into the run.

        Parameters
        ----------
        port : int
            0 takes one that is free.

        Returns
        -------
        Served
            With ``url``, which only those should have who may decide, ``wait()`` and ``close()``; a context manager.

        Raises
        ------
        InputError
            If the port is taken.

        Examples
        --------
        >>> with result.serve() as served:
        ...     print(served.url.split("/")[2].split(":")[0])
        127.0.0.1
        """
        from audit.report.serve import Served

        return Served(self.folder, port)

    def sign(self, key: str | Path) -> Path:
        """Sign the manifest with an Ed25519 private key (PEM); returns the signature's file.

        Examples
        --------
        >>> from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        >>> from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
        >>> with open("key.pem", "wb") as file:
        ...     made = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        ...     _ = file.write(made)
        >>> result.save("runs/signed").sign("key.pem").name
        'manifest.dsse.json'
        """
        with locked(self.folder):
            return sign_manifest(self.folder, as_path("key", key))

    def sign_pdf(
        self, key: str | Path, certificate: str | Path | None = None, *, passphrase: str | None = None
    ) -> Path:
        """Write ``report.signed.pdf``: the report with one more signature in it (PAdES); needs the extra ``sign``.

        ``report.pdf`` stays as it is, and so does a signature that is there. Sign the manifest after it.

        Parameters
        ----------
        key : str or pathlib.Path
            A private key (PEM), or a PKCS#12 archive that holds its certificate, too.
        certificate : str or pathlib.Path, optional
            Of the key (PEM), and those that lead to its root after it.
        passphrase : str, optional
            Of an encrypted key or archive.

        Returns
        -------
        pathlib.Path
            The file.

        Raises
        ------
        InputError
            If pyHanko is missing, there is no PDF, or key and certificate do not fit.

        Examples
        --------
        >>> import vit_audit as va
        >>> try:
        ...     result.sign_pdf("no-key.pem", "no-certificate.pem")
        ... except va.InputError as error:
        ...     print(str(error).split(";")[0])
        no-key.pem: cannot be read (No such file or directory)
        """
        given = SignWith(
            as_path("key", key),
            None if certificate is None else as_path("certificate", certificate),
            None if passphrase is None else passphrase.encode(),
        )
        with locked(self.folder):
            return sign_report(self.folder, given)

    def share(self, folder: str | Path, *, models: bool = False) -> SharedCopy:
        """Write a copy in which people and images have other names, and the models are left out unless asked for.

        Returns
        -------
        SharedCopy
            What the copy lacks.

        Examples
        --------
        >>> sorted(result.share("runs/handed-on").other_names)
        ['image', 'subject']
        """
        return share_run(self.folder, as_path("folder", folder), models=models)

    def verify(self, *, key: str | Path | None = None, callback: Callback | None = None) -> Verified:
        """Check this run as :func:`vit_audit.verify` does.

        Examples
        --------
        >>> result.verify().faults
        []
        """
        return verify(self.folder, key=key, callback=callback)

    def diff(self, other: Result | str | Path) -> Comparison:
        """Compare with a later run as :func:`vit_audit.diff` does.

        Examples
        --------
        >>> [str(found.state) for found in result.diff(result).findings]
        ['persisting']
        """
        return diff(self, other)

    def card_section(self) -> str:
        """Return a section on the audit in Markdown, for the model's card (``README.md`` on Hugging Face).

        Examples
        --------
        >>> print(result.card_section().splitlines()[1])
        ## Differences between groups: DISPARITY FOUND
        """
        source = self._to_print()
        return card_section(source.audit, source.digest)

    def update_card(self, readme: str | Path) -> Path:
        """Write the section into a model's card, in place of an earlier one or at its end.

        Parameters
        ----------
        readme : str or pathlib.Path
            A Markdown file; made where there is none. What else it holds stays.

        Raises
        ------
        InputError
            If it cannot be read as UTF-8, or does not hold one pair of the section's marks or none.

        Examples
        --------
        >>> result.update_card("README.md").read_text().startswith("<!-- vit-audit -->")
        True
        """
        path = as_path("readme", readme)
        try:
            card = path.read_text(encoding="utf-8") if path.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(str(path), f"cannot be read ({one_line_of(error)})", "name a file of UTF-8 text") from None
        write_text(path, with_section(card, self.card_section(), str(path)))
        return path

    def track(self, *trackers: Tracker) -> list[str]:
        """Log this run to experiment trackers; returns where each did.

        Examples
        --------
        >>> import vit_audit as va
        >>> result.track(va.TensorBoardTracker("runs/tensorboard"))  # doctest: +SKIP
        ['runs/tensorboard']
        """
        from audit.api.tracking import check_trackers, track

        check_trackers(trackers)
        self._to_print()
        return track(self, trackers)

    def gate(
        self, baseline: Result | str | Path | None = None, *, policy: bool = True, tolerance: float = 0.0
    ) -> GateResult:
        """Decide whether this run passes as :func:`vit_audit.gate` does.

        Examples
        --------
        >>> result.gate(result, policy=False).passed
        True
        """
        from audit.api.gating import gate

        return gate(self, baseline, policy=policy, tolerance=tolerance)

    def reproduce(
        self,
        finding: str,
        *,
        data_root: str | Path | None = None,
        data: Data | None = None,
        net: Net | Predictions | None = None,
        device: str = "cpu",
    ) -> Reproduction:
        """Measure one finding again, from images and stored weights.

        Parameters
        ----------
        finding : str
            Its id.
        data_root : str or pathlib.Path, optional
            Where the images lie, where a card names them.
        data : Data, optional
            The data, where they were given in Python.
        net : Net or Predictions, optional
            The model or its predictions, where they were given in Python.
        device : {"auto", "cpu", "cuda", "mps"}
            Where it is measured.

        Returns
        -------
        Reproduction
            ``expected``, ``obtained``, ``tolerance`` and whether it ``holds``.

        Examples
        --------
        ``data`` and ``answers`` are those of the example of :func:`vit_audit.audit`.

        >>> import vit_audit as va
        >>> result.reproduce(result.findings[0].id, data=data, net=va.predictions(answers, classes=["no", "yes"])).holds
        True
        """
        from audit.api.data import Data
        from audit.api.models import Net, Predictions
        from audit.card.load import load_card, with_classes
        from audit.pipeline.reproduce import reproduce_finding

        for name, given, kinds in (("data", data, (Data,)), ("net", net, (Net, Predictions))):
            if given is not None:
                wanted = " or ".join(kind.__name__ for kind in kinds)
                check_kind(name, given, kinds, f"give the {wanted} that the run was made with")
        return reproduce_finding(
            self.folder,
            finding,
            None if data_root is None else as_path("data_root", data_root),
            samples=None
            if data is None
            else data.open(with_classes(load_card(self.folder / "card.yaml"), self.record.model.classes)),
            backbone=net.backbone if isinstance(net, Net) else None,
            box=net.table if isinstance(net, Predictions) else None,
            device=device,
        )

    def __repr__(self) -> str:
        return f"Result({self.outcome}, {len(self.findings)} findings, {self.folder})"

    def plot_ledgers(self, contrast: str | None = None, outcome: str | None = None) -> list[Axes]:
        """Draw the network from input to output, and what each ledger has of a gap, with intervals.

        Parameters
        ----------
        contrast, outcome : str, optional
            Of which gap, as ``answers`` names them; by default the first.

        Returns
        -------
        list of matplotlib.axes.Axes
            One below the other, those that there are of: carried (points), written (nats), trained (points).

        Raises
        ------
        InputError
            If no ledger has that gap.

        Examples
        --------
        Of predictions nothing is known of the network; of a model there are up to three Axes.

        >>> import vit_audit as va
        >>> try:
        ...     result.plot_ledgers()
        ... except va.InputError as error:
        ...     print(error)
        contrast, outcome: no gap of these is in the ledgers; ledgers are of gaps that were detected; see result.gaps
        """
        return plot_ledgers(self.record, contrast, outcome)

    def _repr_html_(self) -> str:
        """Show outcome, controls, main table and plot in a notebook."""
        controls = self.record.controls.controls
        localised = [x for x in self.record.localisation.values() if x.status is LocalisationStatus.LOCALISED]
        parts = [
            f"<h3>{html.escape(self.record.name)}: {self.outcome}</h3>",
            f"<p>{sum(c.passed for c in controls)} of {len(controls)} controls passed; {len(self.findings)} findings; ",
            f"heads named in {len(localised)} of {len(self.record.localisation)} questions.</p>",
            self.rates._repr_html_(),
        ]
        if len(self.gaps):
            parts.append(_as_svg(self.gaps))
        return "\n".join(parts)


def _as_svg(gaps: Gaps) -> str:
    """Return a picture of the gaps as an SVG element."""
    from matplotlib.figure import Figure

    figure, page = Figure(figsize=figure_size(len(gaps)), layout="constrained"), io.StringIO()
    gaps.plot(ax=figure.add_subplot())
    figure.savefig(page, format="svg")
    text = page.getvalue()
    return text[text.index("<svg") :]


def open_run(folder: str | Path) -> Result:
    """Open a finished run, also one of an earlier version to look at it (``Result.earlier``).

    Parameters
    ----------
    folder : str or pathlib.Path
        A run directory, or the name of one in ``reports/``.

    Returns
    -------
    Result
        The same type, with the same numbers, as :func:`vit_audit.audit` returned.

    Raises
    ------
    InputError
        If there is no finished run, or its record is damaged.

    Examples
    --------
    ``result`` is that of the example of :func:`vit_audit.audit`.

    >>> import vit_audit as va
    >>> va.open_run(result.folder).outcome
    <Outcome.DISPARITY_FOUND: 'DISPARITY FOUND'>
    >>> va.open_run("runs/none")
    Traceback (most recent call last):
        ...
    audit.errors.InputError: runs/none: no such run directory; ...
    """
    result = Result(find_run(folder))
    _ = result.record  # a damaged one shows now
    return result


RUNS = Path("reports")


def find_run(folder: str | Path) -> Path:
    """Return a run directory, given its path or its name in ``reports/``."""
    fix = f"name one that 'vit-audit run' finished, as in {RUNS}/NAME"
    for place in (as_path("run", folder), RUNS / folder):
        if any((place / name).is_file() for name in ("audit.json", "manifest.json")):
            return place
        if place.is_dir():
            raise InputError(str(place), "is no finished run: it holds no audit.json", fix)
    raise InputError(str(folder), "no such run directory", fix)


def verify(run: Result | str | Path, *, key: str | Path | None = None, callback: Callback | None = None) -> Verified:
    """Check a run: hash every file, derive every figure again from the stored effects, print every page again.

    Parameters
    ----------
    run : Result, str or pathlib.Path
    key : str or pathlib.Path, optional
        Public key (Ed25519, PEM): the signature is checked too.
    callback : callable, optional
        Called with the name of a step, what is done of it, and in all.

    Returns
    -------
    Verified
        ``faults`` names whatever is not as it was written; ``holds`` tells whether there are none.

    Raises
    ------
    InputError
        If there is no finished run, or the key is none.

    Examples
    --------
    ``result`` is that of the example of :func:`vit_audit.audit`.

    >>> import vit_audit as va
    >>> va.verify(result).holds
    True
    """
    from audit.pipeline.verify import verify_run

    folder = run.folder if isinstance(run, Result) else find_run(run)
    return verify_run(folder, as_step(callback), key=None if key is None else as_path("key", key))


@dataclass(frozen=True)
class Comparison:
    """Two runs compared.

    Parameters
    ----------
    record : RunComparison
        The whole of ``diff.json``.
    """

    record: RunComparison

    @property
    def findings(self) -> Table[ComparedFinding]:
        """What became of each finding."""
        return Table(self.record.findings, ComparedFinding)

    @property
    def gaps(self) -> Table[ComparedGap]:
        """Every gap of either run, and where it stands against the policy."""
        return Table(self.record.gaps, ComparedGap)

    @property
    def rates(self) -> Table[ComparedRate]:
        """Every rate of every group."""
        return Table(self.record.rates, ComparedRate)

    @property
    def heads(self) -> Table[ComparedHead]:
        """The heads that either run confirms."""
        return Table(self.record.heads, ComparedHead)

    def save(self, folder: str | Path | None = None) -> Path:
        """Write ``diff.html`` and ``diff.json``.

        Parameters
        ----------
        folder : str or pathlib.Path, optional
            By default ``diff-NAME-HASHES`` in the current folder.

        Returns
        -------
        pathlib.Path
            The folder.

        Examples
        --------
        >>> result.diff(result).save("compared").name
        'compared'
        """
        runs = (self.record.before, self.record.after)
        hashes = "-".join(run.audit_sha256[:8] for run in runs)
        place = as_path("folder", folder) if folder is not None else Path(f"diff-{folder_name(runs[1].name)}-{hashes}")
        write_text(place / "diff.json", self.record.model_dump_json(indent=1) + "\n")
        write_text(place / "diff.html", render_diff(self.record))
        return place


def diff(before: Result | str | Path, after: Result | str | Path) -> Comparison:
    """Compare two runs: findings, gaps against the policy, rates, and heads.

    Each finding is new, still there, below the threshold now, or no longer testable.

    Parameters
    ----------
    before, after : Result, str or pathlib.Path
        Runs, the earlier one first.

    Returns
    -------
    Comparison
        Paired person by person where both runs saw the same images.

    Raises
    ------
    InputError
        If one is no finished run, or they cannot be compared.

    Examples
    --------
    ``result`` is that of the example of :func:`vit_audit.audit`.

    >>> import vit_audit as va
    >>> [str(row.state) for row in va.diff(result, result).record.findings]
    ['persisting']
    """
    from audit.pipeline.diff import compare_runs

    first, second = (run.folder if isinstance(run, Result) else find_run(run) for run in (before, after))
    return Comparison(compare_runs(first, second))
