"""Activations of many recordings, stored, read and probed."""

from hooked_whisper.harvest.dataset import ActivationDataset
from hooked_whisper.harvest.harvest import harvest
from hooked_whisper.harvest.places import RecordingEntry, RowPlaces
from hooked_whisper.harvest.probes import ProbeResult, ProbeScore, probe
from hooked_whisper.harvest.recordings import Recording, as_recordings
from hooked_whisper.harvest.store import ActivationStore
from hooked_whisper.harvest.verify import verify_store

__all__ = [
    "ActivationDataset",
    "ActivationStore",
    "ProbeResult",
    "ProbeScore",
    "Recording",
    "RecordingEntry",
    "RowPlaces",
    "as_recordings",
    "harvest",
    "probe",
    "verify_store",
]
