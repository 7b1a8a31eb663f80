"""`encore generate`: generate music for captions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from encore.cli import console
from encore.cli.config import MAX_SEED, Device, Family, Json, Offline, Revision
from encore.errors import InputError, UsageError

MAX_CAPTIONS = 1000


def generate(
    captions: Annotated[list[str] | None, typer.Argument(help="Captions to generate music for.")] = None,
    model: Annotated[str, typer.Option(help="`tiny`, a run folder, a model folder, or a hub name.")] = "tiny",
    backend: Family = None,
    file: Annotated[Path | None, typer.Option("--captions", help="File with one caption per line.")] = None,
    prompt: Annotated[Path | None, typer.Option(help="Audio file to continue.")] = None,
    prompt_seconds: Annotated[float, typer.Option(min=0.02, help="Seconds of the prompt to use.")] = 1.0,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="Length of each generation, with the prompt.")] = 5.0,
    out: Annotated[Path, typer.Option(help="Folder for the WAV files.")] = Path("generated"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing WAV files.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the sampling.")] = 0,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance; 1 turns it off.")] = 3.0,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 1.0,
    revision: Revision = None,
    offline: Offline = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Generate music for captions and write WAV files, 000.wav and on; existing files are not replaced."""
    from encore.text import clean_caption

    texts = [text for text in map(clean_caption, [*(captions or []), *(_read(file) if file else [])]) if text]
    if not texts:
        raise UsageError("there are no captions", 'encore generate "slow church organ", or --captions FILE')
    if prompt is not None and prompt_seconds >= seconds:
        raise UsageError(f"a prompt of {prompt_seconds:g} s leaves none of {seconds:g} s", "raise --seconds")
    paths = [out / f"{number:03d}.wav" for number in range(len(texts))]
    existing = [path for path in paths if path.exists()]
    if existing and not overwrite:
        raise UsageError(f"{existing[0]} exists already", "choose another --out, or replace it with --overwrite")
    from encore.store.run_folder import check_folder, writing

    check_folder(out)

    import torch

    from encore import plugins
    from encore.api import Batch, Clip
    from encore.cli.progress import reporting
    from encore.data.decode import load
    from encore.evaluate.samples import write_wav
    from encore.store.environment import pick_device
    from encore.store.model_name import backend_name, open_model

    family = plugins.backends().resolve(backend_name(model, backend))
    opened = open_model(family, model, revision=revision, offline=offline, device=pick_device(device))
    longest = opened.max_frames / opened.frame_rate
    if seconds > longest:
        raise UsageError(f"{model} generates at most {longest:.1f} s", f"--seconds {longest:.1f}")
    codes_prompt = None
    if prompt is not None:
        audio = load(prompt, sample_rate=opened.sample_rate, channels=opened.channels)
        samples = torch.from_numpy(audio.samples)[:, : round(prompt_seconds * opened.sample_rate)]
        codes_prompt = opened.encode(samples[None])
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    written = []
    with reporting() as reporter:
        for number, (text, path) in enumerate(zip(texts, paths, strict=True)):
            reporter.progress("generate", number, len(texts))
            codes = opened.generate(
                [text], seconds=seconds, prompt=codes_prompt, seed=seed, guidance=guidance, temperature=temperature
            )
            with torch.no_grad():
                if not opened.losses(Batch.of([Clip("", text, codes[0].cpu())], opened.device)).isfinite().all():
                    raise InputError(f"the predictions of {model} are not finite", "the model is damaged")
            write_wav(path, opened.decode(codes)[0], opened.sample_rate)
            written.append({"caption": text, "file": str(path)})
    if json:
        console.data_json({"schema": 1, "model": model, "seed": seed, "generated": written})
    else:
        console.table(["file", "caption"], [(item["file"], item["caption"]) for item in written])


def _read(file: Path) -> list[str]:
    """Captions of a file: one per line, `#` begins a comment."""
    from encore.data.open_files import LIST_CAPS, open_regular, read_lines, spot
    from encore.text_encoding import check_undecoded

    notes: list[str] = []
    lines = []
    with open_regular(file) as stream:
        for number, line in read_lines(stream, str(file), LIST_CAPS, notes=notes):
            check_undecoded([line], spot(str(file), number))
            lines.append(line.strip())
    for note in notes:
        console.note(note)
    captions = [line for line in lines if line and not line.startswith("#")]
    if len(captions) > MAX_CAPTIONS:
        raise InputError(f"{file} holds {len(captions)} captions; the maximum is {MAX_CAPTIONS}")
    return captions
