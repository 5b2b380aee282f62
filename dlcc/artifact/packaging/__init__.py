"""What stands beside a library so that programs can use it: build files, an example, a page."""

from dlcc.artifact.packaging.build_files import cmake_config, pkg_config
from dlcc.artifact.packaging.example import example_files
from dlcc.artifact.packaging.facts import GUIDE, Delivery
from dlcc.artifact.packaging.guide import guide


def package_files(delivery: Delivery) -> dict[str, bytes]:
    """All these files, by name."""
    texts = {
        f"{delivery.symbol}Config.cmake": cmake_config(delivery),
        GUIDE: guide(delivery),
        **example_files(delivery),
    }
    if delivery.kind != "c":  # which has nothing to link
        texts[f"{delivery.symbol}.pc"] = pkg_config(delivery)
    return {name: text.encode() for name, text in texts.items()}


__all__ = ["Delivery", "package_files"]
