"""Changes a directory the way the kubelet does when a ConfigMap changes that a pod has mounted."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class ConfigMapMount:
    """A mounted ConfigMap.

    Each file is a link ``KEY -> ..data/KEY``; ``..data`` is a link to a directory with a name of its own,
    which is never changed. The steps and their order are those of `AtomicWriter` in
    ``kubernetes/pkg/volume/util/atomic_writer.go``.
    """

    def __init__(self, path: Path, data: Mapping[str, str]) -> None:
        self.path = path
        path.mkdir(exist_ok=True)
        self.write(data)

    def write(self, data: Mapping[str, str]) -> None:
        """Replace all keys."""
        new = Path(tempfile.mkdtemp(prefix="..2026_11_24_23_30_00.", dir=self.path))
        new.chmod(0o755)
        for key, value in data.items():
            (new / key).write_text(value)
        link = self.path / "..data"
        old = link.resolve() if link.is_symlink() else None
        temporary = self.path / "..data_tmp"
        temporary.symlink_to(new.name)
        temporary.rename(link)
        for key in data:
            if not (self.path / key).is_symlink():
                (self.path / key).symlink_to(f"..data/{key}")
        for path in self.path.iterdir():
            if not path.name.startswith("..") and path.name not in data:
                path.unlink()
        if old is not None:
            shutil.rmtree(old)
