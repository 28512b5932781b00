"""Zip archives of app folders, as one uploads them for an image."""

import io
import zipfile
from pathlib import Path


def zip_folder(folder):
    """The files of a folder as a zip archive, with paths relative to it."""
    folder = Path(folder)
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    return zip_files(files)


def zip_files(files):
    """A zip archive of these contents by path."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        for path, content in files.items():
            out.writestr(path, content)
    return archive.getvalue()
