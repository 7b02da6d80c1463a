"""What is settled before the libraries are imported."""

import subprocess
import sys
from pathlib import Path

PREPARE = (
    "import os; from tuitune.machine.environment import prepare_environment; prepare_environment(); "
    "print(os.environ['UNSLOTH_COMPILE_LOCATION'])"
)


def test_where_the_home_cannot_be_written_all_processes_share_one_temporary_folder(tmp_path: Path) -> None:
    (tmp_path / "no-folder").touch()
    environment = {"XDG_CACHE_HOME": str(tmp_path / "no-folder"), "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    folders = [
        subprocess.run(
            [sys.executable, "-c", PREPARE], env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()
        for _ in range(2)
    ]
    assert folders[0] == folders[1] and Path(folders[0]).is_relative_to(tmp_path)
    assert len(list(tmp_path.glob("tuitune-*"))) == 1
