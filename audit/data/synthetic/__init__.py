"""Built-in data, rendered by the project: faces with exact pairs, and shapes for the controls."""

from audit.data.synthetic.drawing import RENDERER_VERSION, render
from audit.data.synthetic.faces import Face, edit, face_of_row
from audit.data.synthetic.sampling import sample_faces
from audit.data.synthetic.source import SyntheticSource, edited_key, rendered_samples

__all__ = [
    "RENDERER_VERSION",
    "Face",
    "SyntheticSource",
    "edit",
    "edited_key",
    "face_of_row",
    "render",
    "rendered_samples",
    "sample_faces",
]
