"""What a card (``dataset.yaml``) may say: every field, its default, and what it means."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, ClassVar, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from audit.card.reader_names import reader_names
from audit.card.repair_spec import HarmfulError, RepairSpec

Share = Annotated[float, Field(ge=0.0, le=1.0)]
ErrorShare = Annotated[float, Field(ge=0, le=0.5)]  # of annotations that are thought to be wrong
Channels = Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1, max_length=3)]
Means = Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1, max_length=3)]
Positive = Annotated[int, Field(ge=1)]
Output = Literal["softmax", "sigmoid"]
Decision = Literal["argmax", "threshold"]
PREDICTIONS, ONNX = "predictions", "onnx"  # model.name where the model's inside is not given
AtLeast20 = Annotated[int, Field(ge=20)]
Drawn = Annotated[int, Field(ge=1, le=1_000_000)]  # images that are rendered: a slip of the finger draws for days


Prompt = Annotated[str, Field(min_length=1)]
Prompts = Annotated[dict[str, Annotated[list[Prompt], Field(min_length=1)]], Field(min_length=2)]
Merge = bool | dict[str, str]  # or what into what


def _day(given: object) -> object:
    """Check a day, "2027-03-01"; YAML reads one as a date, and a card made in Python may hold either."""
    if isinstance(given, str) and given:
        try:
            return date.fromisoformat(given).isoformat()
        except ValueError:
            raise ValueError(f"'{given}' is no day; write it as 2027-03-01") from None
    return given.isoformat() if isinstance(given, date) else given


Day = Annotated[str, BeforeValidator(_day)]


def _distinct(names: list[str]) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"'{twice[0]}' occurs twice; name each once")
    return names


def _several(classes: list[str]) -> list[str]:
    if len(classes) < 2:
        raise ValueError(f"fewer than two classes; {BOTH}")
    return classes


BOTH = "name both that one logit tells apart, its own second, and write output: sigmoid"
Names = Annotated[list[str], AfterValidator(_distinct)]
Classes = Annotated[Names, AfterValidator(_several)]


class CardPart(BaseModel):
    """Base of all parts: unknown keys are faults, values do not change after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Plant(CardPart):
    """Thin out one group x label cell of the *training* split, to plant an association on purpose."""

    attribute: str
    group: str
    label: str
    keep: Share  # share of the cell's training images that stay


class Shares(CardPart):
    """Shares of subjects by split; a split that is not named gets none."""

    AUDITED: ClassVar[tuple[str, ...]] = ("discovery", "confirmation")  # what an audit reads, besides what it trains on
    train: Share = 0.0
    discovery: Share = 0.0
    confirmation: Share = 0.0
    repair: Share = 0.0  # held back for a repair of the model
    sealed: Share = 0.0  # held back for the certificate of a repair; nothing else reads it

    @model_validator(mode="before")
    @classmethod
    def _of_a_list(cls, given: object) -> object:
        """Take a list of three or five shares, in the order of the fields."""
        if not isinstance(given, list | tuple):
            return given
        names = list(cls.model_fields)
        if len(given) not in (3, len(names)):
            raise ValueError(
                f"{len(given)} shares; name them, e.g. {{train: 0.5, discovery: 0.25, confirmation: 0.25}}"
            )
        return dict(zip(names, given, strict=False))


class Rendered(CardPart):
    """Size and association of the built-in rendered faces."""

    train_images: Drawn = 2400
    audit_images: Drawn = 1200
    # Share of "smiling" among training faces of the first group minus that of the second, 0 = none planted.
    association: Annotated[float, Field(ge=-0.98, le=0.98)] = 0.0
    attribute: Literal["skin_tone", "hair_length"] = "skin_tone"  # what the association is planted on
    # The same among audited faces: base rates that differ, which is no fault of a model.
    audit_association: Annotated[float, Field(ge=-0.98, le=0.98)] = 0.0
    seed: int = 0


class Download(CardPart):
    """A file that may be fetched, by ``vit-audit datasets --fetch``."""

    url: str
    hash: str  # sha256:..., or md5:... where its publisher gives no other
    to: str = ""  # file or folder below the data folder; default: the address' last part, the data folder
    unpack: bool = False  # a zip or tar archive

    @field_validator("url")
    @classmethod
    def _over_http(cls, url: str) -> str:
        if not re.fullmatch(r"https?://[^/\s@]+/\S+", url):
            raise ValueError("is no address of a file; begin with https://, and name no user")
        return url

    @field_validator("hash")
    @classmethod
    def _known_hash(cls, digest: str) -> str:
        if not re.fullmatch(r"sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", digest):
            raise ValueError("is no hash; write sha256: and 64 hexadecimal digits (or md5: and 32), in lower case")
        return digest

    @field_validator("to")
    @classmethod
    def _below(cls, to: str) -> str:
        if ".." in to.split("/") or to.startswith("/") or "\\" in to or ":" in to or "\0" in to:
            raise ValueError(f"'{to}' leaves the data folder; write a path below it, with forward slashes")
        return to


def _known_reader(name: str) -> str:
    known = reader_names()
    if name not in known:
        raise PydanticCustomError(
            "literal_error", "is no reader", {"expected": ", ".join(f"'{other}'" for other in known)}
        )
    return name


Reader = Annotated[str, AfterValidator(_known_reader)]


class DataSpec(CardPart):
    """Where the images lie and which columns say what."""

    reader: Reader = "table"
    # relative to --data / VIT_AUDIT_DATA where given, else to the card; or an address, as s3://bucket/faces.csv
    path: str | None = None
    image: str = "image"  # column names of a table
    label: str = "label"
    subject: str | list[str] | None = None  # unit of splitting and inference; the image where absent
    labels: Names | None = None  # keep these, in this order; the rest is counted and listed
    label_error: ErrorShare | None = None  # estimated share of wrong labels: bounds on every detected gap
    display: dict[str, str] = {}  # what the report calls a label: {happiness: happy}
    merge_labels: Merge = False  # true: what differs in case, blanks or the form of a letter only
    not_detected: str | None = None  # a column, true of images that never reached the classifier
    not_detected_list: str | None = None  # or a file that lists them, one per line
    split: str | None = None  # a column that names each image's split, instead of drawing
    shares: Shares = Shares(train=0.5, discovery=0.25, confirmation=0.25)  # of subjects
    seed: int = 0  # of the split
    plant: list[Plant] = []
    balance_training: bool = False  # thin the training split until every group x label cell is equal
    exif: Literal["deployed", "apply"] = "deployed"  # turn images by their EXIF mark, or leave them as pipelines do
    links: bool = False  # follow links that lead out of the folder of the data
    cache: Literal["auto", "memory", "none"] = "auto"  # hold decoded images in memory; auto: while they fit
    rendered: Rendered = Rendered()
    licence: str = ""
    citation: str = ""
    download: list[Download] = []

    @field_validator("path")
    @classmethod
    def _without_secrets(cls, path: str | None) -> str | None:
        """Refuse an address that lets somebody in: paths are in records and reports."""
        if path is None or "://" not in path:
            return path
        parts = urlsplit(path)
        if "@" in parts.netloc or (parts.query and parts.scheme in ("http", "https")):
            raise ValueError("names a user or a signature, which records would show; give the environment the key")
        return path


class GroupSpec(CardPart):
    """One attribute: which column, who assigned it, whom the others are compared with."""

    column: str
    assigned_by: str = "not stated"
    error: ErrorShare | dict[str, ErrorShare] | None = None  # estimated share of wrong annotations, or that of groups
    reference: str | None = None  # default: the group with the most images
    display: dict[str, str] = {}  # what the report calls people of a group, in the plural: {darker: darker faces}
    values: Names | None = None  # keep these groups; other values count as unknown
    merge: Merge = False  # true: groups that differ in case, blanks or the form of a letter only
    bins: Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=1)] | None = (
        None  # the column holds numbers: the edges of groups, each of which belongs to the group that it begins
    )
    missing: Literal["own_group", "exclude", "error"] = "own_group"  # images whose group is unknown
    permuted: int | None = None  # a seed: assign groups at random within each label, to see what chance finds
    pair: list[str] | None = None  # images that agree on these columns differ in nothing but this attribute
    note: str = ""


class CovariateSpec(CardPart):
    """A column of numbers that donors are matched on, and that gaps are adjusted for."""

    caliper: Annotated[float, Field(gt=0, allow_inf_nan=False)]  # how far apart a recipient and its donors may be

    @model_validator(mode="before")
    @classmethod
    def _says_caliper(cls, given: object) -> object:
        if not isinstance(given, Mapping | CovariateSpec):
            raise ValueError("say how far apart donors may be: {caliper: 5}")
        return given


MatchEntry = str | Annotated[dict[str, CovariateSpec], Field(min_length=1)]


def _columns_once(entries: list[MatchEntry]) -> list[MatchEntry]:
    _distinct([column for entry in entries for column in ([entry] if isinstance(entry, str) else entry)])
    return entries


class PreprocessSpec(CardPart):
    """Preprocessing that the card states, in place of what the weights carry."""

    resize: Annotated[int, Field(ge=1, le=8192)] | None = None  # shorter side after resizing; default: crop
    crop: Annotated[int, Field(ge=1, le=4096)] | None = None  # side of what the model sees; default: the model's own
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] = "bicubic"
    mode: Literal["center", "squash", "border"] = "center"  # cut the middle, ignore the shape, or fit and fill
    mean: Means | None = None  # of red, green and blue, 0 to 1; default: the model's own
    std: Channels | None = None


Named = Literal["deployed", "test", "legacy"]  # preprocessings that the card names
WeightsEntry = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]  # of torchvision, as IMAGENET1K_V1


class ModelSpec(CardPart):
    """The vision transformer or convolutional network; or a model whose inside is not given."""

    name: str = "vit_small_patch16_224"  # a timm model name, "predictions" or "onnx"
    path: str | None = None  # of "predictions": the table of them
    scores: Literal["probability", "logit"] | None = None  # what the outputs are; default: what their values tell
    weights: str = (
        "pretrained"  # pretrained | rendered (a small base trained here) | none | a file or folder of weights
    )
    state: Literal["ema", "raw"] | None = None  # which weights of a file that holds averaged ones beside others
    classes: Classes | None = None  # class names of the user's own checkpoint, in the order of its outputs
    # Of a zero-shot classifier (CLIP, SigLIP): for each class, in order, what describes it, one text or several.
    prompts: Prompts | None = None
    output: Output | None = None  # of the logits; default: the checkpoint's own, else softmax
    decision: Decision | None = None  # default: argmax of a softmax, threshold of sigmoids
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None  # called so from this probability on; default: 0.5
    output_key: Annotated[str, Field(min_length=1)] | None = None  # which output of a model that has several
    image_size: Annotated[int, Field(ge=1, le=4096)] | None = None  # default: the model's own
    mean: Means | None = None  # of red, green and blue, 0 to 1, subtracted from pixels; default: timm's for the name
    std: Channels | None = None  # likewise, what pixels are divided by
    # What is done to an image before the model sees it: as the weights or their library say; at timm's test size; a
    # centred square resized bicubic, as before version 0.2; as an entry of torchvision's weights says; or as stated.
    preprocess: Named | WeightsEntry | PreprocessSpec = "deployed"
    served: str | None = None  # a table of what production answered: image, one logit or probability for each class
    served_tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.001  # of a probability; beyond it the audit is INVALID
    train_blocks: Positive | None = None  # fine-tune the last so many blocks; default: all
    channel_slices: Annotated[int, Field(ge=1, strict=True)] | None = (
        None  # of each block of a convolutional network, patched one by one; default: 8
    )
    overrides: dict[str, int | float | str | bool | list[int]] = {}  # further keyword arguments of timm's model

    @property
    def is_black_box(self) -> bool:
        """Tell whether the model's inside is not given, so that rates can be measured and heads cannot."""
        return self.name in (PREDICTIONS, ONNX)

    @property
    def is_legacy(self) -> bool:
        """Tell whether images are preprocessed as before version 0.2: nothing in an ONNX file says another way."""
        return self.preprocess == "legacy" or (self.name == ONNX and self.preprocess == "deployed")

    @property
    def weights_entry(self) -> str | None:
        """The entry of torchvision's weights whose preprocessing the card names."""
        named = isinstance(self.preprocess, PreprocessSpec) or self.preprocess in get_args(Named)
        return None if named else str(self.preprocess)

    @property
    def sees_images(self) -> bool:
        """Tell whether images are opened; predictions stand for themselves."""
        return self.name != PREDICTIONS

    @model_validator(mode="before")
    @classmethod
    def _classes_of_prompts(cls, given: object) -> object:
        """Take the classes that have prompts, where none are named."""
        if isinstance(given, dict) and isinstance(given.get("prompts"), dict) and given.get("classes") is None:
            return {**given, "classes": [str(name) for name in given["prompts"]]}
        return given

    @model_validator(mode="after")
    def _entry_of_torchvision(self) -> ModelSpec:
        if self.weights_entry is not None and not self.name.startswith("torchvision/"):
            what = f"preprocess '{self.weights_entry}' is an entry of torchvision's weights"
            raise ValueError(f"{what}, and the model '{self.name}'; write deployed, test or legacy, or state a mapping")
        return self


class TrainingSpec(CardPart):
    """Fine-tuning of the audited model."""

    epochs: Positive = 3
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    batch_size: Positive = 32
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warmup_share: Share = 0.1
    flip: bool = True  # random horizontal flips
    balanced_seeds: Annotated[int, Field(ge=0)] = 1  # balanced reference models for Design C; 0 turns it off

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(seeds) != len(set(seeds)):
            raise ValueError("a seed occurs twice; the same model would count twice, name each once")
        return seeds


class ControlsSpec(CardPart):
    """Where and how the colour and blur controls run."""

    card: str = "rendered"  # rendered | cifar100 | same | a path to another card
    path: str | None = None  # overrides that card's data.path
    weights: str | None = None  # what the control models start from, where not from model.weights
    state: Literal["ema", "raw"] | None = None  # as model.state, of these weights
    train_images: AtLeast20 = 2000  # at most so many
    eval_images: AtLeast20 = 300
    base_epochs: Positive = 4
    condition_epochs: Positive = 3
    donor_seeds: Annotated[int, Field(ge=2)] = 2  # donors of each kind; the null needs two
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    batch_size: Positive = 32
    seed: int = 0


class LedgerSpec(CardPart):
    """How far back it is asked who writes a gap into the answer."""

    depth: Annotated[int, Field(ge=1, le=2)] = 1  # 2: also what the largest writers read


class AuditSpec(CardPart):
    """What is tested, and how strictly."""

    outcomes: Names | None = None  # labels whose prediction is audited; default: all but the first of two
    alpha: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05
    min_group_size: Positive = 30  # subjects
    layers: Literal["all", "trained"] = "all"
    # Patch every head of every recipient, or as many as are needed; auto: what all of them cost decides.
    patches: Literal["auto", "all", "sampled"] = "auto"
    # How far a head's 95% interval may reach to either side, as probability, where not all are patched; by default as
    # far as if they were.
    half_width: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    # Recipients that are patched at once, a piece of work each; default: 32, on an accelerator 64.
    block: Annotated[int, Field(ge=1, le=4096)] | None = None
    permutations: Annotated[int, Field(ge=200, le=1_000_000)] = 5000
    bootstrap: Annotated[int, Field(ge=200, le=1_000_000)] = 2000
    max_images: Positive | None = None  # recipients per split at most, balanced over group x label
    seed: int = 0
    ledger: LedgerSpec = LedgerSpec()


class PolicySpec(CardPart):
    """From what size on a disparity counts: the user's own thresholds."""

    impact_ratio_below: Share = 0.8
    gap_above: Share = 0.1
    head_share_above: Share = 0.05  # a confirmed head that carries less of the gap gets no finding of its own
    # Which error does harm in this use: people of the outcome who are not called so, others who are, or either.
    harmful_error: HarmfulError = "both"


class ReportSpec(CardPart):
    """What the report says about the audit itself."""

    run_by: str = ""
    owner: str = ""  # who decides about the model: a person or an office
    decide_by: Day = ""  # when that is due


class Card(CardPart):
    """A whole card. A first card needs ``data`` and ``groups`` only."""

    name: str = "Unnamed audit"
    task: Literal["emotion", "action", "other"] = "other"
    description: str = ""
    intended_use: str = ""
    out_of_scope: str = ""
    data: DataSpec
    groups: Annotated[dict[str, GroupSpec], Field(min_length=1)]
    intersections: list[Annotated[Names, Field(min_length=2, max_length=3)]] = []
    # Nuisance columns that donors are matched on: by name the same value, ``{age: {caliper: 5}}`` the nearest number.
    match_on: Annotated[list[MatchEntry], AfterValidator(_columns_once)] = []
    model: ModelSpec = ModelSpec()
    training: Literal["none"] | TrainingSpec = TrainingSpec()
    controls: ControlsSpec = ControlsSpec()
    audit: AuditSpec = AuditSpec()
    policy: PolicySpec = PolicySpec()
    legal: dict[str, str] = {}  # answers to the legal screen, by clause id
    report: ReportSpec = ReportSpec()
    repair: RepairSpec | None = None  # of a finished run; no audit depends on it

    def asked(self) -> dict[str, Any]:
        """Return what an audit's numbers depend on, as plain data: all but how its gaps would be repaired."""
        return self.model_dump(exclude={"repair"})

    @property
    def to_repair(self) -> RepairSpec:
        """How a gap is repaired; the error that harms is that of the policy where ``repair`` names none."""
        spec = self.repair or RepairSpec()
        return spec.model_copy(update={"harmful_error": spec.harmful_error or self.policy.harmful_error})

    @property
    def categories(self) -> list[str]:
        """Columns of ``match_on`` in which donors have the same value."""
        return [entry for entry in self.match_on if isinstance(entry, str)]

    @property
    def calipers(self) -> dict[str, float]:
        """Columns of ``match_on`` that hold numbers, each with how far apart donors may be."""
        numbers = [entry for entry in self.match_on if not isinstance(entry, str)]
        return {column: spec.caliper for entry in numbers for column, spec in entry.items()}

    @model_validator(mode="before")
    @classmethod
    def _nothing_to_train(cls, given: Any) -> Any:
        """Audit a model whose inside is not given as it is, without being asked to."""
        model = given.get("model") if isinstance(given, Mapping) else None
        named = model.get("name") if isinstance(model, Mapping) else None
        return {"training": "none", **given} if named in (PREDICTIONS, ONNX) else given
