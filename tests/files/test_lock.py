import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lichen.errors import LichenError
from lichen.files import flock
from lichen.files.lock import locked

_HOLD = """
import subprocess, sys
from pathlib import Path
from lichen.files.lock import locked

with locked(Path(sys.argv[1]), ", or its child,") as lock:
    fds = (lock,) if sys.argv[2:] else ()
    child = subprocess.Popen(["sleep", "60"], pass_fds=fds, stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    child.wait()
"""


def test_the_second_is_refused_until_the_first_is_killed(tmp_path: Path):
    """Also while a child of the first lives, unless that was given the lock."""
    for given in ([], ["given"]):
        holder = subprocess.Popen(
            [sys.executable, "-c", _HOLD, str(tmp_path), *given], stdout=subprocess.PIPE, text=True
        )
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            with (
                pytest.raises(
                    LichenError, match=rf"process {holder.pid} on .*, or its child, is at work in {tmp_path};"
                ),
                locked(tmp_path),
            ):
                pass
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            if given:
                with pytest.raises(LichenError, match="or its child, is at work"), locked(tmp_path):
                    pass
            else:
                with locked(tmp_path):
                    pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_machine_may_be_called_any_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("socket.gethostname", lambda: os.fsdecode(b"h\xff"))
    with locked(tmp_path):
        assert (tmp_path / "lock").read_bytes() == b"process %d on h\xff\n" % os.getpid()
        with pytest.raises(LichenError, match="on h\ufffd is at work in"), locked(tmp_path):
            pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_in_the_file_system_it_warns_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.warns(UserWarning, match=f"{tmp_path} has no locks"), locked(tmp_path):
        assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(flock, "fcntl", None)
    with pytest.raises(LichenError, match="inside WSL"), locked(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()


def test_a_lock_that_cannot_be_written_is_told(tmp_path: Path):
    """With its name: closing the file must not fail once more on what is left to write."""
    code = (
        "import resource, sys; from pathlib import Path; from lichen.files.lock import locked\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "with locked(Path(sys.argv[1])): pass"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.stderr.endswith(f"LichenError: cannot write {tmp_path / 'lock'}: File too large\n")
