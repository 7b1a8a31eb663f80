"""`encore generate`: listen to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from encore.cli import console
from encore.errors import InputError, UsageError

MAX_CAPTIONS = 1000


def generate(
    captions: Annotated[list[str] | None, typer.Argument(help="What to play, a caption each.")] = None,
    model: Annotated[str, typer.Option(help="`tiny`, a run folder, a model folder, or a hub name.")] = "tiny",
    backend: Annotated[
        str | None, typer.Option(help="Model family, see `encore backends`; default: the run's, else musicgen.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--captions", help="A file of captions, one a line.")] = None,
    prompt: Annotated[Path | None, typer.Option(help="Audio file to go on from.")] = None,
    prompt_seconds: Annotated[float, typer.Option(min=0.02, help="How much of it.")] = 1.0,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="Length.")] = 5.0,
    out: Annotated[Path, typer.Option(help="Folder for the WAV files.")] = Path("generated"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace WAV files of an earlier time.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 0,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance; 1 turns it off.")] = 3.0,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 1.0,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never go to the network.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Play captions with a model and write WAV files, 000.wav and on; those that are there already are kept."""
    from encore.text import clean_caption

    texts = [text for text in map(clean_caption, [*(captions or []), *(_read(file) if file else [])]) if text]
    if not texts:
        raise UsageError("there is nothing to play", 'encore generate "slow church organ", or --captions FILE')
    if prompt is not None and prompt_seconds >= seconds:
        raise UsageError(f"a prompt of {prompt_seconds:g} s leaves nothing of {seconds:g} s to play", "raise --seconds")
    paths = [out / f"{number:03d}.wav" for number in range(len(texts))]
    there = [path for path in paths if path.exists()]
    if there and not overwrite:
        raise UsageError(f"{there[0]} is there already", "choose another --out, or replace it with --overwrite")

    import torch

    from encore import plugins
    from encore.cli.progress import reporting
    from encore.data.decode import load
    from encore.evaluate.samples import write_wav
    from encore.store.environment import pick_device
    from encore.store.model_name import backend_name, model_name
    from encore.store.run_folder import writing

    family = plugins.backends().resolve(backend_name(model, backend))
    opened = family.load(model_name(model), revision=revision, offline=offline, device=pick_device(device))
    longest = opened.max_frames / opened.frame_rate
    if seconds > longest:
        raise UsageError(f"{model} plays {longest:.1f} s at most", f"--seconds {longest:.1f}")
    given = None
    if prompt is not None:
        audio = load(prompt, sample_rate=opened.sample_rate, channels=opened.channels)
        samples = torch.from_numpy(audio.samples)[:, : round(prompt_seconds * opened.sample_rate)]
        given = opened.encode(samples[None])
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    written = []
    with reporting() as reporter:
        for number, (text, path) in enumerate(zip(texts, paths, strict=True)):
            reporter.progress("play", number, len(texts))
            codes = opened.generate(
                [text], seconds=seconds, prompt=given, seed=seed, guidance=guidance, temperature=temperature
            )
            write_wav(path, opened.decode(codes)[0], opened.sample_rate)
            written.append({"caption": text, "file": str(path)})
    if json:
        console.data_json({"schema": 1, "model": model, "seed": seed, "generated": written})
    else:
        console.table(["file", "caption"], [(item["file"], item["caption"]) for item in written])


def _read(file: Path) -> list[str]:
    """Captions of a file: one a line, `#` begins a comment."""
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
        raise InputError(f"{file} holds {len(captions)} captions, and {MAX_CAPTIONS} are played at most")
    return captions
