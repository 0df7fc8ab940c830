"""All mutants. Those called m.., n.. and o.. were the first ones; see CONTRIBUTING.md."""

from . import of_display, of_interventions, of_model, of_pages, of_sae, of_speech, of_store

MUTANTS = [
    *of_model.MUTANTS,
    *of_speech.MUTANTS,
    *of_interventions.MUTANTS,
    *of_sae.MUTANTS,
    *of_store.MUTANTS,
    *of_pages.MUTANTS,
    *of_display.MUTANTS,
]
