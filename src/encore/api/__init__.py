"""What plugin authors import: the Specs they register, and the contracts their classes keep.

Importing this module costs nothing: no torch, no pydantic. Shapes used throughout:
N clips, K codebooks, T codec frames, V codes a codebook, L text tokens, D channels, C audio channels, S samples.
"""

import pluggy

from encore.api.backend import Backend
from encore.api.data import Batch, Clip
from encore.api.embedder import Embedder
from encore.api.evaluation import ClipSet, Evaluation, Made, Metric, Result, Role, Source
from encore.api.method import EditMethod, Labels, LossMethod, Method, Reference, Session, Step
from encore.api.specs import BackendSpec, EmbedderSpec, MethodSpec, MetricSpec, RowSpec, Spec

__all__ = [
    "Backend", "BackendSpec", "Batch", "Clip", "ClipSet", "EditMethod", "Embedder", "EmbedderSpec",
    "Evaluation", "Labels", "LossMethod", "Made", "Method", "MethodSpec", "Metric", "MetricSpec", "Reference",
    "Result", "Role", "RowSpec", "Session", "Source", "Spec", "Step", "hookimpl",
]  # fmt: skip

hookimpl = pluggy.HookimplMarker("encore")
