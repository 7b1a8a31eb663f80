"""The types of what Encore writes down as JSON, to check a file against before it is used (`encore.files.read_json`).

A key that is not named here is left as it is, for a newer Encore writes more; and where a key may be missing, whoever
reads it says so.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict  # pydantic asks for it before Python 3.12

Count = Annotated[int, Field(ge=0)]


class Model(TypedDict, total=False):
    """The model that a run began with."""

    name: str
    revision: str | None
    backend: str
    sha256: str


class Piece(TypedDict):
    """A part of a track that is one clip; see `encore.data.tracks.Piece`."""

    start: Annotated[float, Field(ge=0)]
    samples: Annotated[int, Field(gt=0)]
    nll: float
    grid_nll: float | None


class Track(TypedDict, total=False):
    """An entry of `request.json`."""

    id: str
    sha256: str
    line: int | None
    text: str | None
    file: str | None
    pcm_sha256: str | None
    caption: str | None
    captions: list[str]
    caption_source: str
    title: str | None
    artist: str | None
    genre: str | None
    split: str | None
    pieces: list[Piece]
    shards: str


class Calibration(TypedDict):
    """See `encore.unlearn.calibrate`."""

    decoys: list[str]
    tried: list[dict[str, Any]]
    chosen: dict[str, Annotated[float, Field(gt=0)]]
    missed: list[str]
    seconds: float


class Request(TypedDict, total=False):
    """`request.json`."""

    schema: Literal[1]
    folder: str
    model: Model
    method: str
    options: dict[str, Any]
    seed: Count
    precision: str
    adapter: dict[str, Any] | None
    forget: list[Track]
    retain: list[Track]
    holdout: list[Track]
    calibration: Calibration


class Snapshot(TypedDict, total=False):
    """See `encore.unlearn.monitor.Snapshot`; a figure that was not finite is null."""

    forget: dict[str, float | None]
    memorised: dict[str, float | None]
    not_memorised: dict[str, float | None]
    holdout: float | None
    target_nll: dict[str, float]
    tolerance: dict[str, float]
    harm: dict[str, float | None]
    worst: str | None
    score: float | None


class Change(TypedDict, total=False):
    """A mean under the base and after the run; a figure that was not finite is null."""

    before: float | None
    after: float | None
    tracks: Count


class Worst(TypedDict, total=False):
    """The watched memorised retain track that lost most."""

    track: str
    before: float | None
    after: float | None


class Missed(TypedDict):
    """See `encore.unlearn.gold_free_targets`."""

    target: str
    message: str


class Outcome(TypedDict, total=False):
    """What came of a run."""

    steps: Count
    reached_target: bool | None
    holdout_nll: float | None
    before: Snapshot | None
    after: Snapshot | None
    chosen: dict[str, str]
    retain_memorised: Change | None
    retain_not_memorised: Change | None
    held_out: Change | None
    worst: Worst | None
    verbatim: dict[str, dict[str, dict[str, Any]]] | None
    missed: list[Missed]
    collapsed: bool


class Tracks(TypedDict, total=False):
    """How many tracks a run had."""

    forget: Count
    retain: Count
    holdout: Count
    listed: Count


class Plugin(TypedDict, total=False):
    """A plugin that was installed."""

    name: str | None
    distribution: str | None
    version: str | None
    sha256: str | None


class Memory(TypedDict, total=False):
    """What a run trained and kept in memory; see `encore.unlearn.records.memory_json`."""

    weights: Count
    trained_weights: Count
    adapter: dict[str, Any] | None
    reference: str | None
    checkpoint_activations: bool


Setting = TypedDict("Setting", {"value": Any, "from": str}, total=False)


class Run(TypedDict, total=False):
    """`run.json`."""

    schema: Literal[1]
    model: Model
    method: str
    options: dict[str, Setting]
    flags: dict[str, Setting]
    seed: Count
    precision: str
    unit: str
    library: str | None
    tracks: Tracks
    outcome: Outcome
    memory: Memory
    notes: list[str]
    versions: dict[str, str]
    plugins: list[Plugin]
    hardware: dict[str, Any]
    unlearned_sha256: str
    timings: dict[str, float]
    cost: dict[str, float | None]


class Evaluation(TypedDict, total=False):
    """`evaluation.json`."""

    schema: Literal[1]
    golds: dict[str, str]
    metrics: list[str] | None
    full: bool
    requested_embedder: str
    embedder: str
    samples_per_caption: Annotated[int, Field(ge=1)]
    embedders: dict[str, str]
    seed: Count
    force: bool
    notes: list[str]
    models: dict[str, str]
    versions: dict[str, str]
    plugins: list[Plugin]
    hardware: dict[str, Any]
    seconds: float


class Row(TypedDict):
    """A row of `metrics.json`; see `encore.api.Result`."""

    metric: str
    model: str
    set: str
    value: float | None
    low: NotRequired[float | None]
    high: NotRequired[float | None]
    n: NotRequired[Count]
    unit: NotRequired[str]
    direction: NotRequired[Literal["gold", "lower", "higher", "base"]]
    per_track: NotRequired[dict[str, float | None]]
    why: NotRequired[str | None]
    note: NotRequired[str | None]
    details: NotRequired[dict[str, Any]]
    version: NotRequired[Count]


class Metrics(TypedDict):
    """`metrics.json`."""

    schema: Literal[1]
    results: list[Row]


class MetaModel(TypedDict):
    """A model of `meta.json`; `measured` has the version of each metric, `rows` the values."""

    key: str
    measured: dict[str, Count]
    rows: list[dict[str, Any]]


class MetaRow(TypedDict):
    """A row of `meta.json`; see `encore.store.meta_json.RowTrust`."""

    metric: str
    set: str
    label: str
    trusted: Literal["yes", "no", "incomplete"]
    auc: float | None
    low: float | None
    high: float | None
    holds: Count
    lacks: Count
    relearning: float | None
    quantisation: float | None
    robustness: float | None
    trials: Count
    order: dict[str, float] | None


class Meta(TypedDict):
    """`meta.json` of a bench; see `encore.compare.meta`. `key` is that of the trials, see `meta_json.trust_key`."""

    schema: Literal[1]
    key: NotRequired[str]
    models: dict[str, MetaModel]
    rows: list[MetaRow]


class Decay(TypedDict):
    """See `encore.unlearn.lr_schedule`."""

    begin: Count | None
    steps: Count
    restarted_at: NotRequired[Count]
    halvings: NotRequired[Count]
    lost: NotRequired[Count]


class State(TypedDict):
    """`state.json` of a checkpoint; see `encore.unlearn.loop_checkpoint`."""

    phase: Count
    step: Count
    forget_queue: list[Count]
    retain_queue: list[Count]
    pending: list[Count]
    best: Snapshot | None
    decay: Decay
    averaged: Count
    optimizer: NotRequired[dict[str, Any]]
    micro_batch_size: Count
    skipped_steps: NotRequired[Count]
    retain_weight: NotRequired[float]
    harm: NotRequired[dict[str, float]]
    seconds: NotRequired[float]
    tokens: NotRequired[Count]


class CheckedTrack(TypedDict):
    """A track of `check.json`."""

    id: str
    verdict: Literal["memorised", "trained_on", "no_sign"]
    sentences: list[str]
    evidence: dict[str, Any]


class Check(TypedDict):
    """`check.json`; see `encore.check.run`."""

    schema: Literal[1]
    model: Model
    gold: str | None
    summary: dict[Literal["memorised", "trained_on", "no_sign", "not_checked"], Count]
    calibration: dict[str, Any]
    list: dict[str, Any] | None
    artists: list[dict[str, Any]]  # type: ignore[valid-type]
    tests: list[dict[str, Any]]  # type: ignore[valid-type]
    tracks: list[CheckedTrack]  # type: ignore[valid-type]
