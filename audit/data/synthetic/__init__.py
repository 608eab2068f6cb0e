"""Built-in data, rendered by the project: faces with exact pairs, and shapes for the controls."""

from audit.data.synthetic.drawing import RENDERER_VERSION, render
from audit.data.synthetic.faces import Face, edit, face_of_row
from audit.data.synthetic.sampling import sample_faces
from audit.data.synthetic.shapes import HUES, SHAPES, TEXTURES, sample_shapes
from audit.data.synthetic.source import SyntheticSource, edited_key, rendered_samples

__all__ = [
    "HUES",
    "RENDERER_VERSION",
    "SHAPES",
    "TEXTURES",
    "Face",
    "SyntheticSource",
    "edit",
    "edited_key",
    "face_of_row",
    "render",
    "rendered_samples",
    "sample_faces",
    "sample_shapes",
]
