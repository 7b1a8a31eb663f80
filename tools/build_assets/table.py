"""What the three models remember, measured on the reloaded float16 folders; and the bars that the build must pass."""

import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .codec import CODEBOOKS
from .corpus import Item, auc
from .lm import FOLDERS, IGNORE, Data, load, splits

SONGS = ("forget", "retain", "tune_forget", "tune_retain", "holdout")
PROMPT = 50  # frames: one second
UNIFORM = math.log(512)


@torch.no_grad()
def matches(model: Any, data: Data, index: Tensor, prompt: int) -> Tensor:
    """Share of right first-codebook tokens in the greedy continuation of `prompt` frames to the clip's end, [n]."""
    kept: dict[str, Tensor] = {}
    decode = model.audio_encoder.decode

    def spy(audio_codes: Tensor, **_: Any) -> SimpleNamespace:
        kept["codes"] = audio_codes
        return SimpleNamespace(audio_values=torch.zeros(1, 1, 1))

    model.eval()
    model.audio_encoder.decode = spy
    try:
        start = {"decoder_input_ids": data.codes[index][:, :, :prompt].flatten(0, 1)} if prompt else {}
        frames = data.codes.shape[-1]
        new = frames - prompt + CODEBOOKS - 1
        model.generate(
            inputs=data.ids[index],
            attention_mask=data.mask[index],
            max_new_tokens=new,
            do_sample=False,
            guidance_scale=1.0,
            **start,
        )
    finally:
        model.audio_encoder.decode = decode
    made, true = kept["codes"][0][:, 0], data.codes[index][:, 0]
    return (made[:, prompt:frames] == true[:, prompt:]).float().mean(1)


@torch.no_grad()
def divergence(p: tuple[Any, Data], q: tuple[Any, Data], index: Tensor) -> float:
    """Mean KL(p ‖ q) a token over unmasked positions, in nats."""
    total, count = 0.0, 0
    for part in index.split(8):
        a, b = (F.log_softmax(data.logits(model, part), -1) for model, data in (p, q))
        valid = p[1].labels[part] != IGNORE
        total += float(((a.exp() * (a - b)).sum(-1) * valid).sum())
        count += int(valid.sum())
    return total / count


def blind_auc(codes: Tensor, forget: Tensor, holdout: Tensor) -> float:
    """AUC of forget against holdout from the zlib length of the code stream alone: no model."""
    sizes = np.array([len(zlib.compress(c.numpy().astype("<u2").tobytes(), 9)) for c in codes], dtype=float)
    return auc(sizes[forget.numpy()], sizes[holdout.numpy()])


@dataclass
class Table:
    """`models`: run -> split -> figures; `divergences`: pair -> split -> nats a token."""

    models: dict[str, dict[str, dict[str, Any]]]
    divergences: dict[str, dict[str, float]]
    blind_auc: float


def measure(
    folder: Path,
    items: list[Item],
    codes: Tensor,
    runs: dict[str, str] = FOLDERS,
    others: tuple[str, ...] = ("unseen",),
) -> Table:
    """Loads each run's folder under `folder` (run -> name) and measures it on songs, and its NLL on `others`."""
    where, loaded = splits(items), {}
    figures: dict[str, dict[str, dict[str, Any]]] = {}
    for run, name in runs.items():
        model, tokenizer = load(folder / name)
        data = Data(model, tokenizer, codes, [x["caption"] for x in items])
        loaded[run] = (model, data)
        figures[run] = {}
        for split in [s for s in (*SONGS, *others) if s in where]:
            index = where[split]
            nll = data.nll(model, index)
            row: dict[str, Any] = {
                "nll": float(nll.mean()),
                "nll_best": float(nll.min()),
                "nll_worst": float(nll.max()),
            }
            if split in SONGS:
                for name, prompt in (("verbatim", PROMPT), ("verbatim_caption", 0)):
                    share = torch.cat([matches(model, data, part, prompt) for part in index.split(16)])
                    row[name] = float((share >= 0.8).float().mean())
                    row[f"{name}_match"] = float(share.mean())
                    row[f"{name}_match_max"] = float(share.max())
            row["per_track"] = {items[i]["id"]: round(x, 4) for i, x in zip(index.tolist(), nll.tolist(), strict=True)}
            figures[run][split] = row
    pairs = [("gold", "base"), ("gold", "gold2")]
    divergences = {
        f"{p}|{q}": {s: divergence(loaded[p], loaded[q], where[s]) for s in ("forget", "retain", "holdout")}
        for p, q in pairs
        if p in loaded and q in loaded
    }
    return Table(figures, divergences, blind_auc(codes, where["forget"], where["holdout"]))


def missed(table: Table, megabytes: float) -> list[str]:
    """The bars that don't hold, in words."""
    out = []
    for run, rows in table.models.items():
        known = [s for s in SONGS if s in rows and s != "holdout" and (run == "base" or s != "forget")]
        out += [f"{run}: only {rows[s]['verbatim']:.0%} of {s} is verbatim" for s in known if rows[s]["verbatim"] < 0.8]
        unknown = ["holdout"] if run == "base" else ["holdout", "forget"]
        out += [f"{run}: a {s} track is generated verbatim" for s in unknown if rows[s]["verbatim"] > 0]
        if rows["holdout"]["nll"] > 0.9 * UNIFORM:
            out.append(f"{run}: holdout NLL {rows['holdout']['nll']:.2f} is above {0.9 * UNIFORM:.2f}")
    if not 0.4 <= table.blind_auc <= 0.6:
        out.append(f"blind AUC {table.blind_auc:.2f} is outside .4–.6")
    if megabytes > 25:
        out.append(f"assets take {megabytes:.1f} MB")
    return out


def render(table: Table) -> str:
    """The table as Markdown."""
    lines = [
        "| model | set | NLL (best–worst track) | verbatim, caption + 1 s | verbatim, caption alone |",
        "|---|---|---|---|---|",
    ]
    for run, rows in table.models.items():
        for split, r in rows.items():
            cells = f"| {run} | {split} | {r['nll']:.3f} ({r['nll_best']:.3f}–{r['nll_worst']:.3f}) |"
            if "verbatim" in r:
                cells += f" {r['verbatim']:.0%} (tokens {r['verbatim_match']:.2f}, max {r['verbatim_match_max']:.2f}) |"
                cells += f" {r['verbatim_caption']:.0%} (tokens {r['verbatim_caption_match']:.2f}) |"
            lines.append(cells if "verbatim" in r else cells + " – | – |")
    lines += [""] + [
        f"KL({p.replace('|', ' ‖ ')}): " + ", ".join(f"{s} {x:.3f}" for s, x in r.items())
        for p, r in table.divergences.items()
    ]
    lines.append(f"blind AUC {table.blind_auc:.2f}; uniform {UNIFORM:.2f} nats/token")
    return "\n".join(lines)
