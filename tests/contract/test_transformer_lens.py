"""Which transformer-lens the tests run on, so that no run tests another than it says."""

import os
from importlib import metadata
from pathlib import Path

import pytest
import transformer_lens

EXPECTED = os.environ.get("EXPECT_TRANSFORMER_LENS")


def test_the_version_is_one_that_the_package_supports() -> None:
    major = int(metadata.version("transformer-lens").split(".")[0])
    assert 3 <= major < 5


@pytest.mark.skipif(
    EXPECTED is None, reason="`make test-tl3` sets EXPECT_TRANSFORMER_LENS to the version it means"
)
def test_the_version_is_the_expected_one() -> None:
    assert metadata.version("transformer-lens") == EXPECTED


def test_the_imported_package_is_the_one_whose_version_is_reported() -> None:
    distribution = metadata.distribution("transformer-lens")
    reported = Path(str(distribution.locate_file("transformer_lens/__init__.py")))
    assert Path(str(transformer_lens.__file__)).resolve() == reported.resolve()


def test_the_package_builds_on_its_hook_point_and_root_module() -> None:
    from transformer_lens import HookedRootModule
    from transformer_lens.hook_points import HookPoint

    import hooked_whisper

    assert issubclass(hooked_whisper.HookPoint, HookPoint)
    assert issubclass(hooked_whisper.HookedEncoderDecoder, HookedRootModule)
