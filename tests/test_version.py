import importlib.metadata

import rst_hub
from rst_hub.version import __version__


def test_the_package_and_its_metadata_have_one_version():
    assert rst_hub.__version__ == __version__
    assert __version__.count(".") == 2
    assert importlib.metadata.version("rst-hub") == __version__
