"""The former name of `hooked_whisper.reports`."""

from hooked_whisper.moved import moved_names

_REPORTS = "AttentionPage FeaturePage attention_page feature_page"
__getattr__ = moved_names(__name__, dict.fromkeys(_REPORTS.split(), "reports"))
