# ruff: noqa: E501
"""Public-domain melodies, transcribed by us, each with our own arrangement. Pure data and its parser.

A melody is `pitch:beats` tokens (`r` rests), a harmony `chord:beats` tokens; both last exactly `beats`. The arrangement
(tempo, instruments, accompaniment) is ours; the composers died long before 1925 or the tune is traditional.
"""

import re
from dataclasses import dataclass

STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
ALTER = {"#": 1, "b": -1, "": 0}
QUALITIES = {"": (0, 4, 7), "m": (0, 3, 7), "7": (0, 4, 7, 10), "dim": (0, 3, 6), "5": (0, 7, 12)}


@dataclass(frozen=True)
class Note:
    """One melody note; `start` and `beats` in beats, `midi` the MIDI pitch."""

    start: float
    beats: float
    midi: int


@dataclass(frozen=True)
class Chord:
    """One chord; `root` a pitch class, `intervals` semitones above it."""

    start: float
    beats: float
    root: int
    intervals: tuple[int, ...]


@dataclass(frozen=True)
class Score:
    """A phrase and how it is played; `sound`, `title` and `tail` make the caption."""

    id: str
    title: str
    artist: str
    genre: str
    bpm: int
    beats: float
    melody: str
    chords: str
    lead: str
    comp: str
    style: str
    bass: bool
    drums: str
    sound: str
    tail: str

    @property
    def caption(self) -> str:
        return f"{self.sound}, {self.title}, {self.tail}"


def parse_melody(text: str) -> tuple[list[Note], float]:
    """Returns the notes and the total length in beats, rests included."""
    at, notes = 0.0, []
    for token in text.split():
        name, beats = token.split(":")
        if name != "r":
            match = re.fullmatch(r"([A-G])([#b]?)(\d)", name)
            if match is None:
                raise ValueError(f"not a pitch: {token!r}")
            notes.append(Note(at, float(beats), STEPS[match[1]] + ALTER[match[2]] + 12 * (int(match[3]) + 1)))
        at += float(beats)
    return notes, at


def parse_chords(text: str) -> tuple[list[Chord], float]:
    """Returns the chords and the total length in beats."""
    at, chords = 0.0, []
    for token in text.split():
        name, beats = token.split(":")
        match = re.fullmatch(r"([A-G])([#b]?)(m|7|dim|5)?", name)
        if match is None:
            raise ValueError(f"not a chord: {token!r}")
        root = (STEPS[match[1]] + ALTER[match[2]]) % 12
        chords.append(Chord(at, float(beats), root, QUALITIES[match[3] or ""]))
        at += float(beats)
    return chords, at


TRAD = "Traditional"
# fmt: off
SCORES: tuple[Score, ...] = (
    Score("ode_to_joy", "Ode to Joy", "Ludwig van Beethoven (1824)", "hymn", 116, 12, "E4:1 E4:1 F4:1 G4:1 G4:1 F4:1 E4:1 D4:1 C4:1 C4:1 D4:1 E4:1", "C:4 G:4 C:4", "brass", "strings", "pad", True, "march", "triumphant brass with string pad", "symphonic hymn, 116 bpm"),
    Score("twinkle", "Twinkle Twinkle", TRAD + " (French, 1761)", "nursery", 100, 12, "C5:1 C5:1 G5:1 G5:1 A5:1 A5:1 G5:2 F5:1 F5:1 E5:2", "C:4 F:2 C:2 F:2 C:2", "musicbox", "none", "none", False, "none", "tiny music box alone", "nursery tune, sparse and bright"),
    Score("frere_jacques", "Frere Jacques", TRAD + " (French, 18th century)", "nursery", 132, 12, "C4:1 D4:1 E4:1 C4:1 C4:1 D4:1 E4:1 C4:1 E4:1 F4:1 G4:2", "C:12", "pluck", "pluck", "arp", True, "none", "plucked guitar with arpeggios", "cheerful round for children"),
    Score("greensleeves", "Greensleeves", TRAD + " (English, 1580)", "ballad", 140, 13, "A4:1 C5:2 D5:1 E5:1.5 F5:.5 E5:1 D5:2 B4:1 G4:1.5 A4:.5 B4:1", "Am:1 Am:3 C:3 G:3 Em:3", "flute", "pluck", "arp", True, "none", "lonely flute over lute arpeggios", "renaissance ballad in A minor"),
    Score("fur_elise", "Fur Elise", "Ludwig van Beethoven (1810)", "classical", 150, 12.5, "E5:.5 D#5:.5 E5:.5 D#5:.5 E5:.5 B4:.5 D5:.5 C5:.5 A4:1.5 C4:.5 E4:.5 A4:.5 B4:1.5 E4:.5 G#4:.5 B4:.5 C5:2.5", "Am:4 Am:3 E:3 Am:2.5", "piano", "piano", "arp", False, "none", "solo romantic piano", "bagatelle in A minor, delicate"),
    Score("eine_kleine", "Eine kleine Nachtmusik", "Wolfgang Amadeus Mozart (1787)", "classical", 138, 12, "G4:1.5 D4:.5 G4:1.5 D4:.5 G4:.5 D4:.5 G4:.5 B4:.5 D5:2 C5:1.5 A4:.5 C5:1.5 A4:.5", "G:8 D7:4", "strings", "strings", "pad", True, "none", "lively string serenade", "classical allegro in G major"),
    Score("canon_d", "Canon in D", "Johann Pachelbel (1690)", "baroque", 96, 8, "F#5:1 E5:1 D5:1 C#5:1 B4:1 A4:1 B4:1 C#5:1", "D:1 A:1 Bm:1 F#m:1 G:1 D:1 G:1 A:1", "strings", "pluck", "arp", True, "none", "slow violins with harp", "baroque wedding music"),
    Score("swan_lake", "Swan Lake", "Pyotr Tchaikovsky (1876)", "ballet", 104, 8.5, "F#5:2 B4:.5 C#5:.5 D5:.5 E5:.5 F#5:1.5 D5:.5 F#5:1.5 D5:.5 r:.5", "Bm:4 Bm:2 G:2.5", "oboe", "strings", "pad", False, "none", "melancholic oboe with string pad", "ballet in B minor"),
    Score("mountain_king", "Hall of the Mountain King", "Edvard Grieg (1875)", "classical", 144, 12, "B3:.5 C#4:.5 D4:.5 E4:.5 F#4:.5 D4:.5 F#4:1 F4:.5 C#4:.5 F4:1 E4:.5 C4:.5 E4:1 B3:.5 C#4:.5 D4:.5 E4:.5 F#4:.5 D4:.5 F#4:.5 B4:.5", "Bm:4 F:2 C:2 Bm:4", "pluck", "bass", "stab", True, "hat", "sneaky pizzicato with low stabs", "spooky march in B minor"),
    Score("cancan", "Can-can", "Jacques Offenbach (1858)", "dance", 168, 13.5, "C5:2 D5:.5 F5:.5 E5:.5 D5:.5 G5:1 G5:1 G5:.5 A5:.5 E5:.5 F5:.5 D5:1 D5:1 D5:.5 F5:.5 E5:.5 D5:.5 C5:1.5", "C:4 C:2 F:2 G:5.5", "brass", "epiano", "stab", True, "polka", "galloping brass band and drums", "fast dance, 168 bpm"),
    Score("scarborough", "Scarborough Fair", TRAD + " (English, 17th century)", "ballad", 120, 12, "D4:2 D4:1 A4:2 A4:1 E4:1.5 F4:.5 E4:1 D4:3", "Dm:3 Am:3 C:3 Dm:3", "flute", "pad", "pad", False, "none", "misty flute with warm synth pad", "folk ballad in D dorian"),
    Score("amazing_grace", "Amazing Grace", TRAD + " (American, 1829)", "hymn", 92, 9, "G4:1 C5:2 E5:.5 C5:.5 E5:2 D5:1 C5:2", "C:1 C:3 C:3 F:2", "organ", "organ", "pad", False, "none", "church organ alone", "hymn, slow and solemn"),
    Score("auld_lang", "Auld Lang Syne", TRAD + " (Scottish, 1788)", "ballad", 112, 10, "C4:1 F4:1.5 F4:.5 F4:1 A4:1 G4:1.5 F4:.5 G4:1 A4:2", "C:1 F:4 C:5", "brass", "organ", "pad", True, "none", "brass choir with organ", "sentimental new year song"),
    Score("minuet_g", "Minuet in G", "Christian Petzold (1725)", "baroque", 132, 12, "D5:1 G4:.5 A4:.5 B4:.5 C5:.5 D5:1 G4:1 G4:1 E5:1 C5:.5 D5:.5 E5:.5 F#5:.5 G5:1 G4:1 G4:1", "G:6 C:3 G:3", "harpsi", "harpsi", "arp", False, "none", "harpsichord alone", "baroque dance in three"),
    Score("prelude_c", "Prelude in C", "Johann Sebastian Bach (1722)", "baroque", 132, 12, "C4:.5 E4:.5 G4:.5 C5:.5 E5:.5 G4:.5 C5:.5 E5:.5 C4:.5 D4:.5 A4:.5 D5:.5 F5:.5 A4:.5 D5:.5 F5:.5 B3:.5 D4:.5 G4:.5 D5:.5 F5:.5 G4:.5 D5:.5 F5:.5", "C:4 Dm:4 G7:4", "piano", "none", "none", True, "none", "flowing broken chords on piano", "calm and even"),
    Score("entertainer", "The Entertainer", "Scott Joplin (1902)", "ragtime", 152, 13, "D5:.5 D#5:.5 E5:.5 C6:1 E5:.5 C6:1 E5:.5 C6:2 C6:.5 D6:.5 D#6:.5 E6:.5 C6:.5 D6:.5 E6:1 B5:.5 D6:1 C6:1", "C:1 C:4 F:4 G:3 C:1", "piano", "piano", "stride", True, "none", "ragtime piano, bouncy left hand", "stride, 152 bpm"),
    Score("row_boat", "Row Your Boat", TRAD + " (American, 1852)", "nursery", 150, 13.5, "C4:1.5 C4:1.5 C4:1 D4:.5 E4:1.5 E4:1 D4:.5 E4:1 F4:.5 G4:3 r:1.5", "C:13.5", "epiano", "pad", "pad", True, "hat", "gentle electric piano with soft pad", "round for children"),
    Score("jingle", "Jingle Bells", "James Lord Pierpont (1857)", "carol", 176, 16, "E5:1 E5:1 E5:2 E5:1 E5:1 E5:2 E5:1 G5:1 C5:1.5 D5:.5 E5:4", "C:16", "bell", "pluck", "stab", True, "bells", "glockenspiel and sleigh bells", "festive winter tune"),
    Score("new_world", "New World Largo", "Antonin Dvorak (1893)", "classical", 76, 8, "E4:1.5 G4:.5 G4:2 E4:1.5 D4:.5 C4:2", "C:2 G:2 C:4", "oboe", "brass", "pad", False, "none", "slow english horn over soft brass", "nostalgic symphony"),
    Score("londonderry", "Londonderry Air", TRAD + " (Irish, 1855)", "ballad", 96, 8, "B3:.5 C4:.5 D4:.5 E4:1.5 D4:.5 E4:.5 A4:.5 G4:.5 E4:.5 D4:.5 C4:.5 A3:1.5", "C:1.5 C:2 F:2 C:2.5", "strings", "pluck", "arp", False, "none", "tender violins with harp", "irish air"),
    Score("moonlight", "Moonlight Sonata", "Ludwig van Beethoven (1801)", "classical", 108, 10, "G#3:.5 C#4:.5 E4:.5 G#3:.5 C#4:.5 E4:.5 A3:.5 C#4:.5 E4:.5 A3:.5 D4:.5 F#4:.5 G#3:.5 C4:.5 F#4:.5 G#3:.5 C#4:.5 E4:.5 G#3:.5 C#4:.5", "C#m:3 A:1.5 D:1.5 G#:1.5 C#m:2.5", "piano", "pad", "pad", True, "none", "dark slow piano with pad", "triplets in C sharp minor"),
    Score("spring", "Spring", "Antonio Vivaldi (1725)", "baroque", 120, 10, "E5:1 G#5:1 G#5:1 G#5:1 F#5:.5 E5:.5 B5:2 B5:.5 A5:.5 G#5:1 G#5:1", "E:6 E:4", "strings", "harpsi", "stab", True, "none", "bright violins with harpsichord", "concerto in E major"),
    Score("drunken", "Drunken Sailor", TRAD + " (sea shanty, 1839)", "shanty", 160, 15, "A4:1 A4:.5 A4:.5 A4:1 A4:.5 A4:.5 A4:1 D4:1 F4:1 A4:1 G4:1 G4:.5 G4:.5 G4:1 G4:.5 G4:.5 G4:1 C4:1 E4:1", "Dm:8 C:7", "reed", "reed", "pad", True, "stomp", "accordion with stomping", "sea shanty in D minor"),
    Score("lullaby", "Brahms Lullaby", "Johannes Brahms (1868)", "lullaby", 88, 8, "E4:.5 E4:.5 G4:1.5 E4:.5 E4:.5 G4:1.5 E4:.5 G4:.5 C5:1 B4:1", "C:6 F:1 C:1", "musicbox", "strings", "pad", False, "none", "sleepy music box with soft strings", "cradle song"),
    Score("blue_danube", "Blue Danube", "Johann Strauss II (1866)", "waltz", 168, 15, "C4:1 C4:1 E4:1 G4:1 G4:2 G5:1 G5:2 E5:1 E5:2 C4:1 C4:1 E4:1", "C:15", "strings", "strings", "waltz", True, "none", "string orchestra, elegant", "viennese waltz in three"),
    Score("habanera", "Habanera", "Georges Bizet (1875)", "dance", 116, 10, "D5:.667 C#5:.333 C5:.5 C5:.5 B4:.667 Bb4:.333 A4:.5 A4:.5 Ab4:.667 G4:.333 F4:.5 G4:.25 F4:.25 E4:1 F4:1 D4:2", "Dm:6 A:2 Dm:2", "reed", "pluck", "habanera", True, "none", "sultry clarinet with guitar rhythm", "chromatic tango in D minor"),
    Score("susanna", "Oh Susanna", "Stephen Foster (1848)", "country", 168, 15, "C5:.5 D5:.5 E5:1 G5:1 G5:1.5 A5:.5 G5:1 E5:1 C5:1.5 D5:.5 E5:1 E5:1 D5:1 C5:1 D5:2", "C:11 C:2 G:2", "banjo", "banjo", "stride", True, "none", "banjo picking, quick and sunny", "country song, 168 bpm"),
    Score("yankee", "Yankee Doodle", TRAD + " (American, 1755)", "march", 152, 14, "C5:1 C5:1 D5:1 E5:1 C5:1 E5:1 D5:2 C5:1 C5:1 D5:1 E5:1 C5:2", "C:6 G:2 C:6", "flute", "none", "none", False, "march", "fife and drum", "march with military snare"),
    Score("saints", "When the Saints", TRAD + " (American, 1896)", "jazz", 160, 16, "r:1 C4:1 E4:1 F4:1 G4:4 r:1 C4:1 E4:1 F4:1 G4:4", "C:16", "brass", "piano", "stride", True, "swing", "trumpet with stride piano and drums", "dixieland, 160 bpm"),
    Score("rising_sun", "House of the Rising Sun", TRAD + " (American, 1905)", "blues", 132, 12, "A3:1 A3:1 B3:1 C4:1 E4:1 D4:1 A3:2 r:1 A4:1 A4:1 G4:.5 E4:.5", "Am:3 C:3 D:3 F:3", "organ", "epiano", "arp", True, "rock", "bluesy organ with rock drums", "sixties ballad in A minor"),
    Score("turkey", "Turkey in the Straw", TRAD + " (American, 1834)", "country", 176, 16, "E5:.5 D5:.5 C5:.5 D5:.5 C5:.5 A4:.5 G4:.5 E4:.5 G4:.5 A4:.5 C5:.5 D5:.5 E5:.5 E5:.5 E5:1 G5:.5 G5:.5 A5:.5 G5:.5 E5:1 C5:1 D5:.5 C5:.5 A4:1 C5:2", "C:8 C:5 F:1 C:2", "fiddle", "banjo", "stride", True, "none", "fiddle with banjo, very fast", "square dance, 176 bpm"),
    Score("winter", "Winter Largo", "Antonio Vivaldi (1725)", "baroque", 104, 10, "Eb5:1 Bb4:.5 G4:.5 Eb5:.5 F5:.5 Eb5:.5 D5:.5 D5:1 Eb5:1 F5:1.5 G5:.5 Eb5:2", "Eb:4 Bb:2 Bb:2 Eb:2", "fiddle", "pluck", "arp", True, "none", "warm violin over raindrop pizzicato", "aria in E flat major"),
    Score("joy_world", "Joy to the World", "Lowell Mason (1839)", "carol", 112, 10, "C5:1 B4:.75 A4:.25 G4:1.5 F4:.5 E4:1 D4:1 C4:1.5 G4:.5 A4:1.5 A4:.5", "C:4 G:2 C:2 F:2", "organ", "brass", "pad", True, "none", "radiant organ with brass", "carol in C major"),
    Score("silent_night", "Silent Night", "Franz Xaver Gruber (1818)", "carol", 132, 12, "G4:1.5 A4:.5 G4:1 E4:3 D5:2 D5:1 B4:3", "C:6 G:6", "bell", "strings", "pad", False, "none", "soft bells over strings", "quiet carol in three"),
    Score("deck_halls", "Deck the Halls", TRAD + " (Welsh, 16th century)", "carol", 138, 12, "G4:1.5 F4:.5 E4:1 D4:1 C4:1 D4:1 E4:1 C4:1 D4:.5 E4:.5 F4:.5 D4:.5 E4:1.5 D4:.5", "C:4 C:4 G:2 C:2", "flute", "harpsi", "stab", True, "bells", "merry flute with harpsichord and bells", "winter carol, 138 bpm"),
    Score("we_wish", "We Wish You a Merry Christmas", TRAD + " (English, 16th century)", "carol", 160, 15, "D4:1 G4:1 G4:.5 A4:.5 G4:.5 F#4:.5 E4:1 E4:1 E4:1 A4:1 A4:.5 B4:.5 A4:.5 G4:.5 F#4:1 D4:1 D4:1 B4:1 B4:1", "G:4 C:3 A:3 D:3 G:2", "brass", "pluck", "waltz", True, "none", "brass quartet with harp", "carol in three, 160 bpm"),
    Score("wenceslas", "Good King Wenceslas", TRAD + " (Tempus adest floridum, 1582)", "carol", 144, 14, "G4:1 G4:1 G4:1 A4:1 G4:1 G4:1 D4:2 E4:1 D4:1 E4:1 F#4:1 G4:2", "G:6 D:2 C:2 D:2 G:2", "oboe", "harpsi", "arp", True, "none", "oboe with harpsichord", "medieval carol in G major"),
    Score("london_bridge", "London Bridge", TRAD + " (English, 1744)", "nursery", 138, 12, "G4:1.5 A4:.5 G4:1 F4:1 E4:1 F4:1 G4:2 D4:1 E4:1 F4:2", "C:8 G:4", "musicbox", "epiano", "stab", False, "hat", "music box with electric piano", "singing game, playful"),
    Score("skye_boat", "Skye Boat Song", TRAD + " (Scottish, 1782)", "ballad", 138, 12, "G4:1.5 A4:.5 G4:1 C5:2 C5:1 D5:1.5 E5:.5 D5:1 G5:3", "C:6 G:3 C:3", "fiddle", "pad", "pad", True, "none", "swaying fiddle over warm pad", "scottish boat song"),
    Score("marseillaise", "La Marseillaise", "Claude Joseph Rouget de Lisle (1792)", "march", 120, 11, "D4:.25 D4:.5 D4:.25 G4:1 G4:1 A4:1 A4:1 D5:1.5 B4:.5 G4:.75 G4:.25 B4:.75 G4:.25 E4:1 C5:1", "D:1 G:2 D:2 G:4 C:2", "brass", "brass", "pad", True, "march", "bold brass and snare drum", "anthem, 120 bpm"),
    Score("surprise", "Surprise Symphony", "Joseph Haydn (1791)", "classical", 104, 9, "C4:.5 C4:.5 E4:.5 E4:.5 G4:.5 G4:.5 E4:1 F4:.5 F4:.5 D4:.5 D4:.5 B3:.5 B3:.5 G3:1 C4:.5 C4:.5", "C:4 G:4 C:1", "strings", "none", "none", True, "none", "soft tiptoe strings", "andante in C major"),
    Score("fate", "Fifth Symphony", "Ludwig van Beethoven (1808)", "classical", 126, 11, "r:.5 G4:.5 G4:.5 G4:.5 Eb4:2 r:.5 F4:.5 F4:.5 F4:.5 D4:3 r:.5 G4:.5 G4:.5 G4:.5", "Cm:4 G:5 Cm:2", "strings", "brass", "pad", True, "none", "stormy strings with brass", "allegro in C minor"),
    Score("turkish_march", "Turkish March", "Wolfgang Amadeus Mozart (1783)", "classical", 112, 11, "B4:.25 A4:.25 G#4:.25 A4:.25 C5:1 D5:.25 C5:.25 B4:.25 C5:.25 E5:1 F5:.25 E5:.25 D#5:.25 E5:.25 B5:.25 A5:.25 G#5:.25 A5:.25 B5:.25 A5:.25 G#5:.25 A5:.25 C6:2 A5:.5 C6:.5 B5:1", "Am:8 Em:3", "piano", "piano", "stab", True, "none", "sparkling piano with stabs", "rondo in A minor"),
    Score("jesu_joy", "Jesu Joy", "Johann Sebastian Bach (1723)", "baroque", 126, 11, "G4:.5 A4:.5 B4:.5 D5:.5 C5:.5 C5:.5 E5:.5 D5:.5 D5:.5 G5:.5 F#5:.5 G5:.5 D5:.5 B4:.5 G4:.5 A4:.5 B4:.5 C5:.5 D5:.5 E5:.5 D5:.5 C5:.5", "G:3 C:1.5 G:3 Am:1.5 D:2", "oboe", "organ", "pad", True, "none", "flowing oboe with chapel organ", "chorale in G major"),
    Score("sugar_plum", "Sugar Plum Fairy", "Pyotr Tchaikovsky (1892)", "ballet", 108, 9, "G5:.5 E5:.5 G5:1 F#5:1 D#5:1 E5:.5 D5:.5 D5:.5 D5:.5 C#5:.5 C#5:.5 C#5:.5 C5:.5 C5:.5 C5:.5", "Em:4 G:2 A:1.5 Am:1.5", "bell", "pluck", "stab", True, "none", "celesta with pizzicato", "fairy ballet in E minor"),
    Score("valkyries", "Ride of the Valkyries", "Richard Wagner (1856)", "classical", 120, 11, "F#4:.5 B4:.75 F#4:.25 B4:.5 D5:1.5 B4:1.5 D5:.75 B4:.25 D5:.5 F#5:1.5 D5:1.5 F#5:1.5", "Bm:5 D:6", "brass", "strings", "stab", True, "stomp", "thundering brass over strings", "opera in B minor"),
    Score("bridal", "Bridal Chorus", "Richard Wagner (1850)", "classical", 92, 8, "C4:1 F4:.75 F4:.25 F4:2 C4:1 G4:.75 E4:.25 F4:2", "F:4 C:2 F:2", "organ", "none", "none", True, "none", "solemn church organ", "wedding procession"),
    Score("camptown", "Camptown Races", "Stephen Foster (1850)", "country", 152, 13, "G4:1 G4:1 E4:1 G4:1 A4:1 G4:1 E4:2 E4:1 D4:2 E4:1 D4:1", "C:8 G:5", "banjo", "piano", "stride", True, "polka", "banjo with stride piano", "minstrel tune, 152 bpm"),
    Score("battle_hymn", "Battle Hymn", "William Steffe (1856)", "march", 120, 11, "G4:.75 G4:.25 G4:.75 F4:.25 E4:.75 G4:.25 C5:.75 D5:.25 E5:.75 E5:.25 E5:.75 D5:.25 C5:1 C5:.75 B4:.25 A4:1 A4:.75 B4:.25 C5:.75 B4:.25", "C:8 F:3", "reed", "organ", "pad", True, "march", "reed organ with marching drum", "campfire march, 120 bpm"),
    Score("my_bonnie", "My Bonnie", TRAD + " (Scottish, 1881)", "ballad", 144, 13, "G4:1 E5:1.5 D5:.5 C5:1 D5:1 C5:1 A4:1 G4:1 E4:3 G4:1 E5:1", "C:1 C:3 F:3 C:6", "reed", "pluck", "waltz", True, "none", "harmonica with guitar", "waltz song of the sea"),
    Score("sakura", "Sakura", TRAD + " (Japanese, 19th century)", "ballad", 100, 9, "A4:1 A4:1 B4:2 A4:1 A4:1 B4:2 A4:1", "Am:4 Am:4 Am:1", "banjo", "pad", "pad", False, "none", "koto plucks over soft pad", "japanese spring melody"),
    Score("korobeiniki", "Korobeiniki", TRAD + " (Russian, 1861)", "dance", 144, 13, "E5:1 B4:.5 C5:.5 D5:1 C5:.5 B4:.5 A4:1 A4:.5 C5:.5 E5:1 D5:.5 C5:.5 B4:1.5 C5:.5 D5:1 E5:1 C5:1", "Am:2 E:2 Am:4 E:4 Am:1", "fiddle", "reed", "stab", True, "stomp", "fiddle with accordion stabs", "russian dance in A minor"),
    Score("alouette", "Alouette", TRAD + " (French Canadian, 1879)", "nursery", 132, 12, "C4:1.5 D4:.5 E4:1 E4:1 D4:.5 C4:.5 D4:.5 E4:.5 C4:1 G3:1 C4:1.5 D4:.5 E4:1 E4:1", "C:4 G:2 C:6", "flute", "epiano", "stride", True, "hat", "jaunty flute with electric piano", "children song, 132 bpm"),
    Score("morning", "Morning Mood", "Edvard Grieg (1875)", "classical", 144, 12, "G5:1 E5:1 D5:1 C5:1 D5:1 E5:1 G5:1 E5:1 D5:1 C5:1 D5:.5 E5:.5 D5:.5 E5:.5", "C:12", "flute", "strings", "pad", False, "none", "airy flute over strings", "sunrise pastorale"),
    Score("simple_gifts", "Simple Gifts", "Joseph Brackett (1848)", "hymn", 112, 10, "C4:.5 C4:.5 F4:1 F4:.5 G4:.5 A4:.5 F4:.5 A4:.5 Bb4:.5 C5:1 C5:.5 Bb4:.5 A4:1 G4:.5 F4:.5 G4:1", "F:8 C:2", "pluck", "strings", "pad", True, "none", "plain dulcimer over strings", "shaker hymn in F major"),
    Score("william_tell", "William Tell", "Gioachino Rossini (1829)", "classical", 132, 12, "B4:.25 B4:.25 B4:.5 B4:.25 B4:.25 B4:.5 B4:.25 B4:.25 E5:.5 F#5:.5 G#5:.5 B4:.25 B4:.25 B4:.5 B4:.25 B4:.25 E5:.5 G#5:.25 G#5:.25 F#5:.5 D#5:.5 B4:.5 E5:.25 E5:.25 E5:.5 E5:.25 E5:.25 E5:.5 G#5:1 B5:1", "E:6 B:2 E:4", "brass", "strings", "stab", True, "polka", "galloping trumpet with strings", "overture in E major"),
    Score("toreador", "Toreador Song", "Georges Bizet (1875)", "opera", 112, 10, "C5:1 D5:.75 C5:.25 A4:1 A4:1 A4:.75 G4:.25 A4:.75 Bb4:.25 A4:2 Bb4:1 G4:.75 C5:.25", "F:8 C:2", "brass", "pluck", "habanera", True, "none", "proud trumpet with spanish guitar", "opera march in F major"),
    Score("la_donna", "La donna e mobile", "Giuseppe Verdi (1851)", "opera", 144, 12, "E5:1 E5:1 E5:1 G5:.75 F5:.25 D5:2 D5:1 D5:1 D5:1 F5:.75 E5:.25 C5:2", "C:3 G:6 C:3", "fiddle", "pluck", "waltz", True, "none", "carefree violin with mandolin", "opera waltz in three"),
)
# fmt: on


def check(score: Score) -> None:
    """Raises ValueError where melody or chords don't last the beats that the score claims."""
    for part, beats in (("melody", parse_melody(score.melody)[1]), ("chords", parse_chords(score.chords)[1])):
        if abs(beats - score.beats) > 1e-6:
            raise ValueError(f"{score.id}: {part} lasts {beats} beats, not {score.beats}")
