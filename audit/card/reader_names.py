"""Which readers there are: the one list from which cards are checked and readers are opened."""

from __future__ import annotations

from collections.abc import Mapping

from audit.plugins import DATASETS, plugins

_EXPRESSIONS, _ACTIONS, _APPEARANCE, _POSED = (
    f"audit.data.readers.{kind}" for kind in ("expressions", "actions", "appearance", "posed")
)
OF_PLACES: Mapping[str, str] = {  # of what a card says of data, and a path or an address in an object store
    "table": "audit.data.readers.table:read_image_table",
    "huggingface": "audit.data.readers.hf:read_huggingface",
    "webdataset": "audit.data.readers.webdataset:read_webdataset",
}
READERS: Mapping[str, str] = {  # likewise, of a path
    "folder": "audit.data.readers.folder:read_folder",
    "croissant": "audit.data.readers.croissant:read_croissant",
    "cifar100": "audit.data.readers.cifar100:read_cifar100",
}
PUBLISHED: Mapping[str, str] = {  # sets as they are published, of a folder
    "rafdb": f"{_EXPRESSIONS}:read_rafdb",
    "affectnet": f"{_EXPRESSIONS}:read_affectnet",
    "expw": f"{_EXPRESSIONS}:read_expw",
    "stanford40": f"{_ACTIONS}:read_stanford40",
    "celeba": f"{_EXPRESSIONS}:read_celeba",
    "utkface": f"{_APPEARANCE}:read_utkface",
    "fairface": f"{_APPEARANCE}:read_fairface",
    "fer2013": f"{_EXPRESSIONS}:read_fer2013",
    "lfw": f"{_EXPRESSIONS}:read_lfw",
    "miap": f"{_APPEARANCE}:read_miap",
    "imsitu": f"{_ACTIONS}:read_imsitu",
    "coco": f"{_ACTIONS}:read_coco",
    "facet": f"{_ACTIONS}:read_facet",
    "flickr8k": "audit.data.readers.captions:read_flickr8k",
    "celebamask": f"{_EXPRESSIONS}:read_celebamask",
    "emotic": "audit.data.readers.emotic:read_emotic",
    "fhibe": f"{_POSED}:read_fhibe",
    "casualconversations2": f"{_POSED}:read_casualconversations2",
    "hagrid": f"{_POSED}:read_hagrid",
}
WITHOUT_PATH = ("frame", "synthetic")  # given in Python, and rendered


def reader_names() -> list[str]:
    """Return every name that ``data.reader`` may have: the tool's own, then those of other packages."""
    own = [*OF_PLACES, *READERS, *WITHOUT_PATH, *PUBLISHED]
    return [*own, *(name for name in plugins(DATASETS) if name not in own)]
