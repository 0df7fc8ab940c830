"""The former name of `hooked_whisper.store` and `hooked_whisper.data`."""

from hooked_whisper.moved import moved_names

_STORE = """
    ActivationDataset ActivationStore ProbeResult ProbeScore RecordingEntry harvest
    probe verify_store
"""
__getattr__ = moved_names(
    __name__,
    dict.fromkeys(_STORE.split(), "store")
    | {"RowPlaces": "store.RowIndex", "Recording": "data", "as_recordings": "data"},
)
