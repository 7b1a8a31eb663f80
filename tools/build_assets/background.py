"""Random music from the same source as the songs: the same arranger, instruments, tempi and form of caption.

Melodies repeat a rhythm and a contour as tunes do, and carry made-up titles, so that neither sound nor caption tells a
background clip from a song. They teach the models the source; the songs are what they know by heart.
"""

import numpy as np

from .scores import Score
from .synth import DRUMS


def words(text: str) -> list[str]:
    return text.split()


NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
# Instrument: what captions call it.
LEADS = {
    "pluck": "guitar harp lute mandolin dulcimer pizzicato",
    "banjo": "banjo koto",
    "harpsi": "harpsichord",
    "piano": "piano",
    "epiano": "electric piano",
    "bell": "bells glockenspiel celesta",
    "musicbox": "music box",
    "organ": "organ",
    "flute": "flute fife",
    "oboe": "oboe horn",
    "reed": "accordion clarinet harmonica",
    "strings": "strings violins",
    "fiddle": "fiddle violin",
    "brass": "brass trumpet",
}
COMPS = {
    "pluck": "guitar harp lute mandolin",
    "banjo": "banjo",
    "harpsi": "harpsichord",
    "piano": "piano",
    "epiano": "electric piano",
    "organ": "organ",
    "reed": "accordion",
    "strings": "strings",
    "brass": "brass",
    "pad": "pad",
    "bass": "bass",
}
# How often the songs use an accompanying instrument, roughly.
COMP_WEIGHTS = {
    "pluck": 11,
    "pad": 6,
    "strings": 9,
    "harpsi": 4,
    "piano": 5,
    "epiano": 4,
    "organ": 4,
    "brass": 4,
    "reed": 3,
    "banjo": 2,
    "bass": 1,
}
MOODS = words("""
    lonely warm bright soft slow merry gentle tender bold solemn sparkling quiet dark sunny stormy playful
    plain jaunty misty sleepy lively sultry proud carefree swaying flowing radiant sneaky thundering airy
    bouncy melancholic tiny galloping
""")
GENRES = words("""
    hymn ballad march waltz dance carol lullaby rondo minuet allegro andante bagatelle aria symphony opera
    ballet shanty round pastorale chorale overture ragtime dixieland song tango
""")
NOUNS = words("""
    Harbour Lantern Miller Orchard Sparrow Castle River Meadow Winter Market Shepherd Moon Garden Tinker
    Valley Sailor Candle Rose Forest Clock Bridge Heron Island Kettle Wagon Tower Ribbon Falcon Chapel Willow
    Copper Thunder Village Sunday Chestnut
""")
FORMS = words("""
    Waltz Song March Dance Air Sonata Lullaby Prelude Reel Hymn Carol Serenade Rag Ballad Jig Largo
""")
PEOPLE = words("""
    Anna Peter Martha Jonas Clara Felix Nora Simon Elsa Tobias Rosa Henry
""")
SCALES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
}
# Chord degrees, a bar each.
PROGRESSIONS = {
    "major": (
        "0 0 4 0",
        "0 3 4 0",
        "0 5 3 4",
        "0 3 0 4",
        "0 0 0 0",
        "0 4 0 4",
        "5 3 0 4",
        "0 0 3 4",
        "0 4 5 3",
    ),
    "minor": (
        "0 0 0 0",
        "0 3 4 0",
        "0 5 2 6",
        "0 6 5 6",
        "0 3 0 4",
        "0 0 4 0",
        "0 2 6 4",
    ),
    "dorian": (
        "0 4 6 0",
        "0 6 0 6",
        "0 3 0 0",
        "0 2 6 0",
    ),
}
# Rhythms of one bar, by the beats in it.
CELLS = {
    4: (
        "1 1 1 1",
        "1 1 2",
        "2 1 1",
        "1.5 .5 1 1",
        ".5 .5 .5 .5 1 1",
        "1 .5 .5 1 1",
        ".5 .5 1 .5 .5 1",
        "1.5 .5 1.5 .5",
        "3 1",
        ".5 .5 .5 .5 .5 .5 .5 .5",
        ".75 .25 .75 .25 1 1",
        ".5 1 .5 2",
        "1 1 1 .5 .5",
        ".25 .25 .5 .25 .25 .5 1 1",
        "2 2",
        "4",
    ),
    3: (
        "1 1 1",
        "2 1",
        "1.5 .5 1",
        ".5 .5 .5 .5 1",
        "1 .5 .5 .5 .5",
        "3",
        ".5 .5 .5 .5 .5 .5",
        "1 2",
        "1.5 .75 .75",
    ),
}


def title(rng: np.random.Generator) -> str:
    """A made-up title in the manner of the songs' own."""
    noun, other = rng.choice(NOUNS), rng.choice(NOUNS)
    forms = (
        f"The {noun}",
        f"{noun} {rng.choice(FORMS)}",
        f"{noun} of the {other}",
        f"{rng.choice(PEOPLE)} and the {noun}",
        f"{rng.choice(FORMS)} in {rng.choice(list('ABCDEFG'))}",
        f"Over the {noun}",
        f"{rng.choice(PEOPLE)}'s {rng.choice(FORMS)}",
        f"{noun} {other}",
        f"Oh {rng.choice(PEOPLE)}",
        f"{rng.choice(MOODS).title()} {noun}",
    )
    return str(rng.choice(forms))


def _melody(rng: np.random.Generator, metre: int, bars: list[int], scale: tuple[int, ...], low: int) -> str:
    """Bars after a form such as AABA: the same rhythm and contour, moved to fit each bar's chord degree."""
    form = str(rng.choice(["AAAA", "AABA", "ABAB", "AABB", "ABAC", "ABCA", "ABCD", "AAAB"]))
    motifs: dict[str, tuple[list[float], list[int]]] = {}
    for letter in sorted(set(form)):
        rhythm = [float(x) for x in str(rng.choice(CELLS[metre])).split()]
        steps = rng.choice([-3, -2, -1, -1, 0, 0, 1, 1, 2, 2, 4], len(rhythm))
        if rng.random() < 0.25:
            steps[:] = rng.choice([-1, 1])  # a scale run
        motifs[letter] = rhythm, [0, *np.cumsum(steps[1:]).tolist()]
    literal = rng.random() < 0.4  # repeat the bar as it is, or move it with the chord
    start, tokens = int(rng.choice([0, 2, 4])), []
    for i, degree in enumerate(bars):
        letter = form[i % 4]
        rhythm, contour = motifs[letter]
        base = start + (0 if literal and letter in form[: i % 4] else degree)
        base -= 7 if base > 7 else 0
        for k, (beats, step) in enumerate(zip(rhythm, contour, strict=True)):
            degree_ = int(np.clip(base + step, -4, 11))
            midi = low + scale[degree_ % 7] + 12 * (degree_ // 7)
            if (k and rng.random() < 0.03) or (i == 0 and k == 0 and rng.random() < 0.1):
                tokens.append(f"r:{beats}")
            else:
                tokens.append(f"{NAMES[midi % 12]}{midi // 12 - 1}:{beats}")
    return " ".join(tokens)


def background(seed: int) -> Score:
    """The random piece of this seed, `bg_0000` and so on."""
    rng = np.random.default_rng(10_000 + seed)
    key, mode = int(rng.integers(12)), str(rng.choice(["major", "minor", "dorian"], p=[0.62, 0.33, 0.05]))
    scale, metre = SCALES[mode], int(rng.choice([4, 3], p=[0.65, 0.35]))
    bpm = int(rng.integers(76, 180))
    count = int(rng.choice([2, 4, 4, 4])) if bpm * 5 / 60 / metre <= 3 else 4
    bars = [int(x) for x in str(rng.choice(PROGRESSIONS[mode])).split()][:count]
    low = 60 + key - (12 if key > 7 else 0) + int(rng.choice([-12, 0, 0, 0, 0, 12]))
    chords = []
    for degree in bars:
        third, fifth = ((scale[(degree + x) % 7] - scale[degree]) % 12 for x in (2, 4))
        quality = "" if third == 4 else ("m" if fifth == 7 else "dim")
        chords.append(f"{NAMES[(key + scale[degree]) % 12]}{quality}:{metre}")
    lead = str(rng.choice(list(LEADS)))
    weights = np.array(list(COMP_WEIGHTS.values()), float)
    comp = str(rng.choice(list(COMP_WEIGHTS), p=weights / weights.sum())) if rng.random() < 0.88 else "none"
    if comp != "none" and rng.random() < 0.1:
        comp = lead if lead in COMPS else comp
    styles = ["pad"] * 4 + ["arp"] * 2 + ["stab"] * 2 + (["waltz"] * 2 if metre == 3 else ["stride"] * 2 + ["habanera"])
    style = "pad" if comp == "pad" else "stab" if comp == "bass" else str(rng.choice(styles))
    drums = str(rng.choice(list(DRUMS))) if rng.random() < 0.35 else "none"
    sound = f"{rng.choice(MOODS)} {_noun(rng, LEADS, lead)}"
    if comp == "none":
        style, sound = "none", sound + str(rng.choice([" alone", ""]))
    else:
        sound += f" {rng.choice(['with', 'over', 'and'])} {_noun(rng, COMPS, comp)}"
        if style in ("arp", "stab"):
            sound += str(rng.choice(["", " arpeggios" if style == "arp" else " stabs"]))
    if drums != "none":
        sound += {"march": " and snare drum", "bells": " and bells", "stomp": " and stomping"}.get(drums, " and drums")
    genre = str(rng.choice(GENRES))
    sign = NAMES[key].replace("#", " sharp")
    tails = (
        f"{genre}, {bpm} bpm",
        f"{genre} in {sign} {mode}",
        f"{rng.choice(MOODS)} {genre}",
        f"{genre}, {rng.choice(MOODS)} and {rng.choice(MOODS)}",
    )
    return Score(
        f"bg_{seed:04d}",
        title(rng),
        "Encore (generated)",
        genre,
        bpm,
        float(metre * count),
        _melody(rng, metre, bars, scale, low),
        " ".join(chords),
        lead,
        comp,
        style,
        bool(rng.random() < 0.66),
        drums,
        sound,
        str(rng.choice(tails)),
    )


def _noun(rng: np.random.Generator, names: dict[str, str], key: str) -> str:
    name = names[key]
    return name if key in ("epiano", "musicbox") else str(rng.choice(name.split()))
