"""From recordings to batches that a model runs on: the one meaning of "recordings".

what a user has     files, folders, manifests, data sets, arrays: as_recordings
one of them         Recording
cut to the model    load_windows, or each_window when it is due: AudioWindow
side by side        window_batches: WindowBatch, with its mel, tokens and masks
heads that hear it  find_alignment_heads: AlignmentHeads
nobody speaks       non_speech_sounds
what is said when   align_words, align_phones, add_alignments: labels of time; write_manifest
"""

from hooked_whisper.arguments import explain_arguments
from hooked_whisper.data.alignment_heads import AlignmentHeads, find_alignment_heads
from hooked_whisper.data.batches import WindowBatch, window_batches
from hooked_whisper.data.labelling import (
    add_alignments,
    align_phones,
    align_words,
    write_manifest,
)
from hooked_whisper.data.non_speech import non_speech_sounds
from hooked_whisper.data.recordings import Recording
from hooked_whisper.data.sources import as_recordings
from hooked_whisper.data.windows import AudioWindow, SkippedRecording, each_window, load_windows

__all__ = [
    "AlignmentHeads",
    "AudioWindow",
    "Recording",
    "SkippedRecording",
    "WindowBatch",
    "add_alignments",
    "align_phones",
    "align_words",
    "as_recordings",
    "each_window",
    "find_alignment_heads",
    "load_windows",
    "non_speech_sounds",
    "window_batches",
    "write_manifest",
]

explain_arguments(globals())
