"""The readable files of a bundle, computed from its records, so that a verifier can reproduce them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from encore.errors import InputError
from encore.evidence.bom import bom
from encore.report.card import model_card
from encore.report.page import render
from encore.report.run_files import REPORT, read_run

BOM, CARD = "bom.cdx.json", "model-card.md"
DERIVED = (BOM, CARD, REPORT)


def derived(records: Mapping[str, bytes], model: Mapping[str, str]) -> dict[str, bytes]:
    """Report, model card and bill of materials, from a bundle's records.

    The report has no pictures and no audio, as these depend on library versions.

    Args:
        records: see `public_records`.
        model: SHA-256 of each of the model's files, by name.

    Raises:
        InputError: a record is not of this version.
    """
    with tempfile.TemporaryDirectory(prefix="encore-") as above:
        folder = Path(above)
        for name, content in records.items():
            (folder / name).write_bytes(content)
        try:
            files = read_run(folder)
            return {
                REPORT: render(files, plots=False).encode("utf-8"),
                CARD: model_card(files.run, files.results).encode("utf-8"),
                BOM: (json.dumps(bom(files, model), indent=2) + "\n").encode(),
            }
        except InputError as error:
            raise InputError(error.message.replace(str(folder), "the bundle"), error.hint) from error
        except (KeyError, TypeError, AttributeError, ValueError, IndexError, ArithmeticError) as error:
            raise InputError(f"no report can be made of the bundle's records: {error!r}") from error
