"""Activations of many recordings, stored, read and probed."""

from hooked_whisper.arguments import explain_arguments
from hooked_whisper.store.dataset import ActivationDataset, Epochs
from hooked_whisper.store.fingerprint import model_identity
from hooked_whisper.store.manifest import verify_store
from hooked_whisper.store.probes import ProbeResult, ProbeScore, probe
from hooked_whisper.store.provenance import RecordingEntry, RowIndex
from hooked_whisper.store.reader import ActivationStore
from hooked_whisper.store.writer import harvest

__all__ = [
    "ActivationDataset",
    "ActivationStore",
    "Epochs",
    "ProbeResult",
    "ProbeScore",
    "RecordingEntry",
    "RowIndex",
    "harvest",
    "model_identity",
    "probe",
    "verify_store",
]

explain_arguments(globals())
