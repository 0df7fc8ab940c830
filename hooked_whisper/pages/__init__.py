"""Pages to look at and listen to: each one HTML file that works from disk, without a network."""

from hooked_whisper.pages.features import FeaturePage, feature_page

__all__ = ["FeaturePage", "feature_page"]
