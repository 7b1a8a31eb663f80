from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_reading_lists_and_audio_imports_no_torch() -> None:
    code = (
        "import sys, encore.data.track_list, encore.data.catalog, encore.data.decode\n"
        "heavy = {'torch', 'transformers', 'librosa', 'scipy', 'av', 'soundfile', 'tinytag'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    source = Path(__file__).parents[2] / "src"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(source)}, check=False)
    assert done.returncode == 0
