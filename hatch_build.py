"""In a clone (`pip install -e .`) demos/ and assets/ lie beside msk/; into a wheel they travel inside it."""
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Travel(BuildHookInterface):
    def initialize(self, version, build_data):
        if version == "editable":
            return
        for folder in ("demos", "assets/tiny"):
            for path in sorted((Path(self.root) / folder).glob("*")):
                if path.is_file():
                    build_data["force_include"][str(path)] = f"msk/{folder}/{path.name}"
