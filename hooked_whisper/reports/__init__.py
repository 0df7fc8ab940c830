"""Pages to look at and listen to: each one HTML file that works from disk, without a network."""

from hooked_whisper.arguments import explain_arguments
from hooked_whisper.reports.attention import AttentionPage, attention_page
from hooked_whisper.reports.circuit import CircuitPage, circuit_page
from hooked_whisper.reports.features import FeaturePage, feature_page
from hooked_whisper.reports.html import page_styles
from hooked_whisper.reports.sounds import sound_page

__all__ = [
    "AttentionPage",
    "CircuitPage",
    "FeaturePage",
    "attention_page",
    "circuit_page",
    "feature_page",
    "page_styles",
    "sound_page",
]

explain_arguments(globals())
