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
Consent = Literal["yes", "no", "not stated", "no people"]
Layout = Literal["not stated", "documentation only", "real lists", "real copy"]
Provenance = Literal["not stated", "self-reported", "annotated", "inferred", "drawn"]
# What a card tells of its data, and no number of an audit depends on.
TOLD: Mapping[str, Any] = {"data": {"consent", "consent_source", "layout"}, "groups": {"__all__": {"provenance"}}}


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

    # attribute under `groups`
    attribute: str
    # its group
    group: str
    # the label
    label: str
    # share of that cell's training images that stays
    keep: Share


class Shares(CardPart):
    """Shares of subjects by split; a split that is not named gets none."""

    AUDITED: ClassVar[tuple[str, ...]] = ("discovery", "confirmation")  # what an audit reads, besides what it trains on
    # fine-tuning; with `training: none` its share goes to the next two, in proportion to theirs
    train: Share = 0.0
    # the search for heads
    discovery: Share = 0.0
    # what is quoted
    confirmation: Share = 0.0
    # held back for a repair of the model: no audit reads it
    repair: Share = 0.0
    # held back for the certificate of a repair: nothing else reads it
    sealed: Share = 0.0

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

    # faces to train on
    train_images: Drawn = 2400
    # faces to audit, half discovery, half confirmation
    audit_images: Drawn = 1200
    # share of "smiling" among the first group's training faces minus that among the second's
    association: Annotated[float, Field(ge=-0.98, le=0.98)] = 0.0
    # what the association is planted on
    attribute: Literal["skin_tone", "hair_length"] = "skin_tone"
    # the same among the faces to audit: base rates that differ, which is no fault of a model
    audit_association: Annotated[float, Field(ge=-0.98, le=0.98)] = 0.0
    # of the faces
    seed: int = 0


class Download(CardPart):
    """A file that may be fetched, by ``vit-audit datasets --fetch``."""

    # address, `https://` or `http://`
    url: str
    # `sha256:` and 64 hexadecimal digits, or `md5:` and 32 where the publisher gives no other; a file with another
    # hash is thrown away
    hash: str
    # file, or folder to unpack to, below the data folder; default: the address' last part; of an archive: the data
    # folder
    to: str = ""
    # whether it is a zip or tar archive
    unpack: bool = False

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

    # `table` ([CSV, Excel, Parquet, JSON lines](#tables)), `folder` (one folder per class), `huggingface` (a folder
    # of Parquet files or of images with metadata, as `datasets` writes them), `webdataset` (tar files,
    # [how](scale.md#data-where-it-is)), `croissant` (a set beside its [Croissant metadata](datasets.md#croissant)),
    # `cifar100`, `synthetic` (faces rendered here), the name of a [set as it is published](datasets.md), or one that
    # [another package](trackers.md#packages-of-ones-own) declares
    reader: Reader = "table"
    # file or folder, or of `table`, `huggingface` and `webdataset` an [address](scale.md#data-where-it-is) such as
    # `s3://BUCKET/faces.csv`; required but for `synthetic`. Of `folder`: the folder of the class folders, in which
    # images may lie at any depth, with a `groups.csv` beside them. Looked for below `--data` or `VIT_AUDIT_DATA`,
    # then beside the card
    path: str | None = None
    # column of image paths, relative to the table
    image: str = "image"
    # column of the label that the model predicts
    label: str = "label"
    # column, or list of columns, that says who or what is shown. Splits and inference go by subject: name it where
    # one person has several images; default: the image
    subject: str | list[str] | None = None
    # labels to keep, in the order of the model's outputs; the rest is counted and listed; default: all
    labels: Names | None = None
    # share of wrong labels that you estimate (0.03: three of a hundred), from a second annotation of some images, say.
    # Every detected gap is then given with its bounds at that error, and the report says whether it
    # survives ([how](method.md#2b-how-wrong-labels-and-groups-may-be))
    label_error: ErrorShare | None = None
    # what the report calls a label: `{happiness: happy}`; a label that is not named keeps its own
    display: dict[str, str] = {}
    # `true` merges labels that differ in case, blanks or the form of a letter only, into the spelling of `labels` or
    # the commonest; a mapping says what into what: `{joy: happiness}`
    merge_labels: Merge = False
    # column, true (`true`, `yes`, `1`) of images that never reached the classifier, because no face was found in
    # them, say; `false`, `no` or `0` of all others. They are in no rate, and counted by group; see below
    not_detected: str | None = None
    # or a file that lists these images, one per line, as the image column has them
    not_detected_list: str | None = None
    # column that assigns `train`, `discovery`, `confirmation`, `repair`, `sealed` (or `test`, `val`, which are
    # assigned to all but the first, by `shares`)
    split: str | None = None
    # shares of subjects by split; see `shares` below. A list of three or five is taken in the same order
    shares: Shares = Shares(train=0.5, discovery=0.25, confirmation=0.25)
    # of the split
    seed: int = 0
    # thins cells of the training split to plant an association on purpose; see `plant` below
    plant: list[Plant] = []
    # thin the training split until every group x label cell of the first attribute is equally large
    balance_training: bool = False
    # what becomes of images that are stored turned, with an EXIF mark that says so: `deployed` leaves them as they
    # are stored, as the libraries' users do; `apply` turns them upright. Either way `check` and the report say how
    # many there are
    exif: Literal["deployed", "apply"] = "deployed"
    # open images behind links that lead out of the folder of the table or of the class folders; without it these are
    # set aside like unreadable ones. Also lets `controls.path` lead out of the data folder and the card's
    links: bool = False
    # decoded images are held in memory (`memory`), are decoded again whenever they are needed (`none`), or are held
    # where they take at most a quarter of the memory that is free, or of what `--memory` leaves (`auto`). No number
    # depends on it; nothing decoded is written to disk but where `run --cache-dir` names a folder for it
    cache: Literal["auto", "memory", "none"] = "auto"
    # sizes and association of the rendered faces
    rendered: Rendered = Rendered()
    # of the images; printed. With `croissant`, what the metadata say stands in
    licence: str = ""
    # printed; likewise
    citation: str = ""
    # whether the people shown agreed to be in the set; listed by `vit-audit datasets`
    consent: Consent = "not stated"
    # who says so, or where the images come from
    consent_source: str = ""
    # of a set as it is published, on what its reader was tried: only on files laid out as its documentation says, on
    # lists of the set itself (without its images), or on the set
    layout: Layout = "not stated"
    # what `vit-audit datasets --fetch CARD` may fetch; see `download` below
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

    # column of the annotation
    column: str
    # who assigned it and how; printed wherever the groups are
    assigned_by: str = "not stated"
    # who says which group somebody is in: the people themselves, others who looked (`annotated`), or a program or
    # words beside the image (`inferred`); `drawn` of rendered people
    provenance: Provenance = "not stated"
    # share of wrong annotations of this attribute that you estimate, or a mapping by group:
    # `{female: 0.02, male: 0.05}` are the shares of the images annotated so; a group that is not named has none. As
    # `data.label_error`
    error: ErrorShare | dict[str, ErrorShare] | None = None
    # the group that the others are compared with; it has an image, or is among `values` or `bins`; default: the
    # largest group
    reference: str | None = None
    # what the report calls the people of a group, in the plural: `{darker: darker faces}`; one that is not named is
    # "images of 'darker'"
    display: dict[str, str] = {}
    # groups to keep; other values count as unknown, and are listed. One without an image is a row without data, and a
    # warning, also where it is the `reference` or leaves one group alone; where no comparison is left, the audit ends
    # with "too little data" (INCONCLUSIVE, exit code 4) before anything is trained. Refused is an attribute of which
    # no group has an image, and, where one is left, a group whose name is a slip for a value that is not kept;
    # default: all found
    values: Names | None = None
    # as `data.merge_labels`, into the spelling of `values` or the commonest
    merge: Merge = False
    # the column holds numbers: the edges of groups; see below
    bins: Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=1)] | None = None
    # images whose group is unknown (an empty cell, no number where there are bins, none of `values`): `own_group`
    # keeps them in the audit as "unknown", with rates of their own and no comparison; `exclude` leaves them out,
    # counted; `error` refuses them
    missing: Literal["own_group", "exclude", "error"] = "own_group"
    # a seed: the groups are assigned at random within each label. A null run, and marked as such: what it finds is
    # chance
    permuted: int | None = None
    # columns that name an exact pair: images that agree on them show the same but for this attribute (edited
    # photographs, drawings); rendered faces need none. Turns Design B on
    pair: list[str] | None = None
    # anything a reader must know about the annotation
    note: str = ""


class CovariateSpec(CardPart):
    """A column of numbers that donors are matched on, and that gaps are adjusted for."""

    # how far apart recipient and donors, and these two, may be, in the column's own unit. Of several columns all hold
    caliper: Annotated[float, Field(gt=0, allow_inf_nan=False)]

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

    # pixels of the shorter side after resizing; of `squash` and `border`, of the square; default: `crop`
    resize: Annotated[int, Field(ge=1, le=8192)] | None = None
    # side of the square that the model sees; default: the model's side
    crop: Annotated[int, Field(ge=1, le=4096)] | None = None
    # of the pixels between
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] = "bicubic"
    # `center` cuts the middle out, `squash` ignores the image's shape, `border` fits all of it and fills with black
    mode: Literal["center", "squash", "border"] = "center"
    # by which pixels between 0 and 1 are normalised; default: the model's
    mean: Means | None = None
    # by which pixels between 0 and 1 are normalised; default: the model's
    std: Channels | None = None


Named = Literal["deployed", "test", "legacy"]  # preprocessings that the card names
WeightsEntry = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]  # of torchvision, as IMAGENET1K_V1


class ModelSpec(CardPart):
    """The vision transformer or convolutional network; or a model whose inside is not given."""

    # a timm name, `torchvision/vit_b_16`, `torchvision/resnet50`, `open_clip/ViT-B-32`, or `huggingface` ([all
    # families](models.md)). What cannot be patched part by part is refused. `predictions` or `onnx`: a model [whose
    # inside is not at hand](models.md#a-model-whose-inside-is-not-at-hand); `training` is `none` then
    name: str = "vit_small_patch16_224"
    # what report, terminal and exports call the model. Without it, its `name`; of a model that the audit builds itself
    # (`weights: none` or `rendered`, trained) its size, since the name is then that of another model
    display: str = ""
    # of `predictions`: the table of them, of any [form](#tables), looked for as `data.path` is
    path: str | None = None
    # what the values of `predictions` and `onnx` are. By default logits where a value is below 0 or above 1,
    # unless most images' values sum to 1; probabilities of an image must sum to 1, but for `output: sigmoid`;
    # default: what the values tell
    scores: Literal["probability", "logit"] | None = None
    # `pretrained` (timm's or torchvision's, over the network), a FILE or folder of weights
    # ([which](models.md#any-checkpoint)), the folder of a Hugging Face or open_clip checkpoint, an `.onnx` FILE
    # (`name: onnx`), `none` (random), `rendered` (a small base trained here on rendered faces)
    weights: str = "pretrained"
    # `ema` or `raw`: which weights of a FILE that holds averaged ones beside those of the last step
    # (`state_dict_ema`, `model_ema`, ...). A file that holds both is refused until this says which is in use
    state: Literal["ema", "raw"] | None = None
    # class names of your own checkpoint in the order of its outputs; required with `training: none`, but for a
    # Hugging Face folder, whose `config.json` names them
    classes: Classes | None = None
    # of a zero-shot CLIP or SigLIP ([how](models.md#zero-shot-clip-and-siglip)): for each class, in order, the texts
    # that describe it: `{happy: ["a photo of a happy person"], sad: [...]}`. They name the classes, and take the
    # place of a classifier
    prompts: Prompts | None = None
    # what its logits are ([method](method.md#how-outputs-are-read)): `softmax`, classes that exclude each other, or
    # `sigmoid`, each a question of its own. A Hugging Face folder says it (`problem_type`). A classifier of one
    # output and two `classes` is read with `sigmoid`: it is the logit of the second; default: the checkpoint's, else
    # softmax
    output: Output | None = None
    # what an image is called: the class of the largest logit (`argmax`), or each class whose probability is
    # `threshold` or more. Of two classes that exclude each other the threshold is on the second; default: `argmax` of
    # a softmax and of `prompts`, `threshold` of other sigmoids
    decision: Decision | None = None
    # a probability; naming one implies `decision: threshold`; default: `0.5`
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    # which output of a FILE that has several, linear layers beside one body (`heads.emotion.weight`): its name, or a
    # part of it between dots (`emotion`). A file of several is refused with their names until this says which
    output_key: Annotated[str, Field(min_length=1)] | None = None
    # side in pixels, of a transformer a multiple of the patch size, to which the position grid is resampled; of a
    # convolutional network 32 or more; default: the model's
    image_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    # of red, green and blue, 0 to 1, subtracted from pixels; state it for a checkpoint that was trained with others:
    # `[0.5, 0.5, 0.5]`; default: timm's for the name
    mean: Means | None = None
    # likewise, what pixels are divided by; default: timm's for the name
    std: Channels | None = None
    # what is done to an image before the model sees it; see `preprocess` below
    preprocess: Named | WeightsEntry | PreprocessSpec = "deployed"
    # a table of what production answered, of any [form](#tables): the image's column as under `data.image`, and one
    # logit or probability for each class. `check` and `run` compare up to 500 of the images; a control that gates. Of
    # an ONNX file too, not of `predictions`
    served: str | None = None
    # how far a probability may be from the one that was served; beyond it the audit is INVALID
    served_tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.001
    # fine-tune only the last so many blocks; the features before them are computed once, and kept in half
    # precision (float16) till the end; default: all
    train_blocks: Positive | None = None
    # of a convolutional network: into how many slices (groups of adjacent channels) what a block adds is parted, each
    # patched by itself; a divisor of every block's channels; default: `8`
    channel_slices: Annotated[int, Field(ge=1, strict=True)] | None = None
    # further arguments of timm's model, e.g. `{patch_size: 16, depth: 4}`; none for `huggingface`, `open_clip/` and
    # `torchvision/`
    overrides: dict[str, int | float | str | bool | list[int]] = {}

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

    # passes over the training split
    epochs: Positive = 3
    # one model each, no seed twice; the report quotes the first and shows the others beside it
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    # images in each step
    batch_size: Positive = 32
    # of AdamW, with a cosine schedule
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    # of AdamW
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    # share of all steps with a rising learning rate
    warmup_share: Share = 0.1
    # random horizontal flips, the only augmentation there is
    flip: bool = True
    # reference models trained on a balanced sample, for Design C; `0` turns it off
    balanced_seeds: Annotated[int, Field(ge=0)] = 1

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(seeds) != len(set(seeds)):
            raise ValueError("a seed occurs twice; the same model would count twice, name each once")
        return seeds


class ControlsSpec(CardPart):
    """Where and how the colour and blur controls run."""

    # images of the controls: `rendered` (the answer is certain), `cifar100`, `same` (this audit's own), or the path
    # of another card, looked for as `data.path` is
    card: str = "rendered"
    # replaces that card's `data.path`; a path below the data folder or the card's, unless `data.links` is set
    path: str | None = None
    # what the control models start from, as `model.weights` is written: for a model of your own, the weights that it
    # was itself fine-tuned from, so that several such models share one set of controls; default: those of
    # `model.weights`
    weights: str | None = None
    # as `model.state`, of these weights
    state: Literal["ema", "raw"] | None = None
    # at most so many to train on; of rendered images and a pretrained backbone 400 where they are enough
    train_images: AtLeast20 = 2000
    # at most so many to judge on
    eval_images: AtLeast20 = 300
    # training of the base that all control models start from
    base_epochs: Positive = 4
    # training of each control model
    condition_epochs: Positive = 3
    # clean donors, each with a null twin of its seed, for colour and for blur
    donor_seeds: Annotated[int, Field(ge=2)] = 2
    # of both
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    # of both
    batch_size: Positive = 32
    # of images and training
    seed: int = 0


class LedgerSpec(CardPart):
    """How far back it is asked who writes a gap into the answer."""

    # `1`: what every part of the network writes. `2`: also what the largest writers read of what was written before
    # them ([method](method.md#3b-who-writes-it-log-odds-as-a-sum)): two more passes over all images kept out of
    # training
    depth: Annotated[int, Field(ge=1, le=2)] = 1


class AuditSpec(CardPart):
    """What is tested, and how strictly."""

    # labels whose prediction is audited; default: the second of two labels, else all
    outcomes: Names | None = None
    # level, corrected for every comparison and every head
    alpha: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05
    # subjects; a smaller group is answered "too little data"
    min_group_size: Positive = 30
    # heads (or slices of channels) of which layers are patched: `all`, or the `trained` ones
    layers: Literal["all", "trained"] = "all"
    # `all` patches every head (or slice) of every recipient; `sampled` as many as are needed for intervals as narrow;
    # `auto` decides by what all of them cost ([method](method.md#4-fewer-patches))
    patches: Literal["auto", "all", "sampled"] = "auto"
    # with a sample of the patches: how far a head's 95% interval may reach to either side, as probability (0.005 is
    # half a point); default: as all patches give
    half_width: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    # recipients that are patched at once, in the controls 32 at most: a smaller block takes less memory; the last
    # bits of what is measured depend on it, and on nothing else that has to do with memory; default: `32`, on an
    # accelerator `64`
    block: Annotated[int, Field(ge=1, le=4096)] | None = None
    # swaps of donor labels
    permutations: Annotated[int, Field(ge=200, le=1_000_000)] = 5000
    # bootstrap draws behind the intervals of heads
    bootstrap: Annotated[int, Field(ge=200, le=1_000_000)] = 2000
    # at most so many recipients a contrast and split, drawn evenly over label x group; default: all
    max_images: Positive | None = None
    # of pairing, permutations and resamples
    seed: int = 0
    # how far back it is asked who writes a gap into the log-odds; see below
    ledger: LedgerSpec = LedgerSpec()


class PolicySpec(CardPart):
    """From what size on a disparity counts: the user's own thresholds."""

    # a detected gap counts where the ratio of the standardised rates, smaller over larger, is below this
    impact_ratio_below: Share = 0.8
    # ... or where the gap is above this; also the size that an audit must be able to see to answer "passed"
    gap_above: Share = 0.1
    # a confirmed head that carries a smaller share of the gap gets no finding of its own; times `gap_above`: the
    # margin within which a head is shown to carry next to nothing
    head_share_above: Share = 0.05
    # which error does harm in this use: `missed` (people of the outcome who are not called so), `false_alarm` (others
    # who are called so), or `both`; it is fixed before the run, and page 1 gives it first
    harmful_error: HarmfulError = "both"


class ReportSpec(CardPart):
    """What the report says about the audit itself."""

    # who ran the audit; printed
    run_by: str = ""
    # who decides about the model, a person or an office; page 1 says who is to decide, or that the card names nobody
    owner: str = ""
    # the day by which that is due, `2027-03-01`
    decide_by: Day = ""


class Card(CardPart):
    """A whole card. A first card needs ``data`` and ``groups`` only."""

    # title of the report, and the beginning of the run directory's name
    name: str = "Unnamed audit"
    # decides which questions of the legal screen are asked
    task: Literal["emotion", "action", "other"] = "other"
    # what the images and labels are
    description: str = ""
    # what the model is for; printed on the first page
    intended_use: str = ""
    # what it is not for
    out_of_scope: str = ""
    # where images, labels and subjects are; see below
    data: DataSpec
    # attributes whose groups are compared; see below
    groups: Annotated[dict[str, GroupSpec], Field(min_length=1)]
    # lists of two or three attributes, e.g. `[[gender, skin_tone]]`; their rates are compared, their heads are not
    intersections: list[Annotated[Names, Field(min_length=2, max_length=3)]] = []
    # nuisance columns that recipient and donors must agree on, besides the label (source, annotator, pose, light),
    # and columns of numbers in which they must be near; see below
    match_on: Annotated[list[MatchEntry], AfterValidator(_columns_once)] = []
    # the vision transformer or convolutional network
    model: ModelSpec = ModelSpec()
    # how it is fine-tuned, or `none` for a model that is audited as it is
    training: Literal["none"] | TrainingSpec = TrainingSpec()
    # images and training of the colour and blur controls
    controls: ControlsSpec = ControlsSpec()
    # what is tested, how strictly
    audit: AuditSpec = AuditSpec()
    # from what size on a gap counts
    policy: PolicySpec = PolicySpec()
    # your answers to the legal screen, by clause: `{gdpr-35: "Assessed on 3 May."}`; the ids and questions are in
    # `templates/law.yaml`. They are printed, not judged
    legal: dict[str, str] = {}
    # what the report may show
    report: ReportSpec = ReportSpec()
    # how a detected gap is repaired once the audit is done; see below. No number of an audit depends on it, and a run
    # is found again whatever it says
    repair: RepairSpec | None = None

    def asked(self) -> dict[str, Any]:
        """Return what an audit's numbers depend on, as plain data: all but how its gaps would be repaired."""
        return self.model_dump(exclude={"repair": True, **TOLD})

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
