"""Names of artists: which fields of a catalogue credit one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from encore.text import near

# Marks of several artists that no name contains: "&", commas and "and" are part of many (Simon & Garfunkel).
_SEVERAL = re.compile(r"\s*;\s*|\s+/\s+|\s*[\[(]?\b(?:feat|ft|featuring)\b\.?\s+", re.IGNORECASE)
_NOTE = re.compile(r"\s*\([^)]*\)\s*$")


def credited(field: str) -> tuple[str, ...]:
    """The whole field, then the artists in it where it names several: `A feat. B`, `A; B`, `A / B`."""
    parts = [part.strip() for part in _SEVERAL.split(field)]
    # `A (feat. B)` leaves a closing bracket behind.
    parts = [part[:-1].strip() if part[-1:] in ")]" and not re.search(r"[(\[]", part) else part for part in parts]
    return (
        tuple(dict.fromkeys([field.strip(), *(part for part in parts if part)])) if len(parts) > 1 else (field.strip(),)
    )


def artists_of(field: str) -> tuple[str, ...]:
    """The artists that a field credits, without text in parentheses at the end of a name; `()` for an empty field."""
    parts = credited(field)
    names = (_NOTE.sub("", part).strip() or part for part in parts[1:] or parts)
    return tuple(name for name in dict.fromkeys(names) if name)


def normalised(name: str) -> str:
    """A name without differences of case, spaces and Unicode form."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def without_note(name: str) -> str:
    """A name, normalised, without text in parentheses at its end, such as a year."""
    return normalised(_NOTE.sub("", name)) or normalised(name)


def crediting(name: str, fields: Iterable[str]) -> set[str]:
    """The fields that credit an artist; where none does, those that do without text in parentheses.

    `Nirvana` is `Nirvana` alone where a catalogue has it beside `Nirvana (UK)`; `Edvard Grieg` is `Edvard Grieg (1875)`
    where it has no other.
    """
    wanted, known = normalised(name), {field for field in fields if field.strip()}
    for form in (normalised, without_note):
        found = {field for field in known if wanted in map(form, credited(field))}
        if found:
            return found
    return set()


def near_artists(name: str, fields: Iterable[str]) -> list[str]:
    """Up to three artists whose names are similar, or contain the given one, as words, best first."""
    names = list(dict.fromkeys(part for field in fields for part in credited(field) if part))
    words = set(normalised(name).split())
    containing = [known for known in names if words and words <= set(re.findall(r"\w+", normalised(known)))]
    return list(dict.fromkeys([*near(name, names), *containing]))[:3]
