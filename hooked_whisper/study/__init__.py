"""The published study of Whisper-Tiny, for any Whisper and any recordings, in one call.

the whole study                     study: Study
what it writes where nobody speaks  hallucination_study: HallucinationStudy
"""

from hooked_whisper.arguments import explain_arguments
from hooked_whisper.study.hallucinations.result import HallucinationStudy
from hooked_whisper.study.hallucinations.run import hallucination_study
from hooked_whisper.study.run import Study, study

__all__ = ["HallucinationStudy", "Study", "hallucination_study", "study"]

explain_arguments(globals())
